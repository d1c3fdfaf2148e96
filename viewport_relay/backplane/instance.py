"""Instance records: which process of a relay runs now, and what it can read.

    PREFIX:instance:RELAYID   {"instance": a random value of the process, "batches": `batch.VERSION`, "version", "url"}, with a TTL

Each process writes its record from time to time and reads the record that was there. One foreign record is what a restart
leaves behind, and the first read tells whether a process ran before; two foreign records in a row mean a second relay with the
same RELAY_ID: the two would read one queue, and each would lose half of its frames. Other relays read the record to learn that
batches (see `batch`) are understood, and their dashboards show it. The record is not signed: an attacker who forges it can make
frames be lost, as one who deletes frames can.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final, Protocol

import msgspec
from attrs import Factory, define
from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from viewport_relay.backplane.batch import VERSION
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.observe.sink import EventSink

#: Foreign records in a row that are no coincidence.
_TWICE: Final = 2
#: Seconds until a first record that could not be written is tried again.
_RETRY: Final = 0.25
#: Seconds for which another relay's record is remembered.
RECORD_TTL: Final = 5.0
#: Other relays whose records are remembered.
MOST_RECORDS: Final = 1024
#: Other relays that operators are told of, and characters of each text that another relay wrote.
MOST_DESCRIBED: Final = 64
MOST_TEXT: Final = 256
#: Seconds after which a record that the dashboard shows is looked up again, and after the last frame to a relay
#: without one, until it is forgotten.
REFRESH: Final = 15.0
FORGOTTEN: Final = 900.0


def new_instance() -> str:
    """A random value for this process."""
    return os.urandom(12).hex()


class Records(Protocol):
    """The store of instance records. Calls raise CarrierFailed."""

    async def mark(self, record: bytes) -> bytes | None:
        """Write this relay's record; the one that was there before."""

    async def retire(self, record: bytes, last: bytes) -> None:
        """Write `last` in the place of this process's record, unless another process has written its own."""

    async def relays(self) -> Sequence[str]:
        """Add this relay to the list of those that run; the ids of the others."""

    async def record_of(self, relay_id: str) -> bytes | None:
        """Another relay's record."""


def _record(value: bytes | None) -> Mapping[str, object]:
    try:
        record = msgspec.json.decode(value or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        record = {"instance": value}  # as versions before 0.2 write it
    return record if isinstance(record, dict) else {}


@define(eq=False)
class _Known:
    """Another relay's record, and when it was read and used."""

    instance: str | None = None
    record: Mapping[str, object] = Factory(dict)
    used: float | None = None  # when the last frame went to it
    read: float = -inf  # when the record was read last
    asking: bool = False


class Instances(TimerService):
    """This process's record, which the service writes every `interval` seconds (at least 0.02), and those of other relays.

    The service logs `relay_id_shared`. It goes on from where `begin` left off.
    """

    clock: IReactorTime

    def __init__(
        self,
        clock: IReactorTime,
        records: Records,
        relay_id: str,
        instance: str,
        interval: float,
        log: EventSink,
        about: Mapping[str, str],
    ) -> None:
        """`about` is shown to operators of other relays: the version and the address."""
        TimerService.__init__(self, max(0.02, interval), lambda: Deferred.fromCoroutine(self._compare()))
        self.clock = clock
        self._records = records
        self._relay_id = relay_id
        self._log = log
        self._instance = instance
        self._ours = msgspec.json.encode({"instance": instance, "batches": VERSION, **about})
        self._foreign = 0
        self.relays: Sequence[str] = ()  # the other relays that run, as far as they tell
        self._known: dict[str, _Known] = {}

    # -- this process ------------------------------------------------------------------------------------------------

    async def begin(self) -> bool:
        """Write the record for the first time, as soon as the carrier works; whether there was a process before."""
        while True:
            try:
                there = await self._records.mark(self._ours)
            except CarrierFailed:  # logged as an outage
                await deferLater(self.clock, _RETRY)
                continue
            self._foreign = 0 if there is None else 1
            return there is not None

    async def retire(self) -> None:
        """Write into the record that this process ends: the next one may be of a version that reads no batches."""
        try:
            last = {"instance": self._instance, "stopped": True}
            await self._records.retire(self._ours, msgspec.json.encode(last))
        except CarrierFailed:
            return

    async def _compare(self) -> None:
        try:
            there = await self._records.mark(self._ours)
            self.relays = await self._records.relays()
        except CarrierFailed:  # logged as an outage
            return
        foreign = there is not None and _record(there).get("instance") != self._instance
        self._foreign = self._foreign + 1 if foreign else 0
        if self._foreign >= _TWICE:
            self._log.event(
                "relay_id_shared",
                message=f"another running relay has RELAY_ID={self._relay_id} too: they take frames from each other; "
                "give each relay its own",
            )

    # -- other relays ------------------------------------------------------------------------------------------------

    def reads_batches(self, relay_id: str) -> str | None:
        """The instance of a relay that reads batches; None if it does not, or is not known to yet.

        To be asked for each frame to that relay. Answers at once from the last record, which is looked up again in the background.
        """
        known = self._known.get(relay_id) or self._add(relay_id)
        known.used = self.clock.seconds()
        self._refresh(relay_id, known, RECORD_TTL)
        return known.instance

    def described(self) -> list[dict[str, Any]]:
        """The other `relays` that have a record, and relays that a frame went to within FORGOTTEN seconds.

        `relayId`; `seconds` since the last frame to it, None: there was none; `bus`, the form that it reads: "batches", "frames", or
        "unknown" without a record; `version` and `url` where the record has them. A relay that was stopped is left out.
        """
        found, now = [], self.clock.seconds()
        used = {
            relay_id: round(now - known.used)
            for relay_id, known in self._known.items()
            if known.used is not None and now - known.used <= FORGOTTEN
        }
        for relay_id in sorted({*used, *self.relays})[:MOST_DESCRIBED]:
            known = self._known.get(relay_id) or self._add(relay_id)
            self._refresh(relay_id, known, REFRESH)
            if "stopped" in known.record or not (known.record or relay_id in used):
                continue
            bus = "batches" if known.instance else "frames" if known.record else "unknown"
            told: dict[str, Any] = {"relayId": relay_id, "bus": bus, "seconds": used.get(relay_id)}
            for name in ("version", "url"):
                value = known.record.get(name)
                if isinstance(value, str):
                    told[name] = value[:MOST_TEXT]
            found.append(told)
        return found

    def _add(self, relay_id: str) -> _Known:
        if len(self._known) >= MOST_RECORDS:
            del self._known[next(iter(self._known))]
        known = self._known[relay_id] = _Known()
        return known

    def _refresh(self, relay_id: str, known: _Known, age: float) -> None:
        """Read the record again if it is `age` seconds old."""
        if not known.asking and self.clock.seconds() - known.read >= age:
            known.asking = True
            Deferred.fromCoroutine(self._look_up(relay_id, known))

    async def _look_up(self, relay_id: str, known: _Known) -> None:
        try:
            record = _record(await self._records.record_of(relay_id))
        except CarrierFailed:
            pass  # what was last seen holds
        else:
            instance = record.get("instance")
            reads = record.get("batches") == VERSION and isinstance(instance, str)
            known.instance = str(instance) if reads else None
            known.record = record
        finally:
            known.asking = False
            known.read = self.clock.seconds()
