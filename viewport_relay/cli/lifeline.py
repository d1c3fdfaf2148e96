"""A child process that never outlives its parent, whatever ends the parent: hang-up, kill or crash.

On Linux the kernel sends the child SIGTERM when its parent ends (prctl(2), PR_SET_PDEATHSIG). The setting survives exec.
Elsewhere the parent's own shutdown must do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(parent: int) -> None:
    """Called in the child: SIGTERM comes when the process `parent` ends, also if it has ended already."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
