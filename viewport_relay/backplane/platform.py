"""The backplane over the platform's HTTP endpoints (wire contract, section 6, Server mode).

    relay → platform   POST /api/runtime/internal/relay/presence/upsert, presence/resolve, bus/publish, bus/pull
    relay ← platform   {"ok":true, …}

All with the header x-relay-internal-key. What cannot be reached is tried again with a read-only question, so that the
outage ends by itself even if no peer is here to notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from viewport_relay.admission.http import Answer, Call, HttpClient, HttpFailure, TooLarge
from viewport_relay.backplane.interface import CarrierFailed, Parcel, TargetKey
from viewport_relay.backplane.outage import Outage
from viewport_relay.config import Config
from viewport_relay.protocol.json import as_integer

PART: Final = "platform"
#: Longest that the platform waits for frames in one pull, milliseconds.
MOST_WAIT_MS: Final = 2000
#: Seconds between two questions while the platform does not answer: the first and the longest.
_RETRY_FIRST: Final = 0.25
_RETRY_MOST: Final = 5.0

_Json = Mapping[str, object]


class PlatformCarrier:
    """Presence and bus at the platform. Frames of one target leave one after the other, targets side by side."""

    batch: Final = 1
    lanes: Final = 16
    calls: Final = 8

    def __init__(self, clock: IReactorTime, config: Config, http: HttpClient, outage: Outage) -> None:
        self._clock = clock
        self._http = http
        self._outage = outage
        self._relay_id = config.relay_id
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
        # A second try of the same frame is a replay to whoever got the first: safe.
        self._publish = call("bus/publish")
        self._pull = call("bus/pull", self._wait_ms / 1000 + 2.0)
        # A frame of the greatest length, all of whose characters JSON writes as two, and what is around it.
        largest = 2 * config.frame_max_bytes + 8192
        self._pull_one = call("bus/pull", self._wait_ms / 1000 + 2.0, max(most, largest))
        self._since = 0
        self._next_pull = 0.0
        self._peers = 0
        self._wanted: Deferred[None] | None = None
        self._probing: Deferred[None] | None = None
        self._stopped = False

    def start(self) -> None:
        self._probe()

    def stop(self) -> Deferred[None]:
        self._stopped = True
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()
        return succeed(None)

    def peers_changed(self, number: int) -> None:
        self._peers = number
        wanted = self._wanted
        if number and wanted is not None:
            self._wanted = None
            wanted.callback(None)

    def lane(self, parcel: Parcel) -> object:
        return parcel.target, parcel.to_relay

    # -- presence ------------------------------------------------------------------------------------------------

    async def announce(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self._ask(self._upsert, self._report(target, entry, here=True))

    async def renew(self, target: TargetKey, entry: Mapping[str, object]) -> str | None:
        there = await self.resolve(target)
        if there is not None and there.get("daemonConnected") is True:
            other = there.get("relayId")
            if isinstance(other, str) and other not in ("", self._relay_id):
                return other
        await self.announce(target, entry)
        return None

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self._ask(self._upsert, self._report(target, entry, here=False))

    def _report(self, target: TargetKey, entry: Mapping[str, object], *, here: bool) -> dict[str, object]:
        report: dict[str, object] = {"workspaceId": target[0], "runtimeTargetId": target[1]}
        if "machineId" in entry:
            report["machineId"] = entry["machineId"]
        report["relayId"] = entry["relayId"]
        report["relayWsBaseUrl"] = entry["relayWsBaseUrl"]
        report["daemonConnected"] = here
        return report

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        return await self._ask(self._resolve, {"workspaceId": target[0], "runtimeTargetId": target[1]})

    # -- bus ---------------------------------------------------------------------------------------------------------

    async def publish(self, frames: Sequence[tuple[str, bytes]]) -> None:
        for _, frame in frames:
            await self._ask(self._publish, frame)

    async def pull(self) -> Sequence[bytes | Mapping[str, object]]:
        if not self._peers:
            self._wanted = Deferred()
            await self._wanted
        wait = self._next_pull - self._clock.seconds()
        if wait > 0:
            await deferLater(self._clock, wait)
        self._next_pull = self._clock.seconds() + self._interval
        found = await self._pulled()
        frames = found.get("frames")
        if not isinstance(frames, list):
            raise self._failed("the answer to bus/pull has no frames")
        for frame in frames:
            number = as_integer(frame.get("id")) if isinstance(frame, dict) else None
            if number is not None and number > self._since:
                self._since = number
        if frames:
            self._next_pull = 0.0  # there may be more already
        return frames

    async def _pulled(self) -> _Json:
        """One pull; if its answer is too large, fewer frames, and at last a single one of any legal size."""
        limit = self._limit_frames
        while True:
            question = {
                "relayId": self._relay_id,
                "sinceId": self._since,
                "limit": limit,
                "waitMs": self._wait_ms,
            }
            try:
                return await self._ask(self._pull_one if limit == 1 else self._pull, question)
            except _TooLarge:
                if limit == 1:
                    self._since += 1  # no relay can read it: go on behind it
                    raise CarrierFailed("a bus frame longer than any may be", outage=False) from None
                limit = max(1, limit // 8)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask(self, call: Call, question: Mapping[str, object] | bytes) -> _Json:
        body = question if isinstance(question, bytes) else msgspec.json.encode(question)
        try:
            answer = await self._http.ask(call, body)
        except TooLarge:
            self._outage.up(PART)
            raise _TooLarge("the platform's answer is too large", outage=False) from None
        except HttpFailure as failure:
            raise self._failed(f"the platform cannot be reached: {failure.why}") from None
        return self._read(answer)

    def _read(self, answer: Answer) -> _Json:
        status = answer.status
        if status >= 500 or status in (401, 403, 404):
            # Not about this frame or target: the next question would fare no better.
            raise self._failed(f"the platform answers with HTTP {status}")
        try:
            found: Any = msgspec.json.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._failed(f"the platform answers with HTTP {status} and no JSON") from None
        self._outage.up(PART)
        if not 200 <= status < 300 or not isinstance(found, dict) or found.get("ok") is not True:
            raise CarrierFailed(f"the platform refuses it with HTTP {status}", outage=False)
        return found

    def _failed(self, reason: str) -> CarrierFailed:
        if not self._stopped:
            self._outage.down(PART, reason)
            self._probe()
        return CarrierFailed(reason)

    def _probe(self) -> None:
        """Ask until there is an answer, so that it is known that there is one."""
        if self._probing is None:
            self._probing = Deferred.fromCoroutine(self._probe_until_up()).addErrback(_cancelled)

    async def _probe_until_up(self) -> None:
        retry = _RETRY_FIRST
        while True:
            try:
                await self._ask(
                    self._resolve, {"workspaceId": "relay-probe", "runtimeTargetId": "relay-probe"}
                )
                break
            except CarrierFailed as error:
                if not error.outage:
                    break
            await deferLater(self._clock, retry)
            retry = min(2 * retry, _RETRY_MOST)
        self._probing = None


class _TooLarge(CarrierFailed):
    """The answer was longer than the call allows."""


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
