"""Play a transcript between a client and a daemon, and check it at both ends.

It drives the peers; connections are the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError

from viewport_relay.peer.client import ClientPeer
from viewport_relay.peer.daemon import Conversation
from viewport_relay.peer.errors import Code, PeerError
from viewport_relay.peer.transcript import Transcript

ANSWER_SECONDS = 15.0


class TranscriptRun:
    """Both ends of one transcript; each compares what it gets with what it knows must come.

    Give `at_daemon` to a DaemonPeer and `at_client` to a ClientPeer. `stop` is called once, when `failure`
    is set. `round_trips` holds seconds, of the turns that had the wire alone.
    """

    def __init__(self, reactor: Any, transcript: Transcript) -> None:
        self._reactor = reactor
        self._transcript = transcript
        self._at_daemon = 0
        self._at_client = 0
        self._waiting: Deferred[None] | None = None
        self._wanted = 0
        self.failure: str | None = None
        self.stop: Callable[[], None] = lambda: None
        self.round_trips: list[float] = []

    def fail(self, why: str) -> None:
        """Keep the first reason and end the scene."""
        if self.failure is None:
            self.failure = why
            self.stop()

    def at_daemon(self, conversation: Conversation, text: str) -> None:
        """Check a message of the client and answer it."""
        number = self._at_daemon
        self._at_daemon += 1
        if number >= len(self._transcript.turns) or text != self._transcript.turns[number].steer:
            self.fail(f"the daemon got something else than message {number} of the client")
            return
        conversation.send(self._transcript.turns[number].output)

    def at_client(self, text: str) -> None:
        """Check an answer of the daemon."""
        number = self._at_client
        self._at_client += 1
        if number >= len(self._transcript.turns) or text != self._transcript.turns[number].output:
            self.fail(f"the client got something else than message {number} of the daemon")
            return
        if self._waiting is not None and self._at_client == self._wanted:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def run(self, client: ClientPeer) -> None:
        """Send all turns and wait for all answers. Raises PeerError TIMEOUT when one stays out."""
        for batch in self._transcript.batches():
            self._wanted = batch.stop
            waiting = self._waiting = Deferred()
            started = self._reactor.seconds()
            for number in batch:
                client.send(self._transcript.turns[number].steer)
            try:
                await waiting.addTimeout(ANSWER_SECONDS, self._reactor)
            except TimeoutError:
                raise PeerError(
                    Code.TIMEOUT,
                    f"no answer to message {batch.start} within {ANSWER_SECONDS:.0f} s "
                    f"(at the daemon: {self._at_daemon}, back at the client: {self._at_client})",
                ) from None
            if len(batch) == 1:
                self.round_trips.append(self._reactor.seconds() - started)
