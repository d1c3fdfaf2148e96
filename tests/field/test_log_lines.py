"""Log lines as log shippers read them: Docker, containerd, journald, Promtail, Fluent Bit, Vector, Elasticsearch.

The docstring of each test names the programs that fail otherwise.
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
from tools.logsample import sample_line
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason


@pytest.fixture(scope="module")
def lines() -> Iterator[list[str]]:
    """All lines of a relay from start to end, with refusals and a reload, and one line of every reason."""
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
    """Of two equal names Fluent Bit and Elasticsearch use the first, Loki the last; Vector refuses the line."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), names
        return dict(pairs)

    assert len(lines) > len(Reason) + 5
    for line in lines:
        entry = json.loads(line, object_pairs_hook=once)
        assert list(entry)[:3] == ["ts", "level", "event"] and isinstance(entry["details"], dict)


def test_times_are_rfc_3339_with_milliseconds_and_z(lines: list[str]) -> None:
    """Fluent Bit's `%Y-%m-%dT%H:%M:%S.%LZ` needs a fraction; Promtail's RFC3339Nano accepts one."""
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(line)["ts"])


def test_levels_are_those_of_collectors(lines: list[str]) -> None:
    """Grafana colours by `level`, Datadog by `level` or `status`; both support info, warn and error."""
    assert {json.loads(line)["level"] for line in lines} <= {"info", "warn", "error"}


def test_lines_are_printable_ascii(lines: list[str]) -> None:
    """U+2028 and NUL split lines in some readers; escape sequences control terminals."""
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_a_member_has_one_type_in_all_lines(lines: list[str]) -> None:
    """Elasticsearch and OpenSearch map a field by its first line, and refuse later lines with another type."""
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
def test_lines_are_below_the_limit_of_containers(name: str) -> None:
    """Docker and containerd split lines at 16 KiB, line end included; half a JSON object is not valid JSON."""
    stream = io.StringIO()
    log = EventLog(stream, max_entries=9, relay_id="r" * 128)
    log.event(
        "drop", reason=Reason.INVALID_FRAME, connection_id="c" * 500, workspaceId="w" * 500, **HOSTILE[name]
    )
    (line,) = stream.getvalue().splitlines(keepends=True)
    assert len(line.encode()) <= 16_384
    entry = json.loads(line)
    assert entry["reason"] == "INVALID_FRAME" and entry["relayId"] == "r" * 128
