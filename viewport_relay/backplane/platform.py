"""The backplane over the platform's HTTP endpoints (wire protocol, section 12, Server mode).

    relay → platform   POST /api/runtime/internal/relay/presence/upsert, presence/resolve, bus/publish, bus/pull
    relay ← platform   {"ok":true, …}

All with the header x-relay-internal-key. In an outage the relay repeats a question of its own that changes nothing, so
that the outage ends by itself: its next pull, or without the bus the presence of the target it asked for last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, HttpFailure, TooLarge
from viewport_relay.backplane.interface import BusFrame, CarrierFailed, Parcel, Place, SeatClaim, TargetKey
from viewport_relay.backplane.outage import Outage
from viewport_relay.config import Config
from viewport_relay.protocol.json import as_integer
from viewport_relay.reasons import Reason

#: Parts that are reported to `Outage`: all questions together, and bus/pull, which can be refused alone.
PLATFORM: Final = "platform"
PULL: Final = "bus/pull"
#: Longest that the platform waits for frames in one pull, milliseconds.
MOST_WAIT_MS: Final = 2000
#: Seconds between two questions while the platform does not answer: the first and the longest.
_RETRY_FIRST: Final = 0.25
_RETRY_MOST: Final = 5.0
#: Statuses that say nothing about the question: the next one would fail too.
_REFUSES_ALL: Final = frozenset({401, 403, 404, 429})
_LONGEST_WORD: Final = 80
#: Members of a presence entry that the platform takes.
_REPORTED: Final = ("runtimeTargetId", "machineId", "relayId", "relayWsBaseUrl")

_Json = Mapping[str, object]


class PlatformCarrier:
    """Presence and bus at the platform. Frames of one target leave one after the other, targets side by side."""

    batch: Final = 1
    publishes: Final = 16
    calls: Final = 8

    def __init__(self, clock: IReactorTime, config: Config, http: HttpClient, outage: Outage) -> None:
        self._clock = clock
        self._http = http
        self._outage = outage
        self._relay_id = config.relay_id
        self._is_own = config.is_own
        self._interval = config.bus_poll_interval_ms / 1000
        self._limit_frames = config.bus_pull_limit
        self._wait_ms = min(config.bus_pull_wait_ms, MOST_WAIT_MS)
        base = f"{config.server_url}/api/runtime/internal/relay/"
        headers = {"content-type": "application/json", "x-relay-internal-key": config.internal_key or ""}
        limit, most = config.internal_api_timeout_ms / 1000, config.internal_api_max_response_bytes

        def call(path: str, limit: float = limit, most: int = most) -> Call:
            return Call.make("POST", base + path, headers, limit=limit, max_bytes=most)

        self._upsert = call("presence/upsert")
        self._resolve = call("presence/resolve")
        # Safe to repeat: a relay that has got the first frame refuses the second as a replay.
        self._publish = call("bus/publish")
        self._probe_pull = call("bus/pull")
        self._pull = call("bus/pull", self._wait_ms / 1000 + 2.0)
        # A frame of the greatest length, all of whose characters JSON writes as two, and what is around it.
        largest = 2 * config.frame_max_bytes + 8192
        self._pull_one = call("bus/pull", self._wait_ms / 1000 + 2.0, max(most, largest))
        self._platform = f"the platform at {self._pull.target.host_header}"
        self._since = 0
        self._next_pull = 0.0
        self._peers = 0
        self._pull_waits: Deferred[None] | None = None
        self._bus = config.bus_enabled
        self._asked_for: TargetKey | None = None
        self._probing: Deferred[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """A no-op: the first call makes the first request."""

    async def stop(self) -> None:
        self._stopped = True
        probing = self._probing
        if probing is not None:
            probing.cancel()
            await probing

    def peers_changed(self, number: int) -> None:
        self._peers = number
        self._wake()

    def _wake(self) -> None:
        """Let a pull that waits look again whether it may go on."""
        waits, self._pull_waits = self._pull_waits, None
        if waits is not None:
            waits.callback(None)

    def series(self, parcel: Parcel) -> object:
        return parcel.target

    # -- presence ------------------------------------------------------------------------------------------------

    async def take(
        self, target: TargetKey, entry: Mapping[str, object], claim: SeatClaim, *, new: bool
    ) -> str | None:
        there = None if new else await self.resolve(target)
        if there is not None and there.get("daemonConnected") is True:
            other = there.get("relayId")
            if isinstance(other, str) and other and not self._is_own(other):
                return other
        await self._report(target, entry, here=True)
        return None

    async def moved(self) -> Sequence[TargetKey]:
        return ()  # the platform does not tell: the next refresh finds out

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self._report(target, entry, here=False)

    async def _report(self, target: TargetKey, entry: Mapping[str, object], *, here: bool) -> None:
        self._asked_for = target
        told = {name: entry[name] for name in _REPORTED if name in entry}
        await self._ask(self._upsert, {"workspaceId": target[0], **told, "daemonConnected": here})

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        self._asked_for = target
        return await self._ask(self._resolve, {"workspaceId": target[0], "runtimeTargetId": target[1]})

    # -- bus ---------------------------------------------------------------------------------------------------------

    async def publish(self, relay_id: str, frames: Sequence[BusFrame]) -> None:
        for frame in frames:
            await self._ask(self._publish, bytes(frame))

    async def take_back(
        self, relay_id: str, marks: Sequence[bytes], place: Place
    ) -> tuple[Sequence[bytes], Place | None]:
        return (), None  # the platform does not tell what was read

    async def pull(self) -> Sequence[bytes | Mapping[str, object]]:
        while not self._peers or self._probing is not None:
            self._pull_waits = Deferred()
            await self._pull_waits
        wait = self._next_pull - self._clock.seconds()
        if wait > 0:
            await deferLater(self._clock, wait)
        self._next_pull = self._clock.seconds() + self._interval
        found = await self._pulled()
        frames = found.get("frames")
        if not isinstance(frames, list):
            raise self._failed(CarrierFailed(f"{self._platform} answers bus/pull without frames"), PULL)
        self._outage.up(PULL)
        for frame in frames:
            number = as_integer(frame.get("id")) if isinstance(frame, dict) else None
            if number is not None and number > self._since:
                self._since = number
                self._next_pull = 0.0  # there may be more already; not behind frames that were there before
        return frames

    async def _pulled(self) -> _Json:
        """Pull once; if the answer is too large, again for fewer frames, and at last for a single one of any legal size."""
        limit = self._limit_frames
        while True:
            question = self._pull_question(limit, self._wait_ms)
            try:
                return await self._ask(self._pull_one if limit == 1 else self._pull, question, PULL)
            except _TooLarge:
                if limit == 1:
                    self._since += 1  # no relay can read it: go on behind it
                    raise CarrierFailed("a bus frame longer than any may be", outage=False) from None
                limit = max(1, limit // 8)

    def _pull_question(self, limit: int, wait_ms: int) -> _Json:
        return {"relayId": self._relay_id, "sinceId": self._since, "limit": limit, "waitMs": wait_ms}

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask(self, call: Call, question: Mapping[str, object] | bytes, part: str = PLATFORM) -> _Json:
        body = question if isinstance(question, bytes) else msgspec.json.encode(question)
        try:
            answer = await self._http.ask(call, body)
        except TooLarge:
            self._outage.up(PLATFORM)
            raise _TooLarge(f"the answer of {self._platform} is too large", outage=False) from None
        except HttpFailure as failure:
            raise self._failed(CarrierFailed(f"{self._platform} cannot be reached: {failure.why}")) from None
        return self._read(answer, call, part)

    def _read(self, answer: Answer, call: Call, part: str) -> _Json:
        status, path = answer.status, call.url.rpartition("/relay/")[2]
        if status >= 500:
            raise self._failed(CarrierFailed(f"{self._platform} answers {path} with HTTP {status}"))
        try:
            found: Any = msgspec.json.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        refused = f"{self._platform} refuses {path} with HTTP {status}{_word(found)}"
        if status in _REFUSES_ALL:
            raise self._failed(CarrierFailed(refused, reason=Reason.BACKPLANE_REFUSED))
        if found is None:
            raise self._failed(
                CarrierFailed(f"{self._platform} answers {path} with HTTP {status} without JSON")
            )
        self._outage.up(PLATFORM)
        if 200 <= status < 300 and isinstance(found, dict) and found.get("ok") is True:
            return found
        failed = CarrierFailed(refused, reason=Reason.BACKPLANE_REFUSED, outage=part == PULL)
        raise self._failed(failed, part) if failed.outage else failed

    def _failed(self, failed: CarrierFailed, part: str = PLATFORM) -> CarrierFailed:
        if not self._stopped:
            self._outage.down(part, failed)
            if self._probing is None:
                self._probing = Deferred.fromCoroutine(self._probe()).addErrback(_cancelled)
        return failed

    async def _probe(self) -> None:
        """Ask until the platform answers."""
        retry = _RETRY_FIRST
        try:
            while self._outage.is_down:
                await deferLater(self._clock, retry)
                retry = min(2 * retry, _RETRY_MOST)
                try:
                    await self._probe_once()
                except CarrierFailed:
                    continue
        finally:
            self._probing = None
            self._wake()

    async def _probe_once(self) -> None:
        if self._bus:
            try:
                await self._ask(self._probe_pull, self._pull_question(1, 0), PULL)
            except _TooLarge:
                pass  # the pull itself will see to it
            self._outage.up(PULL)
        elif self._asked_for is not None:
            await self.resolve(self._asked_for)


class _TooLarge(CarrierFailed):
    """The answer was longer than the call allows."""


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


def _word(answer: object) -> str:
    """The platform's reason for a refusal, shortened."""
    if not isinstance(answer, dict):
        return ""
    for name in ("reason", "error"):
        word = answer.get(name)
        if isinstance(word, str) and word.strip():
            return f": {word.strip()[:_LONGEST_WORD]}"
    return ""
