"""The outage of a backplane: logged once when it begins, and once when it is over."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason


class Outage:
    """The state of a carrier: each of its parts is up, down or still connecting.

    A part counts from its first report on, an expected one (`expect`) from the beginning.
    `on_recovery` is called when the last part that was down is up again. One outage is one log line for each reason.
    """

    def __init__(
        self,
        clock: IReactorTime,
        log: EventSink,
        counters: Counters,
        on_recovery: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._log = log
        self._counters = counters
        self._on_recovery = on_recovery
        self._works: dict[str, bool | None] = {}
        self._since: float | None = None
        self._logged: set[Reason] = set()
        #: the latest failure of the present outage
        self.failed = CarrierFailed("")

    def expect(self, part: str) -> None:
        """Note that a part is still connecting."""
        self._works[part] = None

    @property
    def is_up(self) -> bool:
        """Whether every part works."""
        return all(self._works.values())

    @property
    def is_down(self) -> bool:
        """Whether some part is known not to work; false while all of them are still connecting."""
        return self._since is not None

    def down(self, part: str, failed: CarrierFailed) -> None:
        """Report that a part does not work."""
        self._works[part] = False
        self.failed = failed
        refused = failed.reason is Reason.BACKPLANE_REFUSED
        if refused:
            self._counters.backplane_refused += 1
        if self._since is None:
            self._since = self._clock.seconds()
        if failed.reason in self._logged:
            return
        self._logged.add(failed.reason)
        if refused:
            self._log.event("backplane_refused", reason=failed.reason, part=part, detail=failed.why)
        else:
            self._log.event("backplane_unreachable", reason=failed.reason, part=part, detail=failed.why)

    def up(self, part: str) -> None:
        """Report that a part works."""
        if self._works.get(part):
            return
        self._works[part] = True
        if self._since is None or False in self._works.values():
            return
        seconds = round(self._clock.seconds() - self._since, 3)
        self._since = None
        self._logged.clear()
        self._log.event(
            "backplane_recovered", message=f"the backplane answers again after {seconds} s", seconds=seconds
        )
        self._on_recovery()
