"""The state machine of a connection: transition table, without a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from viewport_relay.reasons import Reason
from viewport_relay.wire.ending import Ending
from viewport_relay.wire.life import CLOSE_TIMEOUT, LIFE, Core, LifeInputs, begin
from viewport_relay.wire.turn import Turn

CLOSE = Ending(Reason.RELAY_SHUTTING_DOWN)
BY_PEER = Ending(None, "closed by peer", 1000)
LOST = Ending(None, "connection lost")


class Bench:
    """A machine with test doubles that record the calls on transport, outbox and owner."""

    def __init__(self, *, idle: bool = True) -> None:
        self.clock = Clock()
        self.did: list[str] = []
        self.endings: list[Ending] = []
        self.idle = idle
        self.drained = False
        self.on_idle: Callable[[], None] = lambda: None
        anything: Any = self
        self.core = Core(self.clock, Turn(), anything, anything, anything)
        self.life: LifeInputs = begin(self.core)

    # owner
    def ended(self, ending: Ending) -> None:
        self.endings.append(ending)

    def close_sent(self) -> None:
        self.did.append("close_sent")

    def lost(self) -> None:
        self.did.append("lost")

    # outbox
    def send_close(self, payload: bytes, *, ends: bool) -> None:
        self.did.append(f"close {payload!r} {ends}")

    def stopProducing(self) -> None:
        self.did.append("nothing more")

    # transport
    def unregisterProducer(self) -> None: ...

    def loseConnection(self) -> None:
        self.did.append("FIN")

    def abortConnection(self) -> None:
        self.did.append("RST")

    def timers(self) -> list[float]:
        return [round(call.getTime() - self.clock.seconds(), 3) for call in self.clock.getDelayedCalls()]


SAID = f"close {CLOSE.payload!r} False"
ANSWERED = "close b'bye' True"

TO: dict[str, Callable[[Bench], None]] = {
    "open": lambda bench: None,
    "waiting": lambda bench: bench.life.close_later(CLOSE, 1.0),
    "closing": lambda bench: bench.life.close(CLOSE),
    "draining": lambda bench: bench.life.peer_closed(BY_PEER, b"bye"),
    "lost": lambda bench: bench.life.connection_lost(LOST),
}
DO: dict[str, Callable[[Bench], None]] = {
    "close": lambda bench: bench.life.close(CLOSE),
    "close later": lambda bench: bench.life.close_later(CLOSE, 1.0),
    "cut": lambda bench: bench.life.cut(Ending(Reason.PONG_TIMEOUT)),
    "peer closed": lambda bench: bench.life.peer_closed(BY_PEER, b"bye"),
    "answered": lambda bench: bench.life.close_answered(),
    "peer gone": lambda bench: bench.life.peer_gone(BY_PEER),
    "time": lambda bench: bench.clock.advance(CLOSE_TIMEOUT),
    "lost": lambda bench: bench.life.connection_lost(LOST),
}

#: (state, input) -> calls; other pairs cause none
DOES: dict[tuple[str, str], list[str]] = {
    ("open", "close"): [SAID, "close_sent"],
    ("open", "cut"): ["RST"],
    ("open", "peer closed"): [ANSWERED, "FIN"],
    ("open", "peer gone"): ["nothing more"],
    ("open", "lost"): ["nothing more", "lost"],
    ("waiting", "cut"): ["RST"],
    ("waiting", "peer closed"): [ANSWERED, "FIN"],
    ("waiting", "peer gone"): ["nothing more"],
    ("waiting", "time"): [SAID, "close_sent"],
    ("waiting", "lost"): ["nothing more", "lost"],
    ("closing", "cut"): ["RST"],
    ("closing", "answered"): ["FIN"],
    ("closing", "peer gone"): ["nothing more"],
    ("closing", "time"): ["FIN"],
    ("closing", "lost"): ["nothing more", "lost"],
    ("draining", "cut"): ["RST"],
    ("draining", "peer gone"): ["nothing more"],
    ("draining", "time"): ["RST"],
    ("draining", "lost"): ["nothing more", "lost"],
}


@pytest.mark.parametrize("happens", DO)
@pytest.mark.parametrize("state", TO)
def test_every_input_in_every_state(state: str, happens: str) -> None:
    bench = Bench()
    TO[state](bench)
    bench.did.clear()
    DO[happens](bench)
    assert bench.did == DOES.get((state, happens), [])
    assert len(bench.endings) <= 1  # the owner is called once, with the first reason
    if (state, happens) not in {("open", "answered"), ("open", "time")}:
        assert len(bench.endings) == 1
    assert len(bench.timers()) <= 1  # at most one timer


@pytest.mark.parametrize("state", TO)
def test_a_lost_connection_leaves_no_timer_and_makes_no_call(state: str) -> None:
    bench = Bench()
    TO[state](bench)
    bench.life.connection_lost(LOST)
    bench.did.clear()
    for happens in DO.values():
        happens(bench)
    assert (bench.did, bench.timers()) == ([], [])


def test_queued_bytes_are_sent_first_within_ten_seconds() -> None:
    bench = Bench(idle=False)
    bench.life.peer_closed(BY_PEER, b"bye")
    assert bench.did == [ANSWERED] and bench.timers() == [CLOSE_TIMEOUT]
    bench.idle = True
    bench.on_idle()
    assert bench.did == [ANSWERED, "FIN"]


def test_without_an_answer_and_with_a_full_queue_the_connection_is_aborted() -> None:
    bench = Bench(idle=False)
    bench.life.close(CLOSE)
    bench.clock.advance(CLOSE_TIMEOUT)
    assert bench.did == [SAID, "close_sent", "RST"]


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.entry.close], ids=str)
def test_a_close_frame_has_the_code_and_text_of_its_reason(reason: Reason) -> None:
    payload = Ending(reason).payload
    assert int.from_bytes(payload[:2], "big") == reason.entry.close
    assert payload[2:].decode("ascii") == reason.entry.close_text
    assert len(payload) <= 125  # of a control frame, RFC 6455 section 5.5


def test_the_machine_has_the_documented_states() -> None:
    names = {
        transition[0].name
        for transition in LIFE.__automat_automaton__.allTransitions()  # type: ignore[attr-defined]
    }
    assert names == {"open", "waiting", "closing", "draining", "lost"}
