"""Settings of Python's cyclic garbage collector for a long-lived process.

Objects of imports and start-up live as long as the process. They are frozen, since a full collection over them would
delay frames by tens of milliseconds. Objects made later are freed by reference counting: a closed connection drops its
references (`Connection._forget`). Higher thresholds than the default gained nothing.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Freeze all present objects. Call this once, at the end of start-up."""
    gc.collect()
    gc.freeze()
