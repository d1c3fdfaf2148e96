"""The entries that a log keeps, as a test reads them."""

from __future__ import annotations

import json
from typing import Any

from viewport_relay.observe.logs import EventLog


def entries_of(log: EventLog) -> list[dict[str, Any]]:
    """The entries as JSON objects, oldest first."""
    return [json.loads(record.line) for record in log.records()]
