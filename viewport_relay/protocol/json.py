"""JSON (RFC 8259) as JavaScript's JSON.parse reads it: whole values, and some members of an object.

`parse_json` builds a whole value, for documents up to 256 KiB. `Members` is for frames, which may be as long as
RELAY_FRAME_MAX_BYTES: it checks the whole text and builds only the members that the caller names. Both accept escaped
keys, duplicate keys (the last one wins), lone surrogate escapes and numbers beyond a double's range. Both refuse `NaN`,
`Infinity`, a byte order mark, raw control characters and trailing text.
"""

from __future__ import annotations

import json
import re
from codecs import utf_8_decode
from typing import Any, Final, TypeAlias

import msgspec

#: A message as received.
Message: TypeAlias = bytes | bytearray | memoryview

#: Characters that String.prototype.trim removes (ECMAScript WhiteSpace and LineTerminator).
JS_WHITE_SPACE: Final = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000\ufeff"
)

#: The least integer that a double rounds to infinity (IEEE 754, round half to even).
_BEYOND_DOUBLE: Final = 2**1024 - 2**970
_MOST_DIGITS: Final = 309  # of an integer below _BEYOND_DOUBLE


#: Bytes that are checked at a time: Python would move a long text to a larger place for its first wide character.
_PIECE: Final = 16_384


def is_utf8(message: Message) -> bool:
    """Whether a message is text (RFC 6455 section 8.1)."""
    if not isinstance(message, memoryview) and message.isascii():
        return True
    at, end = 0, len(message)
    view = memoryview(message)
    try:
        while at < end:
            at += utf_8_decode(view[at : at + _PIECE], "strict", at + _PIECE >= end)[1]
    except UnicodeDecodeError:
        return False
    return True


_BLANKS: Final = re.compile(f"[{JS_WHITE_SPACE}]*")


def _blanks(text: str) -> int:
    """The number of blanks that the text begins with. `str.strip` with so many characters would take ten times as long."""
    found = _BLANKS.match(text)
    assert found is not None
    return found.end()


def is_blank(text: str) -> bool:
    """Whether `text.trim()` of JavaScript would be empty."""
    return _blanks(text) == len(text)


def trimmed(text: str) -> str:
    """`text.trim()` of JavaScript."""
    text = text[_blanks(text) :]
    return text[: len(text) - _blanks(text[::-1])] if is_blank(text[-1:]) else text


def as_integer(value: object) -> int | None:
    """The integer that JavaScript's Number.isInteger would see, or None (True, "1", 1.5 and 1e999 are none)."""
    if type(value) is int:
        return value if -_BEYOND_DOUBLE < value < _BEYOND_DOUBLE else None
    if type(value) is float and value.is_integer():
        return int(value)
    return None


# -- whole values ------------------------------------------------------------------------------------------------


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    # More digits are beyond a double, and int() of very many would be slow.
    return int(digits) if len(digits) <= _MOST_DIGITS else float("inf")


_lenient: Final = json.JSONDecoder(parse_constant=_no_constant)
_lenient_of_long_numbers: Final = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)
_long_number: Final = re.compile(rf"[0-9]{{{_MOST_DIGITS + 1}}}")


class TooManyComposites(ValueError):
    """A JSON text with more arrays and objects than its reader takes."""


def parse_json(text: str, *, most_composites: int | None = None) -> Any:
    """The value of a whole JSON text. Raises ValueError for what is not JSON, RecursionError for too deep nesting.

    With `most_composites`, a text that may have more arrays and objects than that is refused with TooManyComposites before
    it is parsed: brackets in strings count too.
    """
    if most_composites is not None and text.count("[") + text.count("{") > most_composites:
        raise TooManyComposites(f"more than {most_composites} arrays and objects")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # msgspec also refuses lone surrogates and numbers beyond its ranges: the standard library takes them.
        decoder = _lenient_of_long_numbers if _long_number.search(text) else _lenient
        return decoder.decode(text)


# -- some members of an object -----------------------------------------------------------------------------------

_ABSENT: Final = msgspec.Raw(b"")
_string: Final = msgspec.json.Decoder(str).decode
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_LITERALS: Final = {ord("t"): True, ord("f"): False, ord("n"): None}
_QUOTE, _BRACE, _BRACKET = ord('"'), ord("{"), ord("[")

#: Escapes of surrogates begin like these, and how they are made readable.
_SURROGATES: Final = ((b"\\ud", b"\\ue"), (b"\\uD", b"\\uE"))

#: Bytes of a string from which on an opaque member is not decoded, and what stands for it: longer than any limit.
_OPAQUE_BYTES: Final = 4096
_LONG_TEXT: Final = "x" * _OPAQUE_BYTES

#: The beginning of a string that is not blank: some escapes, or bytes that blanks consist of, and a byte that begins neither.
_NOT_BLANK: Final = re.compile(
    rb'"(?:(?:\\[tnfr]|\\u[0-9A-Fa-f]{4}){0,64}|[ \x80-\xbf\xc2\xe1-\xe3\xef]{0,4096}+)[^ "\\\x80-\xbf\xc2\xe1-\xe3\xef]'
)

#: Places where a string with surrogate escapes is looked for.
_MOST_PLACES: Final = 64


class Composite:
    """An array or object that is the value of a member; its own members are built when asked for."""

    __slots__ = ("_raw", "is_object")

    def __init__(self, raw: msgspec.Raw) -> None:
        self._raw = raw
        self.is_object = memoryview(raw)[0] == _BRACE

    def __len__(self) -> int:
        """Bytes of its text."""
        return memoryview(self._raw).nbytes

    def strings(self) -> dict[str, str]:
        """The object's members whose value is a string. Surrogates are other characters beyond ASCII here."""
        return {
            name: _string(raw) for name, raw in _object(self._raw).items() if memoryview(raw)[0] == _QUOTE
        }


class Text:
    """The text of a message whose members are read. Its JSON is checked by the first `Members.of`."""

    __slots__ = ("_original", "readable")

    def __init__(self, message: bytes) -> None:
        self._original = message
        #: What msgspec reads. It refuses lone surrogate escapes, so each of the block D000-DFFF is another one of
        #: the same length here. No known member, and none that differs in such a character alone, becomes another.
        self.readable = message
        if b"\\" in message:  # finding one byte is quick
            for escape, other in _SURROGATES:
                if escape[1:] in message:
                    self.readable = self.readable.replace(escape, other)

    def value(self, raw: msgspec.Raw) -> Any:
        """The value of a member, `raw` being its part of `readable`. Raises ValueError where it cannot be determined."""
        first = memoryview(raw)[0]
        if first == _QUOTE:
            return self._string(raw)
        if first in (_BRACE, _BRACKET):
            return Composite(raw)
        if first in _LITERALS:
            return _LITERALS[first]
        digits = bytes(raw).decode("ascii")
        return _integer(digits) if digits.lstrip("-").isdigit() else float(digits)

    def opaque(self, raw: msgspec.Raw) -> Any:
        """The value of a member of which a long string is not decoded: it becomes "" if it is blank, else a fixed text."""
        text = memoryview(raw)
        if text[0] != _QUOTE or len(text) <= _OPAQUE_BYTES:
            return self.value(raw)
        return "" if not _NOT_BLANK.match(text) and is_blank(_string(raw)) else _LONG_TEXT

    def _string(self, raw: msgspec.Raw) -> str:
        if self.readable is self._original:
            return _string(raw)
        shown = bytes(raw)
        if b"\\ue" not in shown and b"\\uE" not in shown:
            return _string(raw)
        # The original is as long, at the same place. Which place is not known where the same part stands several
        # times; then all have the same original, unless an attacker made the message so that they differ.
        originals = set()
        at = self.readable.find(shown)
        for _ in range(_MOST_PLACES):
            originals.add(self._original[at : at + len(shown)])
            at = self.readable.find(shown, at + 1)
            if at < 0 or len(originals) > 1:
                break
        if at >= 0 or len(originals) > 1:
            raise ValueError("ambiguous surrogate escapes")
        return str(_lenient.decode(originals.pop().decode()))


class Members:
    """Reads some members of an object and checks the text of the others without building them."""

    def __init__(self, *names: str, opaque: tuple[str, ...] = ()) -> None:
        """`opaque` members: those with a short text, or of which only type and blankness matter; see `Text.opaque`."""
        self._readers = dict.fromkeys(names, Text.value) | dict.fromkeys(opaque, Text.opaque)
        fields = [(name, msgspec.Raw, _ABSENT) for name in self._readers]
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Members", fields, gc=False)).decode

    def of(self, text: Text) -> dict[str, Any] | None:
        """The members that the object has, by name; None when the text is not the JSON of one object.

        Strings, numbers and literals are Python's, arrays and objects are `Composite`.
        """
        try:
            found = self._decode(text.readable)
            return {
                name: read(text, raw)
                for name, read in self._readers.items()
                if (raw := getattr(found, name)) is not _ABSENT
            }
        except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
            return None
