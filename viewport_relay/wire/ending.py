"""The end of a connection as a value: who ended it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from viewport_relay.reasons import Reason


@frozen
class Ending:
    """Why a connection ends. `reason` is the relay's; None: the peer ended it, and `how` says how."""

    reason: Reason | None
    how: str = ""
    code: int | None = None  # of the peer's Close frame
    detail: str = ""
    logged_as: Reason | None = None
    details: Mapping[str, Any] = field(factory=dict)

    @property
    def payload(self) -> bytes:
        """The payload of the relay's Close frame (RFC 6455 section 5.5.1): code and text of the reason."""
        assert self.reason is not None
        entry = self.reason.entry
        return entry.close.to_bytes(2, "big") + entry.close_text.encode("ascii")
