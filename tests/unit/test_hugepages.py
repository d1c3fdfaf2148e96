"""Huge pages: which memory is asked for, and that the kernel is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from viewport_relay.hugepages import full_mappings

#: A process that fills 32 MB, asks, and prints the bytes asked for and the kilobytes of all mappings with the advice.
_PROCESS = """
import re
from viewport_relay.hugepages import collapse
filled = [bytes(1000) for _ in range(32_000)]
asked = collapse()
advised = 0
for line in open("/proc/self/smaps"):
    if line.startswith("Size:"):
        size = int(line.split()[1])
    elif line.startswith("VmFlags:") and "hg" in line.split():
        advised += size
print(asked, advised * 1024)
"""


def test_the_kernel_is_asked_for_the_heap() -> None:
    asked, advised = map(int, subprocess.check_output([sys.executable, "-c", _PROCESS]).split())
    assert asked == advised
    if Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").exists():
        assert asked >= 16 << 20
    else:
        assert asked == 0


def _mapping(head: str, size: int, rss: int) -> list[str]:
    return [f"{head}\n", f"Size: {size:14} kB\n", f"Rss: {rss:15} kB\n", f"Pss: {rss:15} kB\n"]


@pytest.mark.parametrize(
    ("head", "rss", "taken"),
    [
        ("01e00000-02a00000 rw-p 00000000 00:00 0                                  [heap]", 12288, True),
        ("01e00000-02a00000 rw-p 00000000 00:00 0", 12288, True),
        ("01e00000-02a00000 rw-p 00000000 00:00 0 ", 9216, True),
        ("01e00000-02a00000 rw-p 00000000 00:00 0                 [anon:cpython:pymalloc]", 12288, True),
        ("01e00000-02a00000 rw-p 00000000 00:00 0 ", 9212, False),  # less than three quarters in use
        ("01e00000-02a00000 rw-p 00000000 00:00 0                                 [stack]", 12288, False),
        ("01e00000-02a00000 r-xp 00000000 00:00 0 ", 12288, False),
        ("01e00000-02a00000 rw-s 00000000 00:00 0 ", 12288, False),
        ("01e00000-02a00000 rw-p 00001000 fe:00 260811             /usr/lib/libpython3.so.1", 12288, False),
        ("01e00000-02a00000 rw-p 00000000 00:00 0 ", 0, False),
    ],
)
def test_private_memory_that_is_nearly_all_in_use_is_taken(head: str, rss: int, taken: bool) -> None:
    other = _mapping(
        "7f0000000000-7f0000c00000 r--p 00000000 fe:00 7   /usr/lib/locale/C.utf8/LC_CTYPE", 12288, 12288
    )
    lines = [*other, *_mapping(head, 12288, rss), *other]
    assert list(full_mappings(lines)) == ([(0x1E00000, 0x2A00000)] if taken else [])
