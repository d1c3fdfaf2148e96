"""Lines of the log as log shippers read them: Docker, containerd, journald, Promtail, Fluent Bit, Vector, Elasticsearch.

Each test says which of them breaks on what.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.drill.peer import Peer, Refused, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import running
from viewport_relay.cli.logsample import sample_line
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason


@pytest.fixture(scope="module")
def lines() -> Iterator[list[str]]:
    """What a relay writes from its start to its end, refusals and reload included, and a line of every reason."""
    with FaultyPlatform() as platform, running(platform.environment()) as relay:
        daemon = Peer.daemon(relay, platform, "ws-1", "t-1")
        client = Peer.client(relay, platform, "ws-1", "t-1")
        client.converse(daemon)
        client.send(e2ee(client.session))
        daemon.text()
        with pytest.raises(Refused):
            Peer.client(relay, platform, "ws-1", "t-1", token="not a token at all")
        client.send("[]")
        client.text()
        relay.stop()
        yield [*relay.output().splitlines(), *map(sample_line, Reason)]


def test_each_line_is_one_json_object_without_a_name_twice(lines: list[str]) -> None:
    """Fluent Bit and Elasticsearch take the first of two equal names, Loki the last, Vector refuses the line."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), names
        return dict(pairs)

    assert len(lines) > len(Reason) + 5
    for line in lines:
        entry = json.loads(line, object_pairs_hook=once)
        assert list(entry)[:3] == ["ts", "level", "event"] and isinstance(entry["details"], dict)


def test_times_are_rfc_3339_with_milliseconds_and_z(lines: list[str]) -> None:
    """Fluent Bit's `%Y-%m-%dT%H:%M:%S.%LZ` and Promtail's RFC3339Nano; a line without a fraction would not parse in the first."""
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(line)["ts"])


def test_levels_are_words_that_collectors_know(lines: list[str]) -> None:
    """Grafana colours by `level`, Datadog by `level` or `status`: info, warn and error are known to both."""
    assert {json.loads(line)["level"] for line in lines} <= {"info", "warn", "error"}


def test_lines_are_printable_ascii(lines: list[str]) -> None:
    """U+2028, NUL and terminal escapes split lines for some readers and drive the terminals of others."""
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_a_member_has_one_type_in_all_lines(lines: list[str]) -> None:
    """Elasticsearch and OpenSearch map a field by its first line, and refuse every later line of another type."""
    kinds: dict[str, set[str]] = defaultdict(set)

    def note(name: str, value: Any) -> None:
        if isinstance(value, dict):
            kinds[name].add("object")
            for inner, more in value.items():
                note(f"{name}.{inner}", more)
        elif isinstance(value, list):
            for element in value:
                note(name, element)
        elif value is not None:
            kinds[name].add(
                "boolean"
                if isinstance(value, bool)
                else "number"
                if isinstance(value, int | float)
                else "text"
            )

    for line in lines:
        note("", json.loads(line))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


HOSTILE = {
    "a long message": {"message": "m" * 100_000},
    "a long message of escapes": {"message": "\u20ac\x1b" * 50_000},
    "a long detail": {"detail": "\u20ac" * 50_000},
    "many details": {f"d{n}": "x" * 500 for n in range(500)},
    "a deep detail": {"detail": {"a": ["b" * 3000] * 40}},
    "names of the entry in the details": {"ts": "x" * 5000, "event_": 1, "reason_": "r", "relayId": "other"},
    "quotation marks, which double": {"detail": '"' * 20_000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_fits_into_what_containers_keep_whole(name: str) -> None:
    """Docker and containerd split lines at 16 KiB, the line end included; half a JSON object is no JSON."""
    stream = io.StringIO()
    log = EventLog(stream, max_entries=9, relay_id="r" * 128)
    log.event(
        "drop", reason=Reason.INVALID_FRAME, connection_id="c" * 500, workspaceId="w" * 500, **HOSTILE[name]
    )
    (line,) = stream.getvalue().splitlines(keepends=True)
    assert len(line.encode()) <= 16_384
    entry = json.loads(line)
    assert entry["reason"] == "INVALID_FRAME" and entry["relayId"] == "r" * 128
