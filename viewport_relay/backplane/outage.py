"""Whether the backplane works: told once when it stops to, and once when it does again."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason


class Outage:
    """Collects what the parts of a carrier say. A part that has said nothing yet is neither up nor down.

    `on_recovery` is called when the last part that was down is up again.
    """

    def __init__(
        self, clock: IReactorTime, log: EventSink, parts: tuple[str, ...], on_recovery: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._log = log
        self._on_recovery = on_recovery
        self._works: dict[str, bool | None] = dict.fromkeys(parts)
        self._since: float | None = None
        self._why = ""

    @property
    def is_up(self) -> bool:
        """Whether every part works."""
        return all(self._works.values())

    @property
    def is_down(self) -> bool:
        """Whether some part is known not to work; false while all of them are still connecting."""
        return self._since is not None

    @property
    def why(self) -> str:
        """What was said first in the present outage."""
        return self._why

    def down(self, part: str, why: str) -> None:
        """This part does not work."""
        self._works[part] = False
        if self._since is None:
            self._since = self._clock.seconds()
            self._why = why
            self._log.event(
                "backplane_unreachable", reason=Reason.BACKPLANE_UNREACHABLE, part=part, detail=why
            )

    def up(self, part: str) -> None:
        """This part works."""
        if self._works[part]:
            return
        self._works[part] = True
        if self._since is None or False in self._works.values():
            return
        seconds = round(self._clock.seconds() - self._since, 3)
        self._since, self._why = None, ""
        self._log.event("backplane_recovered", message=f"after {seconds} s", seconds=seconds)
        self._on_recovery()
