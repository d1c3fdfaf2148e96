"""The end of a connection as a value: who ended it, why, and what the Close frame says."""

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
    code: int | None = None  # of the Close frame, either side's
    text: str = ""
    detail: str = ""
    logged_as: Reason | None = None
    details: Mapping[str, Any] = field(factory=dict)

    @property
    def payload(self) -> bytes:
        """The payload of the relay's Close frame (RFC 6455 section 5.5.1): a code, and at most 123 bytes of text."""
        return (self.code or 0).to_bytes(2, "big") + self.text.encode()[:123]
