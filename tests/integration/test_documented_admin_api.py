"""The examples of docs/reference/admin-api.md, in order, against a real relay with one client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drill.peer import Peer
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ADMIN, Relay, until
from tests.integration.documented import check_http
from tests.pages import Block, blocks, text_of

PAGE = "docs/reference/admin-api.md"


@pytest.fixture(scope="module")
def relay(platform: FaultyPlatform) -> Iterator[Relay]:
    with Relay(platform.environment() | {"RELAY_HEALTH_VERBOSE": "0"}) as started:
        yield started.wait()
        assert started.stop() == 0
        assert started.errors() == []


@pytest.fixture
def client(relay: Relay, platform: FaultyPlatform) -> Iterator[Peer]:
    peer = Peer.client(relay, platform, "acme", "laptop")
    yield peer
    peer.close()
    until(lambda: all(target["clientCount"] == 0 for target in relay.state()), 10, "the leave")


@pytest.mark.parametrize("block", blocks(PAGE, "http"), ids=lambda block: block.id)
def test_a_documented_request_is_answered_as_written(block: Block, relay: Relay, client: Peer) -> None:
    check_http(block.text.replace("TOKEN", ADMIN), relay.port)


def test_every_path_of_the_table_has_an_example() -> None:
    shown = {tuple(block.text.split()[:2]) for block in blocks(PAGE, "http")}
    for row in text_of(PAGE).partition("\n## ")[0].splitlines():
        if row.startswith("| `/"):
            path, method = (cell.strip(" `") for cell in row.split("|")[1:3])
            if path not in {"/admin/", "/.well-known/viewport-relay.json"}:  # a page; in protocol.md
                assert any(m == method and p.partition("?")[0] == path for m, p in shown), row
