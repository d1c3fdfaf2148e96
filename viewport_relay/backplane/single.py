"""One relay alone: there is nobody else to ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed

from viewport_relay.backplane.interface import Feeder, Parcel, Receiver, TargetKey, Whereabouts


class Single:
    """The backplane of RELAY_BACKPLANE_MODE=single."""

    redirects: Final = False

    def seat_changed(self, target: TargetKey, holder: object | None, machine_id: str | None) -> None:
        """Nobody wants to know."""

    def peers_changed(self, number: int) -> None:
        """Nobody wants to know."""

    def resolve(self, target: TargetKey) -> Deferred[Whereabouts | None]:
        return succeed(None)

    def publish(self, parcel: Parcel, failed: Callable[[], None], feeder: Feeder | None = None) -> None:
        failed()

    def start(self, receiver: Receiver) -> None:
        """Nothing."""

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def describe(self) -> Mapping[str, Any]:
        return {"mode": "single"}
