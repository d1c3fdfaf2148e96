"""The token's places in an upgrade, and the sub-protocol that the 101 selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.admission.token import TokenSource, select_subprotocol, token_from, why_no_token
from viewport_relay.config import Mode

T, U, V = "token-of-header", "token-of-protocol", "token-of-query"
LINK = "viewport.noise-link.v1"

PLACES: list[tuple[list[str], list[str], str | None, Mode, tuple[str, str] | None]] = [
    ([f"Bearer {T}"], [], None, "prod", (T, "header")),
    ([f"bearer {T}"], [], None, "prod", (T, "header")),
    ([f"BEARER   {T}  "], [], None, "prod", (T, "header")),
    ([f"Bearer {T}"], ["auth." + U], V, "dev", (T, "header")),
    (["Basic dXNlcjpwYXNzd29yZA==", f"Bearer {T}"], [], None, "prod", (T, "header")),
    (["Bearer short", f"Bearer {T}"], [], None, "prod", (T, "header")),
    (["Bearer short"], ["auth." + U], None, "prod", (U, "subprotocol")),
    (["Bearer"], ["auth." + U], None, "prod", (U, "subprotocol")),
    (["Bearer " + "x" * 4097], ["auth." + U], None, "prod", (U, "subprotocol")),
    ([], ["chat", "auth.short", "auth." + U], None, "prod", (U, "subprotocol")),
    ([], ["auth." + "x" * 10], None, "prod", ("x" * 10, "subprotocol")),
    ([], ["auth." + "x" * 4096], None, "prod", ("x" * 4096, "subprotocol")),
    ([], [], V, "dev", (V, "query")),
    ([], ["auth.short"], V, "dev", (V, "query")),
    ([], [], V, "staging", None),
    ([], [], V, "prod", None),
    ([], [], "short", "dev", None),
    ([], ["auth." + "x" * 9], None, "dev", None),
    ([], ["auth." + "x" * 4097], None, "dev", None),
    ([], ["Auth." + U, "token." + U], None, "dev", None),
    ([f"Bearer{T}", T, f"Token {T}", ""], [], None, "dev", None),
    ([], [], None, "dev", None),
]


@pytest.mark.parametrize("headers,protocols,query,mode,expected", PLACES)
def test_where_the_token_is_read_from(
    headers: list[str], protocols: list[str], query: str | None, mode: Mode, expected: tuple[str, str] | None
) -> None:
    found = token_from(headers, protocols, query, mode)
    assert (found and (found.token, found.via)) == expected


@pytest.mark.parametrize(
    "headers,protocols,query,mode,words",
    [
        ([], [], None, "prod", "the request carries none"),
        (["Basic dXNlcjpw"], [], None, "prod", "the Authorization header names no Bearer"),
        (
            ["Bearer " + "x" * 4097],
            [],
            None,
            "prod",
            "the header's has 4097 characters; a token has 10 to 4096",
        ),
        (
            ["Bearer"],
            ["auth.short"],
            None,
            "prod",
            "the header's has 0 characters, the subprotocol's has 5 characters; ",
        ),
        ([], ["auth.x"] * 99, None, "prod", ", ".join(["the subprotocol's has 1 characters"] * 3) + "; "),
        ([], [], V, "prod", "?token= does not count in RELAY_MODE=prod"),
        ([], [], "short", "dev", "the query's has 5 characters; "),
    ],
)
def test_what_stands_where_a_token_should_be(
    headers: list[str], protocols: list[str], query: str | None, mode: Mode, words: str
) -> None:
    assert token_from(headers, protocols, query, mode) is None
    assert why_no_token(headers, protocols, query, mode).startswith(words)


def test_repr_has_no_token() -> None:
    assert T not in repr(TokenSource(T, "header"))


@given(st.lists(st.text(max_size=30)), st.lists(st.text(max_size=30)), st.none() | st.text(max_size=30))
def test_any_headers(headers: list[str], protocols: list[str], query: str | None) -> None:
    for mode in ("dev", "staging", "prod"):
        found = token_from(headers, protocols, query, mode)  # type: ignore[arg-type]
        assert found is None or 10 <= len(found.token) <= 4096
        assert found is None or found.via != "query" or mode == "dev"


@pytest.mark.parametrize(
    "offered,link,selected",
    [
        ([], True, None),
        (["auth.T"], True, "auth.T"),
        (["auth.T", "auth.U"], True, "auth.T"),
        (["chat", "auth.T"], True, "chat"),
        (["auth.T", "a", "b"], True, "a"),
        (["a", "auth.T", LINK], True, LINK),
        (["a", "auth.T", LINK], False, "a"),
        ([LINK, "auth.T"], True, LINK),
        ([LINK, "auth.T"], False, "auth.T"),
        ([LINK], False, None),
    ],
)
def test_selected_sub_protocol(offered: list[str], link: bool, selected: str | None) -> None:
    assert select_subprotocol(offered, link_enabled=link) == selected


@given(st.lists(st.sampled_from(["a", "b", LINK, "auth.T"])), st.booleans())
def test_the_selected_sub_protocol_was_offered(offered: list[str], link: bool) -> None:
    selected = select_subprotocol(offered, link_enabled=link)
    assert selected in offered or (
        selected is None and (not offered or (set(offered) == {LINK} and not link))
    )
