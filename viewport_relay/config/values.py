"""The kinds of value that a setting can have: text of an environment variable -> value, or what the variable takes.

A `Kind` is called with the text. It raises `ValueError` whose words complete "takes …", or `Unsuitable` whose words say
what is wrong with this text and give the right form. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from attrs import frozen

from viewport_relay.reasons import Level

T_co = TypeVar("T_co", covariant=True)
Word = TypeVar("Word", bound=str)

Mode = Literal["dev", "staging", "prod"]

#: `workers` of RELAY_WORKERS=auto until the loader has asked the machine.
AUTO_WORKERS: Final = 0

_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_MILLISECONDS: Final = {
    "ms": 1,
    "s": 1000,
    "sec": 1000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
_BYTES: Final = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_BYTES.update({f"{letter}i{end}": _BYTES[letter] for letter in "kmg" for end in ("", "b")})


class Unsuitable(ValueError):
    """A text that a setting cannot take; the words say why and give the right form."""


@frozen(eq=False)
class Kind(Generic[T_co]):
    """One kind of value: `takes` describes it in the reference, `read` makes the value or raises ValueError."""

    takes: str
    read: Callable[[str], T_co]

    def __call__(self, text: str) -> T_co:
        try:
            return self.read(text)
        except Unsuitable:
            raise
        except ValueError:
            raise ValueError(self.takes) from None


# -- plain ones --------------------------------------------------------------------------------------------


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _text(text: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise ValueError
    return text


def _header_value(text: str) -> str:
    if not all(0x20 <= ord(c) < 0x7F for c in text):
        raise Unsuitable(
            "it goes into an HTTP header, which takes printable ASCII characters only: no line end, no letter beyond ASCII"
        )
    return text


def some(entries: Iterable[T_co]) -> tuple[T_co, ...]:
    """The entries of a list that was given. Raises Unsuitable when there are none: it would mean "not set"."""
    found = tuple(entries)
    if not found:
        raise Unsuitable("there is no entry in it: write one, or leave it empty")
    return found


def _token_list(text: str) -> tuple[str, ...]:
    return some(word for word in (part.strip() for part in _header_value(text).split(",")) if word)


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read


BOOLEAN = Kind("one of 0 1 false true no yes off on", _boolean)
TEXT = Kind("text without control characters", _text)
#: Paths of files that must be readable at start; no other user may read those of the second kind.
FILE = Kind("text without control characters", _text)
KEY_FILE = Kind("text without control characters", _text)
HEADER_VALUE = Kind("printable ASCII characters", _header_value)
TOKENS = Kind("printable ASCII characters; several tokens with commas between", _token_list)
RELAY_ID = Kind("1 to 128 characters of A-Z a-z 0-9 . _ : -", _matching(r"[A-Za-z0-9._:-]{1,128}"))


def choice(*words: Word) -> Kind[Word]:
    """One of some words, in any case."""

    def read(text: str) -> Word:
        for word in words:
            if text.lower() == word:
                return word
        raise ValueError

    return Kind("one of " + " ".join(words), read)


MODE: Kind[Mode] = choice("dev", "staging", "prod")
LOG_LEVEL: Kind[Level] = choice("info", "warn", "error")


# -- numbers -----------------------------------------------------------------------------------------------


def _whole(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        plain = re.sub(r"(?<=[0-9])[_,' ](?=[0-9]{3})", "", text)
        if plain != text and re.fullmatch(r"[0-9]{1,19}", plain) and low <= int(plain) <= high:
            raise Unsuitable(f"write it without separators: {plain}")
        raise ValueError
    if not low <= int(text) <= high:
        raise ValueError
    return int(text)


def integer(low: int, high: int) -> Kind[int]:
    """A whole number within bounds, both included."""
    return Kind(f"a whole number from {low} to {high}", lambda text: _whole(text, low, high))


def _measured(text: str, units: dict[str, int]) -> int | None:
    """The sum of parts such as `1m30s` in the smallest unit; None if the text is no such thing."""
    parts = re.findall(r"([0-9]{1,15})\s*([A-Za-z]+)\s*", text)
    if not parts or "".join(n + u for n, u in parts) != re.sub(r"\s+", "", text):
        return None
    if any(unit.lower() not in units for _, unit in parts):
        return None
    return sum(int(number) * units[unit.lower()] for number, unit in parts)


def _measure(low: int, high: int, units: dict[str, int], per: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        total = _measured(text, units)
        if total is None:
            return _whole(text, low, high)
        if total % per or not low <= total // per <= high:
            raise ValueError
        return total // per

    return read


def milliseconds(low: int = 1, high: int = 86_400_000) -> Kind[int]:
    """A time in milliseconds; `10s`, `5m` and `1m30s` are read too."""
    takes = f"milliseconds from {low} to {high}, or with a unit: 500ms 10s 5m 1h"
    return Kind(takes, _measure(low, high, _MILLISECONDS, 1))


def seconds(low: int, high: int) -> Kind[int]:
    """A time in whole seconds; `10s`, `5m` and `1h` are read too."""
    takes = f"seconds from {low} to {high}, or with a unit: 10s 5m 1h"
    return Kind(takes, _measure(low, high, _MILLISECONDS, 1000))


def size(low: int, high: int) -> Kind[int]:
    """A number of bytes; `64KiB`, `4MiB` and `1M` are read too, as multiples of 1024."""
    takes = f"bytes from {low} to {high}, or with a unit: 64KiB 4MiB (K, M, G mean the same: 1M is 1048576)"
    return Kind(takes, _measure(low, high, _BYTES, 1))


def _workers(text: str) -> int:
    return AUTO_WORKERS if text.lower() == "auto" else _whole(text, 1, 256)


COUNT = integer(0, 1_000_000_000)
POSITIVE = integer(1, 1_000_000_000)
WORKERS = Kind("auto, or a whole number from 1 to 256", _workers)


# -- URLs --------------------------------------------------------------------------------------------------


def url(*schemes: str) -> Kind[str]:
    """A URL with a host and one of these schemes; a lone trailing slash is dropped."""

    def read(text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in schemes or not parts.hostname or parts.port == 0:
            raise ValueError
        if re.search(r"\s", text):
            raise Unsuitable("there is white space in it")
        return text.rstrip("/") if parts.path in {"", "/"} and not parts.query else text

    return Kind("a URL that starts with " + " or ".join(f"{s}://" for s in schemes), read)


def base_url(*schemes: str) -> Kind[str]:
    """A URL that paths are added to, without query and fragment; trailing slashes are dropped."""
    plain = url(*schemes)

    def read(text: str) -> str:
        found = plain.read(text)
        if "?" in found or "#" in found:
            raise Unsuitable("a path is added to it: leave out what begins with ? or #")
        return found.rstrip("/")

    return Kind(plain.takes, read)
