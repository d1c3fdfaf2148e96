"""ExchangeWatch: end-to-end exchanges that the relay observes, in bounded tables."""

from __future__ import annotations

from viewport_relay.noise.exchange import PENDING_MAX, SESSIONS_MAX, EndToEndSession, ExchangeWatch


def test_init_response_rekey() -> None:
    watch = ExchangeWatch()
    watch.init_seen("r1", "noise-ik")
    assert watch.summary == "key exchange awaits its answer"
    assert watch.response_seen("r1", "s1", "noise-ik", 1) == EndToEndSession("s1", "noise-ik", 1)
    assert watch.summary == "noise-ik, epoch 1"
    wanted = watch.key_update_seen("s1", 2)
    assert wanted is not None and wanted.next_epoch == 2
    watch.init_seen("r2", "noise-ik", "s1")
    renewed = watch.response_seen("r2", "s2", "noise-ik", 2)
    assert renewed == EndToEndSession("s2", "noise-ik", 2)
    assert watch.summary == "noise-ik, epoch 2"
    assert watch.key_update_seen("s1", 3) is None  # replaced by the second session


def test_rekey_under_the_same_session_id() -> None:
    watch = ExchangeWatch()
    watch.init_seen("r1", "noise-ikpsk2")
    watch.response_seen("r1", "s1", "noise-ikpsk2", 1)
    watch.init_seen("r2", "noise-ikpsk2", "s1")
    assert watch.response_seen("r2", "s1", "noise-ikpsk2", 2) == EndToEndSession("s1", "noise-ikpsk2", 2)
    assert watch.summary == "noise-ikpsk2, epoch 2"


def test_unexpected_profiles_and_epochs_are_flagged() -> None:
    watch = ExchangeWatch()
    watch.init_seen("r1", "noise-ikpsk2")
    weaker = watch.response_seen("r1", "s1", "noise-ik", 1)
    assert weaker is not None and "profile" in weaker.oddity
    for epoch, odd in ((5, True), (1, True), (2, False)):
        watch = ExchangeWatch()
        watch.init_seen("r1", "noise-ik")
        watch.response_seen("r1", "s1", "noise-ik", 1)
        watch.init_seen("r2", "noise-ik", "s1")
        session = watch.response_seen("r2", "s2", "noise-ik", epoch)
        assert session is not None and bool(session.oddity) is odd
    watch.init_seen("r3", "noise-ik", "forgotten")
    session = watch.response_seen("r3", "s3", "noise-ik", 7)
    assert session is not None and not session.oddity


def test_responses_without_an_init_are_ignored() -> None:
    watch = ExchangeWatch()
    assert watch.response_seen("r1", "s1", "noise-ik", 1) is None
    assert watch.key_update_seen("s1", 2) is None
    watch.init_seen("", "noise-ik")
    assert watch.response_seen("", "s1", "noise-ik", 1) is None
    watch.init_seen("r1", "noise-ik")
    assert watch.response_seen("r1", "s1", "noise-ik", 1) is not None
    assert watch.response_seen("r1", "s2", "noise-ik", 1) is None  # each request has one response


def test_the_tables_are_bounded() -> None:
    watch = ExchangeWatch()
    for number in range(1000):
        watch.init_seen(f"r{number}", "noise-ik")
    answered = [watch.response_seen(f"r{number}", "s", "noise-ik", 1) for number in range(1000)]
    assert [number for number, session in enumerate(answered) if session] == [
        *range(1000 - PENDING_MAX, 1000)
    ]
    for number in range(1000):
        watch.init_seen(f"r{number}", "noise-ik")
        watch.response_seen(f"r{number}", f"s{number}", "noise-ik", 1)
    known = [number for number in range(1000) if watch.key_update_seen(f"s{number}", 2)]
    assert known == [*range(1000 - SESSIONS_MAX, 1000)]
    long = "x" * 257
    watch = ExchangeWatch()
    watch.init_seen(long, "noise-ik")
    assert watch.summary is None
    watch.init_seen("r", "noise-ik", long)
    assert watch.response_seen("r", "s", "noise-ik", 1) == EndToEndSession("s", "noise-ik", 1)
    watch.init_seen("r", "noise-ik")
    assert watch.response_seen("r", long, "noise-ik", 1) is None
