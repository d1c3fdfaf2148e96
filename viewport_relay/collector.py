"""Python's garbage collector in a process that is to run for years.

What imports and start-up made lives as long as the process: a full collection need not walk over it, which would take
tens of milliseconds that some frame waits. And what a relay makes later is freed by counting references: connections
take care to hold nobody who holds them (`Connection._forget`), so that the collector finds next to nothing. Looking less
often than by default brought nothing more.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Call this once, when everything that stays is there."""
    gc.collect()
    gc.freeze()
