"""The commands that the relay sends to Redis: keys, Lua scripts, and the trial of each command.

    PREFIX:presence:WORKSPACE:TARGET   string, JSON, with a TTL: which relay holds the daemon
    PREFIX:queue:RELAYID               list, RPUSH by anyone, BLPOP and LPOP by that relay: bus frames
    PREFIX:instance:RELAYID            string, JSON, with a TTL: a relay's process, see instance.py
    PREFIX:relays                      string, JSON, with a TTL: array of the relays that have such a record
    PREFIX:signature:WORKSPACE:TARGET  string with the TTL of the presence entry: its signature, see presencesigning.py
    PREFIX:seat:WORKSPACE:TARGET       string with the TTL of the entry: generation, time, and relay of the daemon that has the seat
    PREFIX:moved:RELAYID               list: WORKSPACE newline TARGET of each seat that another relay took from this one

The first two are those of the wire protocol (section 12); a relay that knows no others ignores the rest. Needs Redis 6.2 (LPOP with a
count, SET with GET) and EVAL. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs
from attrs import frozen

from viewport_relay.backplane.interface import BEGINNING, BusFrame, Place, SeatClaim, TargetKey
from viewport_relay.backplane.redisprotocol import Command

#: Milliseconds after the last frame at which a queue that no relay reads is gone: its frames are long stale.
QUEUE_TTL_MS: Final = 120_000
#: Relays in the list of relays besides this one at most.
MOST_RELAYS: Final = 64
#: Moved seats that one look takes.
MOST_MOVED: Final = 256
#: Milliseconds for which the keys of a trial live.
_TRIAL_TTL_MS: Final = 1_000
#: Seconds that the trial of BLPOP waits.
_TRIAL_WAIT: Final = 0.01
#: In the keys of a trial: no workspace and no relay is called so.
_TRIAL: Final = "relay-trial"

# KEYS: the entry, its signature, the seat. ARGV[1]: our relay id. Gives the other relay that the entry names, or nil.
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
# ARGV: our relay id, the new entry, the TTL in ms, the new signature, the daemon's generation or nothing, when it took its seat (ms
# since the epoch), the key of relays' moved seats without the id, the target, 1 for a daemon that has just joined. Gives the relay
# whose seat stands, or false. Where neither generation is higher, the daemon that joined later has the seat, and one that has just
# joined always; an entry without that time keeps the seat. A relay that loses its seat to a newer one is told. A seat counts as taken
# after the one that it displaced, whatever the clocks say.
_TAKE: Final = (
    _OTHERS
    + """
local generation, since = tonumber(ARGV[5]), tonumber(ARGV[6])
local their_generation, their_since, owner
local seat = redis.call('GET', KEYS[3])
if seat then
  their_generation, their_since, owner = string.match(seat, '^(%d*) (%d+) (.*)$')
  their_generation, their_since = tonumber(their_generation), tonumber(their_since)
end
local other = others()
if other then
  if owner ~= other then their_generation, their_since = nil, nil end
  local stands
  if generation and their_generation and generation ~= their_generation then
    stands = their_generation > generation
  else
    stands = ARGV[9] ~= '1' and (not their_since or their_since >= since)
  end
  if stands then return other end
  local moved = ARGV[7] .. other
  if redis.call('RPUSH', moved, ARGV[8]) > 10000 then redis.call('LPOP', moved) end
  redis.call('PEXPIRE', moved, 120000)
  if their_since and their_since >= since then since = their_since + 1 end
elseif owner == ARGV[1] and their_since > since then
  since = their_since
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if ARGV[4] == '' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3]) end
redis.call('SET', KEYS[3], ARGV[5] .. ' ' .. string.format('%.0f', since) .. ' ' .. ARGV[1], 'PX', ARGV[3])
return false
"""
)
_WITHDRAW: Final = (
    _OTHERS
    + """
if not others() then redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) end
return false
"""
)
# KEYS[1] the instance record, ARGV: ours, what takes its place, the TTL in ms.
_RETIRE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return false
"""
# KEYS[1] the relays, ARGV: ours, the key of instance records without the id, the TTL in ms, other relays at most. Gives the
# ids of the others.
_RELAYS: Final = """
local there = redis.call('GET', KEYS[1])
local ok, known = pcall(cjson.decode, there or '[]')
local relays, most = {ARGV[1]}, tonumber(ARGV[4])
for _, id in ipairs(ok and type(known) == 'table' and known or {}) do
  if type(id) == 'string' and id ~= ARGV[1] and #relays <= most and redis.call('GET', ARGV[2] .. id) then
    relays[#relays + 1] = id
  end
end
redis.call('SET', KEYS[1], cjson.encode(relays), 'PX', ARGV[3])
table.remove(relays, 1)
return relays
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
# KEYS[1] the queue, ARGV: where to begin, the mark of the element before that, marks to take out (see unread.py). Looks at 500
# elements, or 1 MiB. Gives the marks found, where to go on (-1: that was all), and the mark before that: where another element is
# there by then, elements have gone meanwhile, and the next call begins anew.
_TAKE_BACK: Final = """
local function mark_of(element)
  return string.sub(element, 1, 3) == 'VRB' and string.sub(element, 5, 20) or redis.sha1hex(element)
end
local wanted, found, at, before, looked, bytes, some = {}, {}, tonumber(ARGV[1]), ARGV[2], 0, 0, nil
for i = 3, #ARGV do wanted[ARGV[i]] = true end
if at > 0 then
  local there = redis.call('LRANGE', KEYS[1], at - 1, at - 1)[1]
  if not there or mark_of(there) ~= before then at = 0 end
end
repeat
  some = redis.call('LRANGE', KEYS[1], at, at + 3)
  for _, element in ipairs(some) do
    local mark = mark_of(element)
    if wanted[mark] then
      found[#found + 1] = mark
      redis.call('LREM', KEYS[1], 1, element)
    else
      at, before = at + 1, mark
    end
    bytes = bytes + #element
  end
  looked = looked + #some
until #some < 4 or looked >= 500 or bytes >= 1048576
return {found, #some < 4 and -1 or at, before}
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

    def _presence_keys(self, target: TargetKey) -> tuple[str, str, str]:
        signature, seat = (f"{self.prefix}:{kind}:{target[0]}:{target[1]}" for kind in ("signature", "seat"))
        return self.presence_key(target), signature, seat

    def take(
        self, target: TargetKey, entry: bytes, signature: str, claim: SeatClaim, *, new: bool
    ) -> Command:
        """Write the entry, unless the claim of another relay stands (`Carrier.take`): its id is the answer then, else null."""
        keys, generation = self._presence_keys(target), claim.generation
        written = self.relay_id, entry, self.presence_ttl, signature
        claimed = "" if generation is None else generation, claim.since_ms
        moved = f"{self.prefix}:moved:", "\n".join(target)
        return "EVAL", _TAKE, 3, *keys, *written, *claimed, *moved, int(new)

    def withdraw(self, target: TargetKey) -> Command:
        """Delete the entry, unless it is another relay's."""
        return "EVAL", _WITHDRAW, 3, *self._presence_keys(target), self.relay_id

    def moved(self) -> Command:
        """The next seats that other relays took from this one."""
        return "LPOP", f"{self.prefix}:moved:{self.relay_id}", MOST_MOVED

    def resolve(self, target: TargetKey) -> Command:
        """The entry and its signature."""
        return "MGET", *self._presence_keys(target)[:2]

    def _instance_key(self, relay_id: str) -> str:
        return f"{self.prefix}:instance:{relay_id}"

    def mark(self, record: bytes) -> Command:
        """Write this process's record; the answer is the one that was there before."""
        return "SET", self._instance_key(self.relay_id), record, "PX", self.presence_ttl, "GET"

    def retire(self, record: bytes, last: bytes) -> Command:
        """Write `last` in the place of this process's record, if that is still there."""
        return "EVAL", _RETIRE, 1, self._instance_key(self.relay_id), record, last, self.presence_ttl

    def relays(self) -> Command:
        """Add this relay to the list of relays; the answer is the ids of the others whose records have not expired."""
        records = self._instance_key("")
        return (
            "EVAL",
            _RELAYS,
            1,
            f"{self.prefix}:relays",
            self.relay_id,
            records,
            self.presence_ttl,
            MOST_RELAYS,
        )

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

    def take_back(self, relay_id: str, marks: Sequence[bytes], place: Place) -> Command:
        """Take elements out of a part of a relay's queue; the answer is the marks found and, as two items, the next place."""
        return "EVAL", _TAKE_BACK, 1, self.queue_key(relay_id), *place, *marks

    def pull(self, wait: float, limit: int) -> tuple[Command, Command]:
        """Wait for one frame of this relay's queue, at most `wait` seconds, and take up to `limit` more."""
        key = self.queue_key(self.relay_id)
        return ("BLPOP", key, wait), ("LPOP", key, limit)

    # -- trials ------------------------------------------------------------------------------------------------

    def presence_trials(self) -> tuple[Command, ...]:
        """Each command for presence once, on a key that no relay reads and that is gone after a second."""
        target = (_TRIAL, self.relay_id)
        entry, signature, seat = self._presence_keys(target)
        trial = attrs.evolve(self, presence_ttl=_TRIAL_TTL_MS)
        return (
            # What the scripts call is tried alone too: Redis does not say which command of a script it refuses.
            ("SET", entry, "{}", "PX", _TRIAL_TTL_MS, "GET"),
            ("GET", entry),
            ("MGET", entry, signature),
            ("DEL", entry, signature, seat),
            self.moved(),
            trial.take(target, b"{}", "trial", SeatClaim(None, 0), new=True),
            self.withdraw(target),
        )

    def push_trials(self) -> tuple[Command, ...]:
        """As `presence_trials`, for publishing."""
        key = self._trial_queue("out")
        return (
            ("RPUSH", key, "trial"),
            ("PEXPIRE", key, _TRIAL_TTL_MS),
            ("LPOP", key, 1),
            ("EVAL", _PUSH_AND_TRIM, 1, key, 1, _TRIAL_TTL_MS, "trial"),
            ("LRANGE", key, 0, 0),
            ("LREM", key, 1, "trial"),
            ("EVAL", _TAKE_BACK, 1, key, *BEGINNING, "trial"),
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
