"""docs/reference/protocol.md: its examples against a real relay, its tables against the relay's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay
from tests.integration.documented import ROLES, Exchange, check_http, fits
from tests.pages import Block, blocks, section, text_of
from tools import arrows
from viewport_relay.protocol import status
from viewport_relay.reasons import Reason

PAGE = "docs/reference/protocol.md"


@pytest.fixture(scope="module")
def relay(platform: FaultyPlatform) -> Iterator[Relay]:
    with Relay(platform.environment() | {"RELAY_PONG_TIMEOUT_MS": "1000"}) as started:
        yield started.wait()
        assert started.stop() == 0
        assert started.errors() == []


def numbered(block: Block) -> str:
    """The block with its own workspace."""
    return block.text.replace("acme", f"acme-{block.line}")


@pytest.mark.parametrize("block", blocks(PAGE, "exchange"), ids=lambda block: block.id)
def test_a_documented_exchange_happens_as_written(
    block: Block, relay: Relay, platform: FaultyPlatform
) -> None:
    Exchange(relay, platform).run(numbered(block))


@pytest.mark.parametrize("block", blocks(PAGE, "http"), ids=lambda block: block.id)
def test_a_documented_request_is_answered_as_written(
    block: Block, relay: Relay, platform: FaultyPlatform
) -> None:
    text = numbered(block)
    workspace = f"acme-{block.line}"
    token = platform.token("client", workspace, "laptop")
    check_http(text.replace("TOKEN\n", f"{token}\n"), relay.port)


def test_an_example_that_is_wrong_fails(relay: Relay, platform: FaultyPlatform) -> None:
    for wrong in (
        'client joins client w t {"scope":"runtime"}\nclient sends [1]\nclient receives nothing\n',
        'client joins client w t {"scope":"runtime"}\nclient sends [1]\n',
        'client joins client w t {"scope":"runtime"}\nclient sends [1]\nclient is closed 4008 frame\n',
        'client joins client w t {"scope":"runtime"}\nclient sends [1]\nclient receives {"type":"relay_status"}\n',
    ):
        with pytest.raises(AssertionError):
            Exchange(relay, platform).run(wrong)
    with pytest.raises(AssertionError):
        check_http(
            "GET /ws HTTP/1.1\nHost: a\n\nHTTP/1.1 426 Upgrade Required\nX-Relay-Reason: NO\n", relay.port
        )


@pytest.mark.parametrize(
    ("expected", "got", "fit"),
    [
        ("…", {"a": 1}, True), ({"a": "…"}, {"a": 1}, True), ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False), ({"a": 1, "…": 0}, {"a": 1, "b": 2}, True), ("a…c", "abc", True),
        ([1, "…"], [1, 2], True), ([1], [1, 2], False), ({"a": 1}, {}, False),
    ],
)  # fmt: skip
def test_what_is_shortened_in_an_example_fits(expected: object, got: object, fit: bool) -> None:
    assert fits(expected, got) is fit


# -- tables ------------------------------------------------------------------------------------------------------


def test_every_close_code_and_text_is_documented() -> None:
    codes = section(PAGE, "## 9. Close codes")
    for reason in Reason:
        if reason.entry.close:
            assert f"| {reason.entry.close} |" in codes, reason
            assert f"`{reason.entry.close_text}`" in text_of(PAGE), reason


def test_every_refusal_of_an_upgrade_is_documented() -> None:
    page = text_of(PAGE)
    local = {"JWT_"}  # the local check has one rule for each; the list of reasons has the codes
    operator = {"ADMIN_", "HTTP_", "RELAY_SHUTTING_DOWN", "UPGRADE_MALFORMED"}
    for reason in Reason:
        if reason.entry.status and not reason.code.startswith(tuple(local | operator)):
            assert f"`{reason.code}`" in page, reason


def test_the_status_frames_are_the_relays() -> None:
    rows = dict(
        re.findall(
            r"^\| `([A-Z_]+)` \| ([^|]+) \|", section(PAGE, "## 5. The relay's own frames"), re.MULTILINE
        )
    )
    frames = [
        status.daemon_unavailable("w", "t", None), status.runtime_target_required("w"), status.invalid_frame("w"),
        status.session_events_scope_only("w"), status.relay_redirect("w", "wss://a"), status.rate_limited("w", 1),
    ]  # fmt: skip
    assert len(rows) == len(frames)
    for frame in frames:
        (code, message) = re.findall(r'"code":"(\w+)","message":"([^"]+)"', frame)[0]
        assert rows[code].strip() == message


def test_every_frame_type_of_the_decoder_is_in_the_table() -> None:
    rooms = [path for name, path in arrows.modules().items() if arrows.room(name) == "protocol"]
    source = "".join(path.read_text("utf-8") for path in rooms if path.stem != "status")
    table = section(PAGE, "## 4. Frames")
    types = set(re.findall(r'"((?:relay_|viewport\.)[a-z_./]+(?:v1)?)"', source))
    assert len(types) >= 11
    assert sorted(name for name in types if name not in table) == []


def test_every_role_is_documented() -> None:
    for role in ROLES:
        assert f"`{role}`" in text_of(PAGE)
