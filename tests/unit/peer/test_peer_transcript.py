"""The demonstration's synthetic session, and its replay between two peers on an in-memory transport."""

from __future__ import annotations

import json
from functools import partial

import pytest
from twisted.internet.defer import ensureDeferred

from tests.unit.peer.wiring import Wire
from viewport_relay.peer.e2e import SessionKeys
from viewport_relay.peer.envelope import Session
from viewport_relay.peer.symmetric import Profile
from viewport_relay.peer.transcript import LARGE_FRAME_BYTES, TranscriptRun, make_transcript


def test_both_ends_make_the_same_session() -> None:
    assert make_transcript(50) == make_transcript(50)
    assert make_transcript(50) != make_transcript(50, seed=1)


def test_one_frame_is_large_and_stays_below_its_size() -> None:
    transcript = make_transcript(20)
    session = Session(SessionKeys(Profile.IKPSK2, "rs_" + "x" * 22, 1, bytes(32), b""))
    sizes = sorted(len(session.seal(turn.output).encode()) for turn in transcript.turns)
    assert LARGE_FRAME_BYTES - 2_000 < sizes[-1] <= LARGE_FRAME_BYTES
    assert sizes[-2] < 100_000


def test_sizes_vary_and_messages_are_unique() -> None:
    transcript = make_transcript(200)
    texts = [text for turn in transcript.turns for text in (turn.steer, turn.output)]
    assert len(set(texts)) == transcript.messages == 400
    assert transcript.size == sum(len(text.encode()) for text in texts)
    assert all(json.loads(text)["text"] for text in texts)
    assert any(not text.isascii() for text in texts)


@pytest.mark.parametrize("turns", [1, 2, 11, 12, 13, 16, 17, 200])
def test_the_batches_are_all_turns_in_order(turns: int) -> None:
    batches = list(make_transcript(turns, large_frame_bytes=0).batches())
    assert [number for batch in batches for number in batch] == list(range(turns))
    assert {len(batch) for batch in batches} <= {1, 2, 3, 4, 5}


def _played(wire: Wire, run: TranscriptRun) -> list[object]:
    wire.client = wire.another_client(on_message=run.at_client)
    ensureDeferred(wire.client.exchange_keys())
    wire.pump()
    outcome: list[object] = []
    ensureDeferred(run.run(wire.client)).addCallbacks(
        outcome.append, lambda failure: outcome.append(failure.value)
    )
    return outcome


def test_a_session_is_played_and_measured() -> None:
    transcript = make_transcript(30, large_frame_bytes=0)
    stopped: list[str] = []
    wire = Wire(answer=lambda conversation, text: run.at_daemon(conversation, text), rekey_after=20)
    run = TranscriptRun(wire.clock, transcript)
    run.stop = lambda: stopped.append("stopped")
    outcome = _played(wire, run)
    wire.pump()
    assert outcome == [None]
    assert wire.at_daemon == [turn.steer for turn in transcript.turns]
    assert len(run.round_trips) == 22
    assert wire.client.rekeys == 2
    assert (run.failure, stopped) == (None, [])


def test_a_missing_answer_is_detected() -> None:
    wire = Wire()
    run = TranscriptRun(wire.clock, make_transcript(3, large_frame_bytes=0))
    outcome = _played(wire, run)
    wire.pump()
    wire.clock.advance(15.1)
    assert "no answer to message 0 within 15 s" in str(outcome[0])


def test_a_changed_message_is_detected_on_both_sides() -> None:
    transcript = make_transcript(3, large_frame_bytes=0)
    wire = Wire()
    for ends in ("client", "daemon"):
        run = TranscriptRun(wire.clock, transcript)
        stopped: list[str] = []
        run.stop = partial(stopped.append, "stopped")
        for _ in range(2):
            if ends == "client":
                run.at_client("something else")
            else:
                _played(wire, run)
                [conversation] = list(wire.daemon.conversations)[-1:]
                run.at_daemon(conversation, "something else")
        assert run.failure is not None
        assert run.failure.startswith(f"the {ends} got something else than message 0")
        assert stopped == ["stopped"]
