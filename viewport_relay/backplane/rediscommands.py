"""The commands that the relay sends to Redis: keys, Lua scripts, and the trial of each command.

    PREFIX:presence:WORKSPACE:TARGET   string, JSON, with a TTL: which relay holds the daemon
    PREFIX:queue:RELAYID               list, RPUSH by anyone, BLPOP and LPOP by that relay: bus frames
    PREFIX:instance:RELAYID            string, JSON, with a TTL: a relay's process, see instance.py
    PREFIX:signature:WORKSPACE:TARGET  string with the TTL of the presence entry: its signature, see presencesigning.py

The first two are the layout of relays of today (wire protocol, section 12), which ignore the others. Needs Redis 6.2 (LPOP with a count, SET
with GET) and EVAL. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from viewport_relay.backplane.interface import BusFrame, TargetKey
from viewport_relay.backplane.redisprotocol import Command

#: Milliseconds after the last frame at which a queue that no relay reads is gone: its frames are long stale.
QUEUE_TTL_MS: Final = 120_000
#: Milliseconds for which the keys of a trial live.
_TRIAL_TTL_MS: Final = 1_000
#: Seconds that the trial of BLPOP waits.
_TRIAL_WAIT: Final = 0.01
#: In the keys of a trial: no workspace and no relay is called so.
_TRIAL: Final = "relay-trial"

# KEYS: the entry, its signature. ARGV: our relay id, and of `renew` the new entry, the TTL in ms, the new signature.
_ANNOUNCE: Final = """
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if ARGV[4] == '' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3]) end
return false
"""
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
"""
    + _ANNOUNCE
)
_WITHDRAW: Final = (
    _OTHERS
    + """
if not others() then redis.call('DEL', KEYS[1], KEYS[2]) end
return false
"""
)
# KEYS[1] the instance record, ARGV: ours, what takes its place, the TTL in ms.
_RETIRE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return false
"""
# KEYS[1] the queue, ARGV[1] its greatest length, ARGV[2] its TTL in ms, ARGV[3…] elements. Gives the length, and how many
# bus frames went. The number of frames of a batch stands in its bytes 40-43, see batch.py.
_PUSH_AND_TRIM: Final = """
local length = redis.call('RPUSH', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local over = length - tonumber(ARGV[1])
if over <= 0 then return {length, 0} end
local frames = 0
for _, gone in ipairs(redis.call('LPOP', KEYS[1], over)) do
  if string.sub(gone, 1, 3) == 'VRB' then frames = frames + struct.unpack('>I4', gone, 41) else frames = frames + 1 end
end
return {length - over, frames}
"""


@frozen
class Commands:
    """Builds commands for one relay. Times are in milliseconds."""

    prefix: str
    relay_id: str
    presence_ttl: int
    queue_max: int

    def presence_key(self, target: TargetKey) -> str:
        return f"{self.prefix}:presence:{target[0]}:{target[1]}"

    def queue_key(self, relay_id: str) -> str:
        return f"{self.prefix}:queue:{relay_id}"

    def _presence_keys(self, target: TargetKey) -> tuple[str, str]:
        return self.presence_key(target), f"{self.prefix}:signature:{target[0]}:{target[1]}"

    def announce(self, target: TargetKey, entry: bytes, signature: str) -> Command:
        """Write the entry, whatever is there."""
        keys, ttl = self._presence_keys(target), self.presence_ttl
        return "EVAL", _ANNOUNCE, 2, *keys, self.relay_id, entry, ttl, signature

    def renew(self, target: TargetKey, entry: bytes, signature: str) -> Command:
        """Write the entry, unless one of another relay is there: its id is the answer then, else null."""
        keys, ttl = self._presence_keys(target), self.presence_ttl
        return "EVAL", _RENEW, 2, *keys, self.relay_id, entry, ttl, signature

    def withdraw(self, target: TargetKey) -> Command:
        """Delete the entry, unless it is another relay's."""
        return "EVAL", _WITHDRAW, 2, *self._presence_keys(target), self.relay_id

    def resolve(self, target: TargetKey) -> Command:
        """The entry and its signature."""
        return "MGET", *self._presence_keys(target)

    def _instance_key(self, relay_id: str) -> str:
        return f"{self.prefix}:instance:{relay_id}"

    def mark(self, record: bytes) -> Command:
        """Write this process's record; the answer is the one that was there before."""
        return "SET", self._instance_key(self.relay_id), record, "PX", self.presence_ttl, "GET"

    def retire(self, record: bytes, last: bytes) -> Command:
        """Write `last` in the place of this process's record, if that is still there."""
        return "EVAL", _RETIRE, 1, self._instance_key(self.relay_id), record, last, self.presence_ttl

    def record_of(self, relay_id: str) -> Command:
        return "GET", self._instance_key(relay_id)

    def push(self, relay_id: str, elements: Sequence[BusFrame]) -> tuple[Command, Command]:
        """Append elements to a relay's queue; the first answer is its length then."""
        key = self.queue_key(relay_id)
        return ("RPUSH", key, *elements), ("PEXPIRE", key, QUEUE_TTL_MS)

    def push_and_trim(self, relay_id: str, elements: Sequence[BusFrame]) -> Command:
        """As `push`, and drop the oldest elements over the limit; the answer is the length and the frames dropped."""
        key = self.queue_key(relay_id)
        return "EVAL", _PUSH_AND_TRIM, 1, key, self.queue_max, QUEUE_TTL_MS, *elements

    def pull(self, wait: float, limit: int) -> tuple[Command, Command]:
        """Wait for one frame of this relay's queue, at most `wait` seconds, and take up to `limit` more."""
        key = self.queue_key(self.relay_id)
        return ("BLPOP", key, wait), ("LPOP", key, limit)

    # -- trials ------------------------------------------------------------------------------------------------

    def presence_trials(self) -> tuple[Command, ...]:
        """Each command for presence once, on a key that no relay reads and that is gone after a second."""
        keys = self._presence_keys((_TRIAL, self.relay_id))
        write = (self.relay_id, "{}", _TRIAL_TTL_MS, "trial")
        return (
            # What the scripts call is tried alone too: Redis does not say which command of a script it refuses.
            ("SET", keys[0], "{}", "PX", _TRIAL_TTL_MS, "GET"),
            ("GET", keys[0]),
            ("MGET", *keys),
            ("DEL", *keys),
            ("EVAL", _ANNOUNCE, 2, *keys, *write),
            ("EVAL", _RENEW, 2, *keys, *write),
            ("EVAL", _WITHDRAW, 2, *keys, self.relay_id),
        )

    def push_trials(self) -> tuple[Command, ...]:
        """As `presence_trials`, for publishing."""
        key = self._trial_queue("out")
        return (
            ("RPUSH", key, "trial"),
            ("PEXPIRE", key, _TRIAL_TTL_MS),
            ("LPOP", key, 1),
            ("EVAL", _PUSH_AND_TRIM, 1, key, 1, _TRIAL_TTL_MS, "trial"),
        )

    def pull_trials(self) -> tuple[Command, ...]:
        """As `presence_trials`, for reading the queue."""
        key = self._trial_queue("in")
        return ("LPOP", key, 1), ("BLPOP", key, _TRIAL_WAIT)

    def _trial_queue(self, name: str) -> str:
        return f"{self.prefix}:queue:{_TRIAL}:{name}:{self.relay_id}"


def popped(first: Any, more: Any) -> list[bytes]:
    """The frames in the answers to the two commands of `Commands.pull`."""
    found = first[1:] if isinstance(first, list) else []  # the key comes first
    if isinstance(more, list):
        found = found + more
    return [frame for frame in found if isinstance(frame, bytes)]
