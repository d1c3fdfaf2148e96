"""The fast decode of e2ee frames returns the result of the full rules, or None; checked with mutated frames."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wireframes import EXAMPLES, example
from viewport_relay.protocol.decoding import decode_client, decode_daemon, decode_executor, fast_e2ee
from viewport_relay.protocol.frames import E2ee

MEMBERS = sorted(EXAMPLES["e2ee"])

numbers = st.one_of(
    st.integers(-2, 3),
    st.sampled_from(
        [2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64, 10**308, 10**309, 1.0, 2.0, 1.5, -0.0, 1e300]
    ),
)
texts = st.one_of(
    st.sampled_from(
        ["", " ", "\ufeff", "\u2028", "\x85", "a", "noise-ik", "noise-ikpsk2", "e2ee", "\\", '"', "\x7f"]
    ),
    st.text(st.characters(codec=None), max_size=6),
)
good = st.sampled_from([1, 2, 2**53, "noise-ik", "noise-ikpsk2", "e2ee", "x", "\u00e9", " y"])
values = st.one_of(
    good,
    good,
    good,
    numbers,
    texts,
    st.none(),
    st.booleans(),
    st.lists(texts, max_size=2),
    st.just({"a": {}}),
)
names = st.one_of(st.sampled_from([*MEMBERS, "extra", "", "Type", "type "]), st.text(max_size=4))
spelt = st.sampled_from(
    ["1.0", "1e0", "10e-1", "1E0", "01", "1.", "+1", "1" + "0" * 400, "1e999", "NaN", "-0", "0x1"]
)
blanks = st.sampled_from(["", " ", "\n", "\t \r", "\f", "\ufeff", "\u00a0"])


@st.composite
def members(draw: Any) -> str:
    """JSON text similar to an e2ee frame: members changed, duplicated, dropped, added, moved, escaped."""
    pairs = list(example("e2ee").items())
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["change", "double", "drop", "add", "move"]))
        place = draw(st.integers(0, max(0, len(pairs) - 1)))
        if what == "add" or not pairs:
            pairs.insert(place, (draw(names), draw(values)))
        elif what == "change":
            pairs[place] = (pairs[place][0], draw(values))
        elif what == "double":
            pairs.insert(draw(st.integers(0, len(pairs))), (pairs[place][0], draw(values)))
        elif what == "drop":
            del pairs[place]
        else:
            pairs.append(pairs.pop(place))
    ascii_only = draw(st.booleans())
    written = []
    for name, value in pairs:
        text = json.dumps(value, ensure_ascii=ascii_only)
        if type(value) is int and draw(st.integers(0, 9)) == 0:
            text = draw(spelt)
        key = json.dumps(name, ensure_ascii=ascii_only)
        if name and draw(st.integers(0, 9)) == 0:
            key = f'"\\u{ord(name[0]):04x}' + json.dumps(name[1:])[1:] if ord(name[0]) < 0x10000 else key
        written.append(f"{key}{draw(blanks) if draw(st.integers(0, 19)) == 0 else ''}:{text}")
    glue = ",\n" if draw(st.booleans()) else ","
    around = draw(blanks), draw(blanks)
    return around[0] + "{" + glue.join(written) + "}" + around[1]


@st.composite
def near(draw: Any) -> str:
    """A frame in the usual form with one or two members near a rule's limit, one perhaps duplicated."""
    frame = example("e2ee")
    for name in draw(st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=2)):
        if name in ("epoch", "seq"):
            frame[name] = draw(numbers)
        elif name in ("sessionId", "iv", "tag", "ciphertext"):
            frame[name] = draw(texts)
        else:
            frame[name] = draw(good)
    text = json.dumps(frame, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(MEMBERS))
        text = f"{text[:-1]},{json.dumps(name)}:{json.dumps(draw(st.one_of(good, numbers, texts)))}}}"
    return text


@st.composite
def damaged(draw: Any) -> bytes:
    """The bytes of such a text with up to three mutations."""
    raw = bytearray(as_bytes(draw(members())))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(raw) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                raw[place] = draw(st.sampled_from(list(b'"\\{}[],: \n\x00\x1f\x7f0')))
            case 1:
                del raw[place]
            case 2:
                raw.insert(place, draw(st.integers(0, 255)))
            case _:
                del raw[place:]
        if not raw:
            break
    return bytes(raw)


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def by_the_rules(message: bytes) -> object:
    """The result of the full rules, without the fast decode."""
    return decode_client(message, fast=False)


def is_utf8(message: bytes) -> bool:
    try:
        message.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=800, deadline=None)
@given(st.one_of(st.one_of(near(), near(), members()).map(as_bytes), damaged()))
def test_a_fast_result_equals_the_rules(message: bytes) -> None:
    fast = fast_e2ee(message)
    if fast is not None:
        assert is_utf8(message)
        assert by_the_rules(message) == E2ee(fast.profile, fast.session_id)


@settings(max_examples=200, deadline=None)
@given(st.one_of(damaged(), st.binary(max_size=80)))
def test_no_bytes_raise_an_exception(message: bytes) -> None:
    for decode in (decode_client, decode_daemon, decode_executor):
        decode(message)


def test_the_usual_form_is_decoded_fast() -> None:
    """Frames as today's peers send them: members in any order, with or without white space, any base64."""
    for frame in (example("e2ee"), example("e2ee", ciphertext="-_09AZaz+/="), example("e2ee", seq=2**53)):
        backwards = dict(reversed(list(frame.items())))
        for text in (
            json.dumps(frame),
            json.dumps(backwards, separators=(",", ":")),
            json.dumps(frame, indent=1),
        ):
            for message in (text.encode(), bytearray(text.encode()), memoryview(text.encode())):
                fast = fast_e2ee(message)
                assert fast is not None
                assert (fast.profile, fast.session_id) == ("noise-ik", "session-1")


PLACES = {"sessionId": b"session-1", "iv": b"aXYtaXYtaXYt", "tag": b"dGFnLXRhZw", "ciphertext": b"b3BhcXVl"}
NOT_UTF8 = [
    b"\x80",
    b"\xff",
    b"\xc0\x80",
    b"\xc3",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xf0\x80\x80\x80",
]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("wrong", NOT_UTF8, ids=bytes.hex)
def test_invalid_utf8_is_never_decoded_fast(name: str, wrong: bytes) -> None:
    """Invalid UTF-8 at each position of a string: no other code checks the encoding of a fast frame."""
    value = PLACES[name]
    message = json.dumps(example("e2ee")).encode()
    assert fast_e2ee(message) is not None
    for at in (0, 1, len(value) // 2, len(value)):
        damaged_value = value[:at] + wrong + value[at:]
        assert fast_e2ee(message.replace(value, damaged_value, 1)) is None
        padded = value + b"A" * 70_000 + wrong + b"A" * at
        assert fast_e2ee(message.replace(value, padded, 1)) is None


def test_a_long_non_ascii_envelope_is_left_to_the_rules() -> None:
    """Decoding it a second time would take milliseconds."""
    message = json.dumps(example("e2ee", ciphertext="\U0001f600" * 30_000), ensure_ascii=False).encode()
    assert fast_e2ee(message) is None
    assert type(decode_client(message)) is E2ee and type(decode_daemon(message)) is E2ee
    assert fast_e2ee(json.dumps(example("e2ee", ciphertext="A" * 120_000)).encode()) is not None
