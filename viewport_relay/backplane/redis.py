"""The backplane over Redis, in the layout that relays of today use (wire contract, section 6).

    PREFIX:presence:WORKSPACE:TARGET   string, JSON, with a TTL: which relay holds the daemon
    PREFIX:queue:RELAYID               list, RPUSH by anyone, BLPOP and LPOP by that relay: bus frames
    PREFIX:instance:RELAYID            string with a TTL, of ours alone: see instance.py

Needs Redis 6.2 (LPOP with a count) and EVAL. A standalone server, a replicated one behind one name, or one that
Sentinels watch; Cluster is not supported by the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint

from viewport_relay.admission.tls import ClientTls
from viewport_relay.backplane.interface import Parcel, TargetKey
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.redisline import RedisAddress, RedisLine
from viewport_relay.backplane.sentinel import SentinelEndpoint
from viewport_relay.config import Config

#: Milliseconds after the last frame at which a queue that nobody reads is gone: its frames are long stale.
QUEUE_TTL_MS: Final = 120_000
#: Seconds for one command.
COMMAND_LIMIT: Final = 2.0

_COMMANDS: Final = "commands"
_READER: Final = "bus"

# KEYS[1] the entry, ARGV[1] our relay id, ARGV[2] the new entry, ARGV[3] its TTL in ms.
_OTHERS: Final = """
local function others()
  local there = redis.call('GET', KEYS[1])
  if not there then return nil end
  local ok, entry = pcall(cjson.decode, there)
  if not ok or type(entry) ~= 'table' then return nil end
  if entry.daemonConnected ~= true or type(entry.relayId) ~= 'string' then return nil end
  if entry.relayId == ARGV[1] then return nil end
  return entry.relayId
end
"""
_RENEW: Final = (
    _OTHERS
    + """
local other = others()
if other then return other end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""
)
_WITHDRAW: Final = (
    _OTHERS
    + """
if not others() then redis.call('DEL', KEYS[1]) end
return false
"""
)


def parts(config: Config) -> tuple[str, ...]:
    """What of it can be up or down."""
    return (_COMMANDS, _READER) if config.bus_enabled else (_COMMANDS,)


class RedisCarrier:
    """Presence and bus in Redis, over two connections: one for commands, one that waits for bus frames."""

    batch: Final = 512
    lanes: Final = 1
    calls: Final = 64

    def __init__(self, reactor: Any, config: Config, outage: Outage) -> None:
        """Raises ConfigError for a URL that cannot be used."""
        self._prefix = config.redis_key_prefix
        self._relay_id = config.relay_id
        self._presence_ttl = config.redis_presence_ttl_ms
        self._queue_max = config.redis_queue_max
        self._pull_limit = config.bus_pull_limit
        # BLPOP with 0 would wait for ever.
        self._pull_wait = max(config.bus_pull_wait_ms, 10) / 1000
        address = RedisAddress.from_config(config)
        connect_limit = config.redis_connect_timeout_ms / 1000

        def line(part: str) -> RedisLine:
            return RedisLine(
                reactor,
                redis_endpoint(reactor, config, address, connect_limit),
                address,
                lambda: outage.up(part),
                lambda reason: outage.down(part, reason),
                connect_limit=connect_limit,
                limit=COMMAND_LIMIT,
            )

        self._commands = line(_COMMANDS)
        self._reader = line(_READER) if config.bus_enabled else None

    def start(self) -> None:
        self._commands.start()
        if self._reader is not None:
            self._reader.start()

    def stop(self) -> Deferred[None]:
        self._commands.stop()
        if self._reader is not None:
            self._reader.stop()
        return succeed(None)

    def peers_changed(self, number: int) -> None:
        """The queue is read whether or not somebody is here: waiting costs nothing."""

    def lane(self, parcel: Parcel) -> object:
        return None

    # -- presence ------------------------------------------------------------------------------------------------

    def _presence_key(self, target: TargetKey) -> str:
        return f"{self._prefix}:presence:{target[0]}:{target[1]}"

    async def announce(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        value = msgspec.json.encode(entry)
        await self._commands.run(("SET", self._presence_key(target), value, "PX", self._presence_ttl))

    async def renew(self, target: TargetKey, entry: Mapping[str, object]) -> str | None:
        key, value = self._presence_key(target), msgspec.json.encode(entry)
        [other] = await self._commands.run(
            ("EVAL", _RENEW, 1, key, self._relay_id, value, self._presence_ttl)
        )
        return other.decode("utf-8", "replace") if isinstance(other, bytes) else None

    async def withdraw(self, target: TargetKey, entry: Mapping[str, object]) -> None:
        await self._commands.run(("EVAL", _WITHDRAW, 1, self._presence_key(target), self._relay_id))

    async def resolve(self, target: TargetKey) -> Mapping[str, object] | None:
        [value] = await self._commands.run(("GET", self._presence_key(target)))
        if not isinstance(value, bytes):
            return None
        try:
            entry = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return entry if isinstance(entry, dict) else None

    async def mark(self, value: str) -> str | None:
        """For `instance.InstanceWatch`."""
        key = f"{self._prefix}:instance:{self._relay_id}"
        [there] = await self._commands.run(("SET", key, value, "PX", self._presence_ttl, "GET"))
        return there.decode("utf-8", "replace") if isinstance(there, bytes) else None

    # -- bus ---------------------------------------------------------------------------------------------------------

    def _queue_key(self, relay_id: str) -> str:
        return f"{self._prefix}:queue:{relay_id}"

    async def publish(self, frames: Sequence[tuple[str, bytes]]) -> None:
        queues: dict[str, list[bytes]] = {}
        for relay_id, frame in frames:
            queues.setdefault(relay_id, []).append(frame)
        commands: list[tuple[object, ...]] = []
        for relay_id, values in queues.items():
            key = self._queue_key(relay_id)
            commands.append(("RPUSH", key, *values))
            commands.append(("LTRIM", key, -self._queue_max, -1))
            commands.append(("PEXPIRE", key, QUEUE_TTL_MS))
        await self._commands.run(*commands)

    async def pull(self) -> Sequence[bytes | Mapping[str, object]]:
        assert self._reader is not None
        key = self._queue_key(self._relay_id)
        # Both leave at once: what has gathered behind the first frame comes in the same round trip.
        first, more = await self._reader.run(
            ("BLPOP", key, self._pull_wait),
            ("LPOP", key, self._pull_limit),
            limit=self._pull_wait + COMMAND_LIMIT,
        )
        found = [first[1]] if isinstance(first, list) and len(first) == 2 else []
        return [value for value in found + (more or []) if isinstance(value, bytes)]


def redis_endpoint(
    reactor: Any, config: Config, address: RedisAddress, connect_limit: float
) -> IStreamClientEndpoint:
    """How to connect to the Redis of the settings, by way of the Sentinels if there are any."""
    tls = ClientTls.trusting("RELAY_REDIS_CA_CERT_PATH", config.redis_ca_cert_path) if address.tls else None

    def make(host: str, port: int) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port, timeout=connect_limit)
        return endpoint if tls is None else tls.over(endpoint, host)

    if config.redis_sentinels:
        name = config.redis_sentinel_master
        return SentinelEndpoint(reactor, config.redis_sentinels, name, make, connect_limit)
    return make(address.host, address.port)
