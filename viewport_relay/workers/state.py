"""All workers as one relay, for the admin endpoints (`admin.state.StateSource`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Request

from viewport_relay.admin.reply import put_late
from viewport_relay.admin.site import AdminResource
from viewport_relay.reasons import Reason
from viewport_relay.routing.views import Selection, TargetView
from viewport_relay.workers.crew import Crew
from viewport_relay.workers.messages import Flush, Picture


@frozen(eq=False)
class CrewState:
    """Sums of the last reports of all workers."""

    _crew: Crew
    _stopping: Callable[[], bool]

    def pictures(self) -> list[Picture]:
        """The last `Picture` of each worker that has sent one."""
        return [worker.picture for worker in self._crew.workers if worker.picture is not None]

    def targets(self) -> Sequence[TargetView]:
        return [target for picture in self.pictures() for target in picture.targets]

    def connections(self) -> Mapping[str, int]:
        total: Counter[str] = Counter({"workspace-daemon": 0, "client": 0, "worker": 0})
        for picture in self.pictures():
            for role, number in picture.connections.items():
                total[role] += number
        return total

    def disconnect(self, selection: Selection) -> Deferred[int]:
        return self._crew.disconnect(selection)

    def flush_caches(self) -> None:
        # The packet channel keeps order: the flush arrives before connections that are passed later.
        self._crew.send(Flush())

    def readiness(self) -> tuple[bool, str]:
        """Ready when every running worker is. A worker that is being replaced is named; its peers wait for it."""
        if self._stopping():
            return False, Reason.RELAY_SHUTTING_DOWN.code
        workers = self._crew.workers
        answering = [worker.picture for worker in workers if worker.picture is not None and not worker.silent]
        for picture in answering:
            if not picture.ready:
                return False, picture.why
        silent = sum(worker.silent for worker in workers)
        missing = len(workers) - len(answering) - silent
        if not answering:
            return False, "no worker answers" if silent else "no worker has started yet"
        if silent:
            return True, f"{silent} of {len(workers)} workers do not answer"
        if missing:
            return True, f"{missing} of {len(workers)} workers start"
        return True, next((picture.why for picture in answering if picture.why), "")

    def jwks_age(self) -> float | None:
        ages = [picture.jwks_age for picture in self.pictures()]
        known = [age for age in ages if age is not None]
        return max(known) if known and len(known) == len(ages) else None

    def clock_offset(self) -> float | None:
        known = [picture.clock_offset for picture in self.pictures() if picture.clock_offset is not None]
        return known[0] if known else None

    def platform_age(self) -> float | None:
        known = [picture.platform_age for picture in self.pictures() if picture.platform_age is not None]
        return min(known, default=None)

    def processes(self) -> Mapping[str, int]:
        found = {"parent": os.getpid()}
        for number, worker in enumerate(self._crew.workers):
            if worker.pid is not None:
                found[f"worker-{number}"] = worker.pid
        return found

    def backplane(self) -> Mapping[str, Any]:
        told = [picture.backplane for picture in self.pictures()]
        down = [one for one in told if one.get("up") is False]
        found = dict(next(iter(down or told), {"mode": "single"}))
        relays = {relay["relayId"]: relay for one in told for relay in one.get("relays", ())}
        if relays:
            found["relays"] = [relays[name] for name in sorted(relays)]
        return found


class RefreshingAdminResource(Resource):
    """The admin resource, after a poll of the workers when the request is an operator's."""

    isLeaf = True

    def __init__(self, resource: AdminResource, refresh: Callable[[], Deferred[None]]) -> None:
        Resource.__init__(self)
        self._resource = resource
        self._refresh = refresh

    def render(self, request: Request) -> bytes | int:
        if request.method not in (b"GET", b"HEAD") or not self._resource.is_operators(request):
            return self._resource.render(request)
        return put_late(request, self._refresh(), lambda _: self._resource.render(request))
