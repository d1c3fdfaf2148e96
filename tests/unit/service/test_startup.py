"""The entry `relay_started`: addresses and settings as an operator writes them."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from viewport_relay.config import load
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.startup import log_started

BASE = {
    "SERVER_URL": "http://127.0.0.1:9",
    "RELAY_ADMIN_TOKEN": "correct-horse-battery-staple-17",
    "RELAY_INTERNAL_KEY": "another-horse-battery-staple-18",
}


def started(environ: dict[str, str]) -> dict[str, Any]:
    """The line on standard output."""
    config, stream = load(environ), io.StringIO()
    port = None if config.listen_endpoint else config.listen_port
    log_started(EventLog(stream, max_entries=9), config, port, tls=False)
    line: dict[str, Any] = json.loads(stream.getvalue())
    return line


@pytest.mark.parametrize(
    ("given", "peers", "admin"),
    [
        ({}, "127.0.0.1:7781", "with the peers"),
        ({"RELAY_LISTEN_HOST": "::1", "RELAY_ADMIN_LISTEN": "7782"}, "[::1]:7781", "http on 127.0.0.1:7782"),
        ({"RELAY_ADMIN_LISTEN": "[::1]:7782"}, "127.0.0.1:7781", "http on [::1]:7782"),
        ({"RELAY_LISTEN_ENDPOINT": "unix:/run/relay.sock"}, "unix:/run/relay.sock", "with the peers"),
    ],
)
def test_addresses_are_written_as_operators_write_them(given: dict[str, str], peers: str, admin: str) -> None:
    entry = started({**BASE, **given})
    assert entry["message"] == f"listening on {peers}"
    assert entry["details"]["listens"] == {"peers": f"ws on {peers}", "admin": admin}


def test_settings_that_differ_are_written_as_they_were_set() -> None:
    given = {
        "RELAY_TRUSTED_PROXIES": "10.0.0.0/8,unix:",
        "RELAY_ADMIN_LISTEN": "127.0.0.1:7782",
        "RELAY_TOKEN_ISSUER": "my-server",
        "RELAY_TOKEN_AUDIENCE": "my-relay",
        "RELAY_TOKEN_EXPIRY": "close",
    }
    entry = started({**BASE, **given})
    assert entry["details"]["changed"] == {"SERVER_URL": BASE["SERVER_URL"], **given}
