"""Blocking peers of a real relay over real sockets, and their workspace.

    site = Site(relay, platform, "w1")
    daemon, client = site.daemon(), site.client()
    client.say(encoded("init v3"))
    assert daemon.hear() == encoded("init v3")
    settle(client, daemon)          # all messages of client have arrived

All calls block, with a time limit. A peer reads only during a call that reads; between calls it reads nothing, and
answers neither pings nor a Close.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.peers import TIMEOUT, Upgrade, answer_on, head, target_of
from tests.integration.admission.relays import Relay
from tests.memorywire import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, masked_frame
from tests.wireframes import encoded

DAEMON, CLIENT, WORKER = "workspace-daemon", "client", "worker"
CHANNEL = "agent-session:alpha"

T = TypeVar("T")


class Gone(AssertionError):
    """The relay has closed or dropped the connection."""


class Peer:
    """One WebSocket client. During calls that read it answers pings and the relay's Close, unless configured otherwise."""

    def __init__(self, upgrade: Upgrade) -> None:
        self.socket = upgrade.connection
        self._frames: FrameReader = upgrade._reader
        self.inbox: list[bytes] = []  # messages that were read but not yet returned
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.closed: tuple[int | None, str] | None = None  # the relay's Close frame
        self.ended = False  # the TCP connection has ended
        self.answers_pings = True
        self.answers_close = True
        self.binary = False
        self._take(upgrade._frames)

    # -- sending -----------------------------------------------------------------------------------------------

    def say(self, *messages: bytes) -> None:
        """Send text messages, in one write."""
        self.raw(b"".join(masked_frame(TEXT, message) for message in messages))

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def try_raw(self, data: bytes) -> bool:
        """Send bytes, ignoring a closed or full connection; whether all bytes were sent."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def try_frame(self, message: bytes) -> bool:
        """Send a text message; False if not all of it was sent within the socket's time limit."""
        return self.try_raw(masked_frame(TEXT, message))

    # -- reading -----------------------------------------------------------------------------------------------

    def _take(self, frames: list[tuple[int, bytes, bool]]) -> None:
        for opcode, payload, fin in frames:
            assert fin, "the relay does not fragment"
            assert self.closed is None, "bytes after the Close frame"
            if opcode in (TEXT, BINARY):
                assert opcode == TEXT
                self.inbox.append(payload)
            elif opcode == PING:
                self.pings.append(payload)
                if self.answers_pings:
                    self.try_raw(masked_frame(PONG, payload))
            elif opcode == PONG:
                self.pongs.append(payload)
            else:
                assert opcode == CLOSE
                code = int.from_bytes(payload[:2], "big") if payload else None
                self.closed = (code, payload[2:].decode())
                if self.answers_close:
                    self.try_raw(masked_frame(CLOSE, payload[:2]))

    def read_once(self, seconds: float = TIMEOUT, size: int = 1 << 20) -> bool:
        """Read once, waiting up to `seconds`; False if no bytes came."""
        self.socket.settimeout(max(seconds, 0.001))
        try:
            data = self.socket.recv(size)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        finally:
            self.socket.settimeout(TIMEOUT)
        if data:
            self._take(self._frames.feed(data))
        else:
            self.ended = True
        return True

    def read_until(self, there: Callable[[], T], what: str, seconds: float = TIMEOUT) -> T:
        deadline = time.monotonic() + seconds
        while not (found := there()):
            if self.ended:
                raise Gone(f"{what}: the connection ended, closed {self.closed}")
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            self.read_once(deadline - time.monotonic())
        return found

    def hear(self) -> bytes:
        """The next message."""

        def there() -> bool:
            if not self.inbox and self.closed is not None:
                raise Gone(f"closed {self.closed}")
            return bool(self.inbox)

        self.read_until(there, "a message")
        return self.inbox.pop(0)

    def hear_all(self, number: int) -> list[bytes]:
        return [self.hear() for _ in range(number)]

    def heard(self) -> list[bytes]:
        """Messages that were read but not yet returned."""
        messages, self.inbox = self.inbox, []
        return messages

    def end(self) -> tuple[int | None, str] | None:
        """Read to the end of the connection: the relay's Close, or None without one."""
        self.read_until(lambda: self.ended, "the end")
        return self.closed

    def close_frame(self) -> tuple[int | None, str]:
        """The relay's Close; the TCP connection may stay open for a while."""
        return self.read_until(lambda: self.closed, "a Close") or (None, "")

    def read_for(self, seconds: float) -> None:
        """Keep reading, and answering pings."""
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline:
            self.read_once(deadline - time.monotonic())

    # -- closing -----------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Closing handshake, up to the end of the TCP connection."""
        self.answers_close = False
        self.raw(masked_frame(CLOSE, struct.pack("!H", 1000)))
        assert self.end() == (1000, "")

    def vanish(self) -> None:
        """Reset the connection; a second call has no effect."""
        if self.socket.fileno() < 0:
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


_marks = iter(range(1 << 60))


def settle(*peers: Peer) -> None:
    """Wait until the relay has handled all messages of these peers, and the peers have read the results.

    A pong follows everything that was in flight before the ping. The second round covers what the first one caused
    between the peers.
    """
    for _ in range(2):
        for peer in peers:
            mark = b"mark-%d" % next(_marks)
            peer.raw(masked_frame(PING, mark))
            peer.read_until(lambda peer=peer, mark=mark: mark in peer.pongs, "a pong")  # type: ignore[misc]


class Site:
    """One workspace and target on a relay."""

    def __init__(
        self, relay: Relay, platform: ControlPlane, workspace: str, target: str | None = "t"
    ) -> None:
        self.relay = relay
        self.platform = platform
        self.workspace = workspace
        self.target = target
        self.peers: list[Peer] = []

    def join(
        self,
        role: str,
        *,
        receive_buffer: int = 0,
        early: bytes = b"",
        query_target: str | None = ...,
        **claims: Any,  # type: ignore[assignment]
    ) -> Peer:
        """An upgraded peer. `early` is sent right after the request, before the response."""
        target = claims.pop("target", self.target)
        token = self.platform.token(role, self.workspace, target, **claims)
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(TIMEOUT)
        connection.connect(("127.0.0.1", self.relay.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = target_of(role, self.workspace, target if query_target is ... else query_target)
        connection.sendall(head(asked, {"Authorization": f"Bearer {token}"}) + early)
        answer = answer_on(connection)
        assert answer.admitted, (answer.status, answer.body)
        peer = Peer(answer)
        self.peers.append(peer)
        return peer

    def daemon(self, generation: int | None = None, **claims: Any) -> Peer:
        peer = self.join(DAEMON, daemonIssueGeneration=generation, **claims)
        settle(peer)
        return peer

    def client(self, scope: str | None = "runtime", **claims: Any) -> Peer:
        """A client; each call makes a client with its own id."""
        peer = self.join(CLIENT, **{"scope": scope, "clientId": f"client-{next(_marks)}", **claims})
        settle(peer)
        return peer

    def viewer(self, *channels: str, **claims: Any) -> Peer:
        return self.client("session-events", sessionChannels=list(channels or (CHANNEL,)), **claims)

    def worker(self, **claims: Any) -> Peer:
        return self.join(WORKER, **{"managedExecutorId": "x", **claims})

    def session_strong(self, daemon: Peer, client: Peer, session: str = "session-1") -> str:
        """A key exchange in which the daemon names the stronger profile."""
        return self.session(daemon, client, session, profile="noise-ikpsk2")

    def session(
        self, daemon: Peer, client: Peer, session: str = "session-1", profile: str = "noise-ik"
    ) -> str:
        """A key exchange through the relay; afterwards the client owns the session."""
        init = encoded("init v3", requestId=f"for-{session}")
        client.say(init)
        assert daemon.hear() == init
        answer = encoded("response v3", requestId=f"for-{session}", sessionId=session, profile=profile)
        daemon.say(answer)
        assert client.hear() == answer
        return session

    def state(self) -> dict[str, Any] | None:
        """Entry of `/state` about this target."""
        status, body = self.relay.get("/state")
        assert status == 200
        found = [
            entry
            for entry in json.loads(body)["workspaces"]
            if (entry["workspaceId"], entry["runtimeTargetId"]) == (self.workspace, self.target)
        ]
        return found[0] if found else None

    def logged(self, reason: str) -> list[dict[str, Any]]:
        """Log entries of this workspace with this reason; waits for the first."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            found = [
                entry
                for entry in self.relay.logs()
                if entry.get("reason") == reason and entry["details"].get("workspaceId") == self.workspace
            ]
            if found:
                return found
            assert time.monotonic() < deadline, f"no {reason} in the log"
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        """Sum over a metric's labels."""
        return sum(value for key, value in self.relay.metrics().items() if key.partition("{")[0] == name)

    def everybody_leaves(self) -> None:
        for peer in self.peers:
            peer.vanish()
        self.peers.clear()


def resident_kib(relay: Relay) -> int:
    """Resident memory of the relay process."""
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
