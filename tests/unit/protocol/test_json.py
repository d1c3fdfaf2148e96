"""JSON with JavaScript's rules: integers, whole values, and `Members`, which reads members without parsing the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewport_relay.protocol.json import (
    JS_WHITE_SPACE,
    Composite,
    Members,
    Text,
    as_integer,
    is_utf8,
    parse_json,
)


@pytest.mark.parametrize(
    ("value", "integer"),
    [
        (1, 1),
        (1.0, 1),
        (-0.0, 0),
        (2**1023, 2**1023),
        (2**1024 - 2**970 - 1, 2**1024 - 2**970 - 1),  # rounds down to the largest double
        (2**1024 - 2**970, None),
        (-(10**309), None),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        (False, None),
        ("1", None),
        (None, None),
        (1.5, None),
        ([1], None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_which_values_are_integers(value: object, integer: int | None) -> None:
    assert as_integer(value) == integer
    assert type(as_integer(value)) is type(integer)


def test_many_digits_are_read_without_arithmetic() -> None:
    assert parse_json("1" + "0" * 1_000_000) == float("inf")
    assert parse_json("-" + "9" * 1_000_000) in (float("inf"), float("-inf"))


#: text -> value; "refused" where JSON.parse throws
VALUES: list[tuple[str, Any]] = [
    ('{"a":1,"a":[2,{}]}', {"a": [2, {}]}),
    ('"\\ud800"', "\ud800"),
    ('"\ud800"', "\ud800"),
    ('"\\ud83d\\ude00"', "\U0001f600"),
    ("1e999", float("inf")),
    ("9" * 5000, float("inf")),
    ("[12345678901234567890123]", [12345678901234567890123]),
    ("1.0", 1.0),
    ("NaN", "refused"),
    ("[Infinity]", "refused"),
    ("\ufeff{}", "refused"),
    ('"\x01"', "refused"),
    ("{} {}", "refused"),
    ("[1,]", "refused"),
    ('{"a":"\\ud800","b":NaN}', "refused"),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=lambda value: ascii(value)[:30])
def test_a_value_is_read_whole_or_refused(text: str, value: Any) -> None:
    if value == "refused":
        with pytest.raises(ValueError):
            parse_json(text)
    else:
        found = parse_json(text)
        assert found == value
        assert type(found) is type(value)


# -- Members, compared with the standard library -----------------------------------------------------------------

NAMES = ("a", "b", "type")
READER = Members(*NAMES)

strings = st.text(st.sampled_from('a\\"/\n\x7f \u00e9\ue800\ud800\udc00\U0001f600'), max_size=6)
numbers = st.sampled_from(["0", "-0", "1", "1.0", "1e0", "1e999", "-1.5", "9" * 400, "12345678901234567890"])


@st.composite
def written(draw: Any, text: str) -> str:
    """A JSON string literal of this text, each character literal or escaped."""
    units = []
    for ch in text:
        plain = ch not in '"\\' and ch >= " " and not "\ud800" <= ch <= "\udfff"
        if plain and draw(st.booleans()):
            units.append(ch)
        elif draw(st.booleans()):
            units.append(json.dumps(ch)[1:-1])
        else:
            raw = ch.encode("utf-16-be", "surrogatepass").hex()
            units += [f"\\u{raw[at : at + 4]}" for at in range(0, len(raw), 4)]
            if draw(st.booleans()):
                units[-1] = "\\u" + units[-1][2:].upper()
    return '"' + "".join(units) + '"'


values = st.recursive(
    st.one_of(numbers, strings.flatmap(written), st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(strings.flatmap(written), inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{name}:{value}" for name, value in items) + "}"
        ),
    ),
    max_leaves=6,
)


@st.composite
def objects(draw: Any) -> bytes:
    """JSON text of an object with known, unknown and duplicate names, sometimes damaged."""
    pairs = []
    for _ in range(draw(st.integers(0, 6))):
        name = draw(st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), strings).flatmap(written))
        pairs.append(f"{name}:{draw(values)}")
    raw = bytearray(("{" + ", ".join(pairs) + "}").encode("utf-8"))
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(raw) - 1))
        raw[place : place + 1] = draw(st.sampled_from([b"", b"\\", b'"', b"u", b"\x00", b"}", b"d", b"1"]))
    return bytes(raw)


def shown(value: Any) -> Any:
    """A value in the form of `Members`: objects and arrays without their content."""
    if isinstance(value, Composite):
        return "object" if value.is_object else "array"
    if isinstance(value, dict | list):
        return "object" if isinstance(value, dict) else "array"
    return (type(value), value)


def by_the_library(message: bytes) -> dict[str, Any] | None:
    """The expected members from a whole parse; the tables above cover `parse_json`."""
    try:
        found = json.loads(
            message.decode(),
            parse_int=lambda digits: int(digits) if len(digits) < 310 else float("inf"),
            parse_constant=lambda name: 1 / 0,
        )
    except (ValueError, ZeroDivisionError):
        return None
    return {name: shown(found[name]) for name in NAMES if name in found} if isinstance(found, dict) else None


@settings(max_examples=1500, deadline=None)
@given(objects())
def test_members_equal_those_of_a_whole_parse(message: bytes) -> None:
    try:
        message.decode()
    except UnicodeDecodeError:
        return  # callers pass valid UTF-8 only
    found = READER.of(Text(message))
    expected = by_the_library(message)
    if found is None and expected is not None and b"\\ue8" in message.lower():
        return  # ambiguous on purpose, see the next test
    assert (None if found is None else {name: shown(value) for name, value in found.items()}) == expected


def test_an_ambiguous_surrogate_is_refused() -> None:
    """The one kind of text that JSON.parse accepts and `Members` refuses; only an attacker writes it."""
    assert READER.of(Text(b'{"a":"\\ud800","x":"\\ue800"}')) is None
    assert READER.of(Text(b'{"a":"\\ud800","x":"\\ud800"}')) == {"a": "\ud800"}
    assert READER.of(Text(b'{"a":"\\ue800","x":"\\ue800"}')) == {"a": "\ue800"}
    many = b'{"x":[' + b'"\\ud800",' * 100 + b'1],"a":"\\ud800"}'
    assert READER.of(Text(many)) is None


def test_strings_of_an_object() -> None:
    found = READER.of(Text(b'{"a":{"x":"1","y":2,"z":["3"],"x":"4"}}'))
    assert found is not None
    assert found["a"].strings() == {"x": "4"}


# -- long messages -------------------------------------------------------------------------------------------------


@given(
    st.lists(st.text(max_size=20).map(str.encode) | st.binary(max_size=4), max_size=6),
    st.integers(16_384 - 8, 16_384 + 8),
    st.sampled_from([bytes, bytearray, memoryview]),
)
@settings(deadline=None, max_examples=300)
def test_utf8_check_equals_python_at_any_chunk_boundary(
    parts: list[bytes], size: int, kind: type[Any]
) -> None:
    message = b"a" * size + b"".join(parts) + "\u00e9\U0001f600".encode() * 5000
    for wrong in (message, message[:-1], message[:-3]):
        try:
            wrong.decode()
            expected = True
        except UnicodeDecodeError:
            expected = False
        assert is_utf8(kind(wrong)) is expected


def blanks() -> list[str]:
    """Beginnings of JSON strings: white space and similar characters."""
    plain = [char for char in JS_WHITE_SPACE if char >= " "]
    escaped = [f"\\u{ord(char):04x}" for char in JS_WHITE_SPACE] + ["\\t", "\\n", "\\r", "\\f"]
    return [
        "",
        *plain,
        *escaped,
        "\u2030",
        "\u00a1",
        "\\b",
        "\\u0041",
        '\\"',
        "\\\\",
        "x",
        "\u6f22",
        "\U0001f600",
    ]


@pytest.mark.parametrize("start", blanks())
def test_an_opaque_member_is_blank_if_and_only_if_its_string_is(start: str) -> None:
    for times in (1, 63, 64, 65, 3000):
        for rest in ("", " ", "x", "\U0001f600", "\\u0020", '\\"'):
            text = f'{{"a":"{start * times}{rest * 4100}"}}'
            found = Members(opaque=("a",)).of(Text(text.encode()))
            assert found is not None
            blank = not json.loads(text)["a"].strip(JS_WHITE_SPACE)
            assert (not found["a"].strip(JS_WHITE_SPACE)) is blank, (times, rest)


@pytest.mark.parametrize(
    "value", ["7" * 5000, "[" + "1," * 3000 + "1]", "{" + '"a":1,' * 900 + '"b":2}', "null"]
)
def test_an_opaque_member_that_is_no_string_keeps_its_type(value: str) -> None:
    text = Text(f'{{"a":{value}}}'.encode())
    opaque, plain = Members(opaque=("a",)).of(text), Members("a").of(text)
    assert opaque is not None and plain is not None
    assert type(opaque["a"]) is type(plain["a"]) is not str
