"""Settings of Python's cyclic garbage collector for a long-lived process.

Objects of imports and start-up live as long as the process. They are frozen, since a full collection over them would
delay frames by tens of milliseconds. Objects made later are freed by reference counting: a closed connection drops
its references (`life.Core.forget`, `RelayChannel`, `TLSTransport`). So full collections find little, and take 9 ms
with 500 TLS connections: they are made by a timer, and sooner only after very many objects, since an attacker must
not be able to fill memory with a cycle that was overlooked. Collections of young objects are many and short, 0.3 ms
instead of 1.
"""

from __future__ import annotations

import gc
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

#: Seconds between two full collections.
FULL_SECONDS: Final = 600.0

#: Objects made for a collection of the youngest; such collections for one of those that were left; and those for a full one.
THRESHOLDS: Final = (700, 3, 100)


def settle(clock: IReactorTime) -> None:
    """Freeze all present objects. Call this once, at the end of start-up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    full = LoopingCall(gc.collect)
    full.clock = clock
    full.start(FULL_SECONDS, now=False)
