"""The bounded tables of requests and sessions."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.routing.tables import REQUEST_TTL, SESSION_TTL, RequestTable, SessionTable

LONG = "x" * 1_000_000


def test_a_request_has_an_owner_until_it_is_spent_or_expires() -> None:
    table: RequestTable[str] = RequestTable(8)
    assert table.record("r", "a", 0.0)
    assert table.owner("r", REQUEST_TTL - 0.001) == "a"
    assert table.owner("r", REQUEST_TTL) is None
    table.spend("r")
    assert table.owner("r", 0.0) is None
    table.spend("r")


def test_a_pending_request_never_changes_owner() -> None:
    table: RequestTable[str] = RequestTable(8)
    assert table.record("r", "a", 0.0)
    assert not table.record("r", "b", 1.0)
    assert table.owner("r", 1.0) == "a"
    assert table.record("r", "a", 100.0)  # the owner may renew it
    assert table.owner("r", REQUEST_TTL + 50.0) == "a"
    assert table.record("r", "b", 100.0 + REQUEST_TTL)  # expired: the id is free
    assert table.owner("r", 100.0 + REQUEST_TTL) == "b"


def test_the_oldest_request_is_dropped_first() -> None:
    table: RequestTable[str] = RequestTable(3)
    for name in ("1", "2", "3"):
        table.record(name, "a", 0.0)
    table.record("1", "a", 1.0)  # now the newest
    table.record("4", "b", 2.0)
    assert [table.owner(name, 2.0) for name in "1234"] == ["a", None, "a", "b"]
    assert len(table) == 3


def test_requests_of_an_owner_are_removed_and_requests_expire() -> None:
    table: RequestTable[str] = RequestTable(8)
    table.record("1", "a", 0.0)
    table.record("2", "b", 50.0)
    table.record("3", "a", 50.0)
    table.expire(REQUEST_TTL)
    assert len(table) == 2
    table.forget_owner("a")
    assert [table.owner(name, 60.0) for name in "123"] == [None, "b", None]
    table.clear()
    assert len(table) == 0


def test_a_session_expires_half_an_hour_after_its_last_use() -> None:
    table: SessionTable[str] = SessionTable(8)
    assert SESSION_TTL == 1800.0
    assert table.record("s", "a", 0.0)
    assert table.owner("s", SESSION_TTL - 1) == "a"
    assert table.owner("s", 2 * SESSION_TTL - 2) == "a"
    assert table.owner("s", 3 * SESSION_TTL) is None
    assert table.record("s", "b", 3 * SESSION_TTL)


def test_an_owned_session_never_changes_owner() -> None:
    table: SessionTable[str] = SessionTable(8)
    assert table.record("s", "a", 0.0)
    assert not table.record("s", "b", 1.0)
    assert table.owner("s", 2.0) == "a"
    assert table.record("s", "a", 3.0)
    table.forget_owner("a")
    assert table.owner("s", 3.0) is None
    assert table.record("s", "b", 3.0)


def test_the_least_recently_used_session_is_dropped_first() -> None:
    table: SessionTable[str] = SessionTable(3)
    for at, name in enumerate(("1", "2", "3")):
        table.record(name, "a", float(at))
    table.owner("1", 10.0)
    table.record("4", "b", 11.0)
    assert [table.owner(name, 11.0) for name in "1234"] == ["a", None, "a", "b"]
    assert len(table) == 3


def test_sessions_expire() -> None:
    table: SessionTable[str] = SessionTable(8)
    table.record("1", "a", 0.0)
    table.record("2", "a", 100.0)
    table.expire(SESSION_TTL)
    assert len(table) == 1
    table.clear()
    assert len(table) == 0


def test_ids_as_long_as_a_frame_are_not_kept() -> None:
    requests: RequestTable[str] = RequestTable(4)
    sessions: SessionTable[str] = SessionTable(4)
    held = sys.getrefcount(LONG)
    assert requests.record(LONG, "a", 0.0)
    assert sessions.record(LONG, "a", 0.0)
    assert requests.owner(LONG, 0.0) == sessions.owner(LONG, 0.0) == "a"
    assert requests.owner(LONG + "y", 0.0) is None
    assert sessions.owner(LONG + "y", 0.0) is None
    assert not requests.record(LONG, "b", 0.0)
    assert not sessions.record(LONG, "b", 0.0)
    assert sys.getrefcount(LONG) == held
    surrogate = "\ud800" * 200
    assert sessions.record(surrogate, "a", 0.0)
    assert sessions.owner(surrogate, 0.0) == "a"
    requests.spend(LONG)
    assert len(requests) == 0


names = st.sampled_from("abcd")
owners = st.sampled_from(["x", "y", "z"])
steps = st.lists(
    st.tuples(
        st.sampled_from(["record", "owner", "spend", "forget", "expire"]), names, owners, st.floats(0, 90)
    ),
    max_size=60,
)


@given(steps, st.integers(1, 3))
def test_requests_against_a_model(moves: list[tuple[str, str, str, float]], most: int) -> None:
    table: RequestTable[str] = RequestTable(most)
    model: list[tuple[str, str, float]] = []  # oldest first: id, owner, expiry
    now = 0.0
    for what, name, owner, seconds in moves:
        now += seconds
        found = next((entry for entry in model if entry[0] == name and now < entry[2]), None)
        match what:
            case "record":
                free = found is None or found[1] == owner
                assert table.record(name, owner, now) is free
                if free:
                    model = [entry for entry in model if entry[0] != name]
                    model.append((name, owner, now + REQUEST_TTL))
                    model = model[-most:]
            case "owner":
                assert table.owner(name, now) == (found and found[1])
            case "spend":
                table.spend(name)
                model = [entry for entry in model if entry[0] != name]
            case "forget":
                table.forget_owner(owner)
                model = [entry for entry in model if entry[1] != owner]
            case _:
                table.expire(now)
                model = [entry for entry in model if now < entry[2]]
        assert len(table) == len(model) <= most


@given(steps, st.integers(1, 3))
def test_sessions_against_a_model(moves: list[tuple[str, str, str, float]], most: int) -> None:
    table: SessionTable[str] = SessionTable(most)
    model: dict[str, tuple[str, float]] = {}  # id -> owner, last use
    now = 0.0
    for what, name, owner, tens in moves:
        now += tens * 25
        found = model.get(name)
        if found is not None and now >= found[1] + SESSION_TTL:
            found = None
        match what:
            case "record":
                free = found is None or found[0] == owner
                assert table.record(name, owner, now) is free
                if free:
                    model.pop(name, None)
                    if len(model) >= most:
                        del model[min(model, key=lambda key: model[key][1])]
                    model[name] = (owner, now)
            case "owner":
                assert table.owner(name, now) == (found and found[0])
                if found is not None:
                    model[name] = (found[0], now)
            case "forget":
                table.forget_owner(owner)
                model = {key: value for key, value in model.items() if value[0] != owner}
            case "expire":
                table.expire(now)
                model = {key: value for key, value in model.items() if now < value[1] + SESSION_TTL}
            case _:
                continue
        assert len(table) == len(model) <= most
