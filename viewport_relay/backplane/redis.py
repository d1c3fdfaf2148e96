"""The backplane over Redis: presence and bus over two kept connections (wire protocol, section 12).

A standalone server, a replicated one behind one name, or one that Sentinels watch; Redis Cluster is not supported.
Keys and commands are in `rediscommands`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred

from viewport_relay.backplane.interface import (
    BusFrame,
    CarrierFailed,
    Parcel,
    Place,
    SeatClaim,
    TargetKey,
)
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.presencesigning import PresenceSigner
from viewport_relay.backplane.rediscommands import Commands, popped
from viewport_relay.backplane.redisconnection import RedisConnection
from viewport_relay.backplane.redisprotocol import Command, RedisRefuses
from viewport_relay.backplane.redisserver import redis_of
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

#: Seconds for one command.
COMMAND_LIMIT: Final = 2.0
#: Relays whose queues' lengths are remembered.
_MOST_LENGTHS: Final = 1024


def commands_for(config: Config) -> Commands:
    return Commands(
        config.redis_key_prefix, config.relay_id, config.redis_presence_ttl_ms, config.redis_queue_max
    )


class RedisCarrier:
    """Presence and bus in Redis, over two connections: one for commands, one that waits for bus frames."""

    batch: Final = 512
    publishes: Final = 1024
    calls: Final = 64

    def __init__(
        self,
        reactor: Any,
        config: Config,
        outage: Outage,
        counters: Counters,
        now: Callable[[], float],
    ) -> None:
        """`now` gives seconds since the epoch. Raises ConfigError for a URL or a CA file that cannot be used."""
        self._make = make = commands_for(config)
        self._signer = PresenceSigner(
            config.bus_hmac_key, config.redis_presence_ttl_ms / 1000, config.bus_max_skew_ms / 1000, now
        )
        self._only_signed = config.presence_signatures == "require"
        self._counters = counters
        # BLPOP with 0 would wait for ever.
        pull_wait = max(config.bus_pull_wait_ms, 10) / 1000
        self._pull = make.pull(pull_wait, config.bus_pull_limit)
        self._queue_max = config.redis_queue_max
        self._lengths: dict[str, int] = {}  # of other relays' queues, as the latest pushes left them
        self._service = MultiService()

        def connection(part: str, trials: tuple[Command, ...], limit: float) -> RedisConnection:
            outage.expect(part)
            made = RedisConnection(
                reactor,
                redis_of(reactor, config, config.redis_connect_timeout_ms / 1000),
                trials,
                partial(outage.up, part),
                partial(outage.down, part),
                limit=limit,
            )
            MultiService.setServiceParent(made, self._service)
            return made

        bus = config.bus_enabled
        trials = make.presence_trials() + (make.push_trials() if bus else ())
        self._commands = connection("commands", trials, COMMAND_LIMIT)
        self._reader = connection("bus", make.pull_trials(), pull_wait + COMMAND_LIMIT) if bus else None

    def start(self) -> None:
        self._service.startService()

    async def stop(self) -> None:
        stopping: Deferred[Any] = self._service.stopService()
        await stopping

    def peers_changed(self, number: int) -> None:
        """The queue is read whether or not a peer is here: waiting costs nothing."""

    def series(self, parcel: Parcel) -> object:
        return None

    # -- presence ------------------------------------------------------------------------------------------------

    async def take(
        self, target: TargetKey, entry: Mapping[str, object], claim: SeatClaim, *, new: bool
    ) -> str | None:
        value = msgspec.json.encode(entry)
        signature = self._signer.sign(target, value)
        [other] = await self._commands.run(self._make.take(target, value, signature, claim, new=new))
        return other.decode("utf-8", "replace") if isinstance(other, bytes) else None

    async def moved(self) -> Sequence[TargetKey]:
        [found] = await self._commands.run(self._make.moved())
        names = (
            item.decode("utf-8", "replace").partition("\n")
            for item in self._read(found, list[bytes] | None) or ()
        )
        return [(workspace, target) for workspace, _, target in names]

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self._commands.run(self._make.withdraw(target))

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        [found] = await self._commands.run(self._make.resolve(target))
        value, signature = found if isinstance(found, list) and len(found) == 2 else (None, None)
        if not isinstance(value, bytes):
            return None
        try:
            entry = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not isinstance(entry, dict):
            return None
        if not self._signer.is_signed(target, value, entry, signature):
            self._counters.presence_unsigned += 1
            if self._only_signed:
                return None
        return entry

    # -- instance records ----------------------------------------------------------------------------------------

    async def mark(self, record: bytes) -> bytes | None:
        [there] = await self._commands.run(self._make.mark(record))
        return there if isinstance(there, bytes) else None

    async def retire(self, record: bytes, last: bytes) -> None:
        await self._commands.run(self._make.retire(record, last))

    async def relays(self) -> Sequence[str]:
        [found] = await self._commands.run(self._make.relays())
        names = found if isinstance(found, list) else ()
        return [name.decode("utf-8", "replace")[:128] for name in names if isinstance(name, bytes)]

    async def record_of(self, relay_id: str) -> bytes | None:
        [record] = await self._commands.run(self._make.record_of(relay_id))
        return record if isinstance(record, bytes) else None

    # -- bus ---------------------------------------------------------------------------------------------------------

    async def publish(self, relay_id: str, frames: Sequence[BusFrame]) -> int | None:
        if self._lengths.get(relay_id, 0) + len(frames) > self._queue_max // 2:
            [answer] = await self._commands.run(self._make.push_and_trim(relay_id, frames))
            length, gone = self._read(answer, tuple[int, int])
            self._counters.bus_queue_trimmed += gone
        else:
            answer, _ = await self._commands.run(*self._make.push(relay_id, frames))
            length = self._read(answer, int)
        if len(self._lengths) >= _MOST_LENGTHS:
            self._lengths.clear()
        self._lengths[relay_id] = length
        return int(length)

    async def take_back(
        self, relay_id: str, marks: Sequence[bytes], place: Place
    ) -> tuple[Sequence[bytes], Place | None]:
        [answer] = await self._commands.run(self._make.take_back(relay_id, marks, place))
        found, at, before = self._read(answer, tuple[list[bytes], int, bytes])
        return found, None if at < 0 else (at, before)

    def _read(self, answer: Any, form: Any) -> Any:
        """An answer of this type. Raises CarrierFailed: some servers and proxies only resemble Redis."""
        try:
            return msgspec.convert(answer, form)
        except msgspec.ValidationError as error:
            why = f"{self._commands.server} gives an answer of a wrong type: {error}"
            raise CarrierFailed(why, reason=Reason.BACKPLANE_REFUSED, outage=False) from None

    async def pull(self) -> Sequence[bytes | Mapping[str, object]]:
        assert self._reader is not None
        # Both leave at once: what has gathered behind the first frame comes in the same round trip.
        answers = await self._reader.answers(*self._pull)
        # What was popped is handed on, whatever became of the other command.
        found = popped(*answers)
        if not found:
            for answer in answers:
                if isinstance(answer, CarrierFailed):
                    raise answer
        return found


@frozen
class Examination:
    """The result of `examine`: the server, its version (None if it does not tell), and a trial of each command.

    `commands` were tried; `refused` says why some were not carried out, for each kind of error once.
    """

    server: str
    version: str | None
    commands: Sequence[str]
    refused: Sequence[str]


async def examine(reactor: Any, config: Config, limit: float) -> Examination:
    """Try every command that the relay uses, as the relay's own user; `limit` is seconds for each step.

    Changes nothing but keys of its own that are gone after a second. Raises CarrierFailed if the server cannot be
    used at all, and ConfigError.
    """
    make = commands_for(config)
    trials = make.presence_trials()
    if config.bus_enabled:
        trials += make.push_trials() + make.pull_trials()
    questions = ("INFO", "server"), ("PING",), *trials
    redis, (info, *answers) = await redis_of(reactor, config, limit).connect(questions, limit)
    redis.abort()
    refused = [answer for answer in answers if isinstance(answer, CarrierFailed)]
    if refused and refused[0] is answers[0] and refused[0].reason is Reason.BACKPLANE_UNREACHABLE:
        raise refused[0]
    commands = tuple(dict.fromkeys(str(trial[0]) for trial in trials))
    return Examination(redis.server, _version(info), commands, _kinds(questions[1:], answers))


def _kinds(questions: Sequence[Command], answers: Sequence[object]) -> list[str]:
    """What is wrong with the answers: the first error of each kind, with the other commands that fail alike."""
    kinds: dict[str, tuple[str, dict[str, None]]] = {}
    for (command, *_), answer in zip(questions, answers, strict=True):
        if isinstance(answer, CarrierFailed):
            word = answer.word if isinstance(answer, RedisRefuses) else answer.why
            kinds.setdefault(word, (answer.why, {}))[1][str(command)] = None
    return [
        f"{first}; the same for {', '.join(others)}" if (others := list(commands)[1:]) else first
        for first, commands in kinds.values()
    ]


def _version(info: object) -> str | None:
    if isinstance(info, bytes):
        for line in info.decode("utf-8", "replace").splitlines():
            if line.startswith("redis_version:"):
                return line.partition(":")[2].strip()[:40]
    return None
