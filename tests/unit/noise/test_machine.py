"""Transition table of the link's machine: each state with each input, over a scripted responder."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from automat import NoTransition

from tests.pages import ROOT
from tests.unit.noise.peers import Recorder
from tools.machines import drawing
from viewport_relay.noise import machine
from viewport_relay.noise.machine import LINK_MACHINE, LinkCore, LinkInputs
from viewport_relay.noise.policy import Pattern
from viewport_relay.reasons import Reason, Refusal

MALFORMED, INVALID_PSK = Reason.NOISE_HANDSHAKE_MALFORMED, Reason.NOISE_INVALID_PSK
TIMEOUT, DECRYPT = Reason.NOISE_TIMEOUT, Reason.NOISE_DECRYPT_FAILED
GIVEN = Refusal(
    Reason.NOISE_STATIC_KEY_MISMATCH, "given", details={"a": 1}
)  # passed to inputs that take a refusal
TAKES_REFUSAL = {"refused"}

STATES = ("awaiting", "answered", "established", "closed")
INPUTS = tuple(name for name in vars(LinkInputs) if not name.startswith("_"))  # in source order


class Scripted:
    """Test double of the responder: each step does nothing or raises its refusal from `refuse`."""

    def __init__(self, pattern: Pattern = Pattern.IKPSK2) -> None:
        self.pattern = pattern
        self.refuse: dict[str, Refusal] = {}

    def _step(self, name: str) -> None:
        if name in self.refuse:
            raise self.refuse[name]

    def read_message_1(self, data: bytes) -> None:
        self._step("message 1")

    def write_message_2(self) -> bytes:
        return b"message 2"

    def read_confirm(self, data: bytes) -> None:
        self._step("confirm")

    def confirm_refused(self, why: str) -> Refusal:
        return Refusal(INVALID_PSK if self.pattern is Pattern.IKPSK2 else MALFORMED, why)


def fails(reason: Reason) -> tuple[str, list[tuple[str, Any]]]:
    return "closed", [("fail", reason)]


QUIET: list[tuple[str, Any]] = []
GIVEN_FAILS = fails(GIVEN.reason)
#: (state, input) -> end state and the calls on the connection
EXPECTED: dict[tuple[str, str], tuple[str, list[tuple[str, Any]]]] = {
    ("awaiting", "message"): ("answered", [("send", b"message 2")]),
    ("awaiting", "text_message"): fails(MALFORMED),
    ("awaiting", "timeout"): fails(TIMEOUT),
    ("awaiting", "peer_gone"): ("closed", QUIET),
    ("awaiting", "relay_closes"): ("closed", QUIET),
    ("awaiting", "refused"): GIVEN_FAILS,
    ("answered", "refused"): GIVEN_FAILS,
    ("awaiting", "message_1_good"): ("answered", [("send", b"message 2")]),
    ("answered", "message"): ("established", [("established", Pattern.IKPSK2)]),
    ("answered", "text_message"): fails(INVALID_PSK),
    ("answered", "timeout"): fails(TIMEOUT),
    ("answered", "peer_gone"): ("closed", [("note", INVALID_PSK)]),
    ("answered", "relay_closes"): ("closed", QUIET),
    ("answered", "confirm_good"): ("established", [("established", Pattern.IKPSK2)]),
    ("established", "text_message"): fails(DECRYPT),
    ("established", "timeout"): ("established", QUIET),
    ("established", "peer_gone"): ("closed", QUIET),
    ("established", "relay_closes"): ("closed", QUIET),
    ("established", "refused"): GIVEN_FAILS,
    ("closed", "message"): ("closed", QUIET),
    ("closed", "text_message"): ("closed", QUIET),
    ("closed", "timeout"): ("closed", QUIET),
    ("closed", "peer_gone"): ("closed", QUIET),
    ("closed", "relay_closes"): ("closed", QUIET),
    ("closed", "refused"): ("closed", QUIET),
}


def start(state: str, link: Scripted | None = None) -> tuple[Any, Recorder, LinkCore]:
    peer = Recorder()
    core = LinkCore(peer, link or Scripted())  # type: ignore[arg-type]
    return LINK_MACHINE(core, getattr(machine, state)), peer, core


def now(running: Any) -> str:
    state: str = running.__automat_transitioner__._state.name
    return state


def feed(running: Any, symbol: str) -> None:
    if symbol == "message":
        running.message(b"data")
    elif symbol in TAKES_REFUSAL:
        getattr(running, symbol)(GIVEN)
    else:
        getattr(running, symbol)()


def calls_on(peer: Recorder) -> list[tuple[str, Any]]:
    return [
        *(("send", data) for data in peer.sent),
        *(("established", pattern) for pattern in peer.admitted),
        *(("fail", reason) for reason, _, _ in peer.failed),
        *(("note", reason) for reason, _, _ in peer.noted),
    ]


def test_the_table_equals_the_transitions_of_the_machine() -> None:
    drawn = re.findall(r">(\w+)</font></td></tr>.*\n\t(\w+) -> t\d+:", drawing(LINK_MACHINE))
    assert {(state, symbol) for symbol, state in drawn} == set(EXPECTED)
    assert len(drawn) == len(EXPECTED)


def test_the_documentation_has_every_input_and_transition() -> None:
    text = (ROOT / "docs" / "topics" / "noise-machine.md").read_text("utf-8")
    for name in INPUTS:
        meaning = " ".join((inspect.getdoc(getattr(LinkInputs, name)) or "").split())
        assert f"| `{name}` | {meaning} |" in text
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \| .+ \|$", text, re.MULTILINE)
    ends = re.findall(
        r">(\w+)</font></td></tr>.*\n\t(\w+) -> t\d+:.*\n\tt\d+:tableport:e -> (\w+)", drawing(LINK_MACHINE)
    )
    assert {(state, symbol, end) for symbol, state, end in ends} == set(rows) - {("state", "input", "to")}
    shown = re.findall(r"^  (\w+) --> (\w+): (.+)$", text, re.MULTILINE)
    arrows = {(state, symbol, end) for state, end, symbols in shown for symbol in symbols.split(" / ")}
    assert arrows == {row for row in rows if row[0] in STATES and row[0] != "closed"}


@pytest.mark.parametrize("symbol", INPUTS)
@pytest.mark.parametrize("state", STATES)
def test_every_state_with_every_input(state: str, symbol: str) -> None:
    running, peer, core = start(state)
    if (state, symbol) not in EXPECTED:
        with pytest.raises(NoTransition):  # unreachable; a programming error would raise NoTransition
            feed(running, symbol)
        assert calls_on(peer) == []
        return
    feed(running, symbol)
    end, telling = EXPECTED[state, symbol]
    assert (now(running), calls_on(peer)) == (end, telling)
    assert core.closed is (end == "closed" and state != "closed")


def test_every_external_input_has_a_transition() -> None:
    """External inputs have a transition in every state, except `message` in "established": its messages go to the records."""
    outside = ["message", "text_message", "timeout", "peer_gone", "relay_closes"]
    missing = {(s, i) for s in STATES for i in outside if (s, i) not in EXPECTED}
    assert missing == {("established", "message")}


@pytest.mark.parametrize(("state", "step", "refusal"), [
    ("awaiting", "message 1", Refusal(MALFORMED, "a")),
    ("awaiting", "message 1", Refusal(INVALID_PSK, "b")),
    ("awaiting", "message 1", Refusal(Reason.NOISE_PSK_UNAVAILABLE, "c")),
    ("awaiting", "message 1", Refusal(Reason.NOISE_STATIC_KEY_MISMATCH, "d", details={"x": 1})),
    ("answered", "confirm", Refusal(MALFORMED, "e")),
    ("answered", "confirm", Refusal(INVALID_PSK, "f")),
])  # fmt: skip
def test_a_message_that_the_responder_refuses(state: str, step: str, refusal: Refusal) -> None:
    link = Scripted()
    link.refuse[step] = refusal
    running, peer, _ = start(state, link)
    running.message(b"data")
    assert now(running) == "closed"
    assert (
        peer.failed == [(refusal.reason, refusal.detail, refusal.details)]
        and peer.sent == peer.admitted == []
    )


def test_under_ik_a_disconnect_is_not_logged_and_a_text_confirm_is_malformed() -> None:
    running, peer, _ = start("answered", Scripted(Pattern.IK))
    running.peer_gone()
    assert now(running) == "closed" and calls_on(peer) == []
    running, peer, _ = start("answered", Scripted(Pattern.IK))
    running.text_message()
    assert calls_on(peer) == [("fail", MALFORMED)]


@pytest.mark.parametrize("inside", ["peer_gone", "relay_closes", "text_message"])
def test_a_connection_that_ends_within_its_established_callback(inside: str) -> None:
    running, peer, core = start("answered")

    class Leaving(Recorder):
        def established(self, pattern: Pattern | None) -> None:
            super().established(pattern)
            getattr(running, inside)()

    core.peer = leaving = Leaving()
    running.message(b"confirm")
    assert now(running) == "closed" and leaving.admitted == [Pattern.IKPSK2] and core.closed
    assert leaving.reason is (DECRYPT if inside == "text_message" else None) and calls_on(peer) == []
