"""The interface of the log: every module below the service logs through it."""

from __future__ import annotations

from typing import Protocol

from viewport_relay.reasons import Level, Reason


class EventSink(Protocol):
    """A log that takes events. `EventLog` implements it; tests pass a list that has this method."""

    def event(
        self,
        event: str,
        *,
        level: Level | None = None,
        reason: Reason | None = None,
        message: str | None = None,
        connection_id: str | None = None,
        **details: object,
    ) -> None:
        """Log one event. `level` and `message` default to the reason's, else to the event's (`events.py`) and nothing.

        `details` are JSON values and never hold a token, a payload or a secret.
        """
