"""The backplane of one relay alone: no daemon is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed

from viewport_relay.backplane.interface import Parcel, Publisher, Receiver, TargetKey, Whereabouts


class Single:
    """The backplane of RELAY_BACKPLANE_MODE=single."""

    redirects: Final = False

    def seat_changed(
        self, target: TargetKey, holder: object | None, machine_id: str | None, generation: int | None
    ) -> None:
        """A no-op: there are no others to tell."""

    def peers_changed(self, number: int) -> None:
        """A no-op, as `seat_changed`."""

    def known(self, target: TargetKey) -> None:
        return None

    def resolve(self, target: TargetKey) -> Deferred[Whereabouts | None]:
        return succeed(None)

    def publish(self, parcel: Parcel, publisher: Publisher | None = None) -> None:
        raise AssertionError("there is no other relay to publish to")

    def start(self, receiver: Receiver) -> None:
        """A no-op: nothing will be received."""

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def describe(self) -> Mapping[str, Any]:
        return {"mode": "single"}
