"""Ends a child process with its parent, also when the parent is killed or crashes.

On Linux the kernel sends the child SIGTERM when its parent ends (prctl(2), PR_SET_PDEATHSIG). The setting survives exec.
On other systems only the parent's own shutdown ends the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(parent: int) -> None:
    """Call this in the child: it gets SIGTERM when the process `parent` ends, at once if that has ended already."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
