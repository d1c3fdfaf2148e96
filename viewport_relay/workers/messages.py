"""Messages between the parent process and its workers.

    parent -> worker   one packet each on a SOCK_SEQPACKET pair, in order, `Adopt` with a descriptor:
                       Adopt, EndTLS, ReloadTLS, Poll, Disconnect, Apply, Flush, Stop
    worker -> parent   one line of JSON each on a stream:
                       Up, Logged, Left, Snapshot, Disconnected

Both sides run the same installation as the same user. Lengths are bounded all the same: a faulty worker must not
take the parent down.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct
from msgspec.json import Decoder, Encoder

from viewport_relay.observe.checks import Condition
from viewport_relay.observe.logs import LogReport
from viewport_relay.observe.ring import Record
from viewport_relay.routing.views import Selection, TargetView

#: File descriptors of the two channels in the worker process.
PACKETS_FD: Final = 3
REPORTS_FD: Final = 4

#: Longest packet to a worker, bytes: a request head (16 KiB) and the bytes that followed it (16 KiB and one read of 64 KiB).
MAX_PACKET: Final = 131_072

#: Longest line from a worker, bytes: its `Snapshot`, about 1 KB for each connection.
MAX_LINE: Final = 67_108_864


# -- parent -> worker ------------------------------------------------------------------------------------------


class Adopt(Struct, tag="adopt", frozen=True):
    """Take over a connection. The descriptor comes with the packet; the bytes already read from it follow the first line."""

    family: int
    ip: str  # the client's address, as the parent counts it


class EndTLS(Struct, tag="end_tls", frozen=True):
    """End TLS on a TCP connection. Its descriptor and one end of a socket pair come with the packet (see `tlspipe`)."""

    family: int


class ReloadTLS(Struct, tag="reload_tls", frozen=True):
    """Read certificate and key again: the parent has found new ones, and could use them."""


class Poll(Struct, tag="poll", frozen=True):
    """Answer with a Snapshot. Answers come in the order of the orders."""


class Disconnect(Struct, tag="disconnect", frozen=True):
    """Close the connections of a selection; answer with Disconnected."""

    selection: Selection


class Apply(Struct, tag="apply", frozen=True):
    """Apply reloaded settings: variable -> text; empty text means that the variable is unset now."""

    settings: dict[str, str]


class Flush(Struct, tag="flush", frozen=True):
    """Empty the caches."""


class Stop(Struct, tag="stop", frozen=True):
    """Drain and exit. `now`: drop the remaining connections first."""

    now: bool = False


Order = Adopt | EndTLS | ReloadTLS | Poll | Disconnect | Apply | Flush | Stop


# -- worker -> parent ------------------------------------------------------------------------------------------


class Up(Struct, tag="up", frozen=True):
    """The worker is ready to take connections."""


class Logged(Struct, tag="logged", frozen=True):
    """One entry of the worker's log, to be written by the parent."""

    record: Record


class Left(Struct, tag="left", frozen=True):
    """A connection from this address has ended, or its upgrade has failed."""

    ip: str


class Snapshot(Struct, tag="snapshot", frozen=True):
    """One worker's contribution to the admin endpoints."""

    condition: Condition
    connections: dict[str, int]
    targets: list[TargetView]
    counters: dict[str, Any]  # as `snapshots.serialised` writes them
    log: LogReport


class Disconnected(Struct, tag="disconnected", frozen=True):
    """Answer to Disconnect: the number of connections that were closed."""

    count: int


Report = Up | Logged | Left | Snapshot | Disconnected

encode: Final = Encoder().encode
decode_order: Final = Decoder(Order).decode
decode_report: Final = Decoder(Report).decode
