"""Unmasking what peers send (RFC 6455 section 5.3), in place, and in C where Autobahn's masker is installed.

Autobahn ships a SIMD masker as a C library. Its entry points are not a public interface, so they are tried out
once at import; when they are missing or do something else, plain Python does the same, slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

#: Unmasks `length` bytes at `start` of a buffer with the four bytes before `start`.
Unmask: TypeAlias = Callable[[int, int], None]


def in_python(buffer: bytearray) -> Unmask:
    """An unmasker for `buffer`, without C."""

    def unmask(start: int, length: int) -> None:
        stop = start + length
        key = bytes(buffer[start - 4 : start]) * (length // 4 + 1)
        data = int.from_bytes(buffer[start:stop], "little") ^ int.from_bytes(key[:length], "little")
        buffer[start:stop] = data.to_bytes(length, "little")

    return unmask


def _in_c(ffi: Any, lib: Any) -> Callable[[bytearray], Unmask]:
    new, process, free = lib.nvx_xormask_new, lib.nvx_xormask_process, lib.nvx_xormask_free

    def unmasker(buffer: bytearray) -> Unmask:
        base = ffi.from_buffer("uint8_t[]", buffer)  # keeps the buffer alive, and its size fixed
        # Where nearly every frame starts, at the beginning of the buffer: making a pointer costs as much as unmasking.
        near = [(base + (start - 4), base + start) for start in range(4, 15)]
        most = len(buffer) - 14

        def unmask(start: int, length: int) -> None:
            if start < 15 and length <= most:
                key, data = near[start - 4]
            else:  # slices beyond the buffer raise IndexError
                key, data = base[start - 4 : start], base[start : start + length]
            masker = new(key)
            if not masker:
                raise MemoryError
            process(masker, data, length)
            free(masker)

        return unmask

    return unmasker


def _works(make: Callable[[bytearray], Unmask]) -> bool:
    """Whether an implementation agrees with the plain one, at every alignment."""
    sample = bytes(range(256)) * 2
    for start in range(4, 24):
        for length in (0, 1, 3, 16, 63, 300):
            expected, got = bytearray(sample), bytearray(sample)
            in_python(expected)(start, length)
            make(got)(start, length)
            if expected != got:
                return False
    return True


def _choose() -> Callable[[bytearray], Unmask]:
    try:
        from _nvx_xormasker import ffi, lib

        native = _in_c(ffi, lib)
    except (ImportError, AttributeError):
        return in_python
    return native if _works(native) else in_python


#: Makes an unmasker for a buffer: NVX's in C where it loads and works, else Python's.
unmasker: Final = _choose()
