"""Huge pages for the memory that a process has filled at its start (Linux; madvise(2), admin-guide/mm/transhuge.rst).

Code, classes and tables of a relay are some 40 MB that are read here and there. In pages of 4 KiB most reads miss the
processor's table of addresses (TLB), and a miss costs most in a virtual machine. Distributions as Debian and Ubuntu give
huge pages only to memory that asks for them. Where the kernel has none to give, nothing changes.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

#: Advice of <linux/mman.h>: use huge pages here; and make them now, since Linux 6.1.
_HUGEPAGE: Final = 14
_COLLAPSE: Final = 25

#: The least share of a mapping that is in use. Others, as the stacks of threads, would grow.
_FULL: Final = 0.75

_MAPPING: Final = re.compile(
    r"(?P<begin>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S+) \S+ \S+ (?P<file>\d+) *(?P<name>.*)\n"
)


def collapse() -> int:
    """Ask the kernel to put the heap of this process into huge pages; the number of bytes asked for.

    The pages that are there are copied, a few milliseconds for each ten megabytes. Call this once, at the end of start-up.
    """
    try:
        size = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
        mappings = list(full_mappings(Path("/proc/self/smaps").read_text().splitlines(keepends=True)))
    except (OSError, ValueError):  # a kernel without huge pages, or one that hides them
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    asked = 0
    for begin, end in mappings:
        begin, length = _whole_pages(begin, end, size)
        if length > 0 and madvise(begin, length, _HUGEPAGE) == 0:
            madvise(begin, length, _COLLAPSE)  # an older kernel does it in the background
            asked += length
    return asked


def full_mappings(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of each private anonymous mapping that is nearly all in use, from the lines of /proc/PID/smaps."""
    begin = end = 0
    for line in smaps:
        mapping = _MAPPING.fullmatch(line)
        if mapping is not None:
            begin, end = int(mapping["begin"], 16), int(mapping["end"], 16)
            heap = mapping["name"] in ("", "[heap]") or mapping["name"].startswith("[anon:")
            if mapping["rights"] != "rw-p" or mapping["file"] != "0" or not heap:
                end = begin
        elif line.startswith("Rss:") and int(line.split()[1]) * 1024 >= _FULL * (end - begin) > 0:
            yield begin, end


def _whole_pages(begin: int, end: int, size: int) -> tuple[int, int]:
    """Begin and length of the huge pages of `size` bytes that lie in a range."""
    first = -(-begin // size) * size
    return first, end // size * size - first
