"""Frames: the table of section 3 of the wire protocol, row by row, with JavaScript's JSON rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.wireframes import CLIENT_FRAMES, DAEMON_FRAMES, EXAMPLES, WORKER_FRAMES, encoded, example
from viewport_relay.protocol.decoding import decode_client, decode_daemon, decode_executor
from viewport_relay.protocol.frames import (
    E2ee,
    ExecutorRequest,
    KeyExchangeInit,
    KeyExchangeResponse,
    KeyUpdateRequired,
    PairingRequest,
    PairingResponse,
    SessionEvent,
    Subscribe,
    Unsubscribe,
    ViewerPresence,
)

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "client": decode_client,
    "daemon": decode_daemon,
    "worker": decode_executor,
}
SENDERS = {"client": CLIENT_FRAMES, "daemon": DAEMON_FRAMES, "worker": WORKER_FRAMES}

#: frame -> decoded type and the members that routing reads
DECODED: dict[str, tuple[type, dict[str, object]]] = {
    "e2ee": (E2ee, {"profile": "noise-ik", "session_id": "session-1"}),
    "init v3": (KeyExchangeInit, {"profile": "noise-ik", "request_id": "request-1", "version": 3}),
    "init v2": (KeyExchangeInit, {"profile": "noise-ik", "request_id": "request-1", "version": 2}),
    "response v3": (
        KeyExchangeResponse,
        {"profile": "noise-ik", "request_id": "request-1", "session_id": "session-1", "epoch": 1},
    ),
    "response v2": (
        KeyExchangeResponse,
        {"profile": "noise-ik", "request_id": "request-1", "session_id": "session-1", "epoch": 1},
    ),
    "key update": (KeyUpdateRequired, {"session_id": "session-1"}),
    "offer request": (PairingRequest, {"request_id": "request-1"}),
    "redeem request": (PairingRequest, {"request_id": "request-1"}),
    "offer response": (PairingResponse, {"request_id": "request-1"}),
    "offer failure": (PairingResponse, {"request_id": "request-1"}),
    "redeem response": (PairingResponse, {"request_id": "request-1"}),
    "redeem failure": (PairingResponse, {"request_id": "request-1"}),
    "subscribe": (Subscribe, {"channel": "agent-session:alpha", "after_sequence": 0}),
    "unsubscribe": (Unsubscribe, {"channel": "agent-session:alpha"}),
    "presence": (ViewerPresence, {"channel": "agent-session:alpha", "user_id": "user-1"}),
    "session event": (SessionEvent, {"channel": "agent-session:alpha"}),
    "worker request": (
        ExecutorRequest,
        {
            "request_id": "request-1",
            "method": "GET",
            "path": "/api/runtime/workspaces/w/managed-executors/x",
            "headers": {},
            "body": None,
        },
    ),
}


def is_decoded(frame: object, kind: type, **members: object) -> bool:
    """True if the frame has this type and these members."""
    return type(frame) is kind and {name: getattr(frame, name) for name in members} == members


def decode(role: str, name: str, **changes: Any) -> Any:
    return DECODERS[role](encoded(name, **changes))


def roles_of(name: str) -> list[str]:
    return [role for role, names in SENDERS.items() if name in names]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("role", DECODERS)
def test_each_frame_is_valid_for_its_sender_only(role: str, name: str) -> None:
    frame = decode(role, name)
    if name not in SENDERS[role]:
        assert frame is None
        return
    kind, members = DECODED[name]
    assert is_decoded(frame, kind, **members)
    if role != "worker":
        assert DECODERS[role](memoryview(encoded(name))) == frame  # type: ignore[arg-type]


# -- each member: missing, null, of a wrong type, blank -----------------------------------------------------

FILLED = "a string that is not blank"
TEXT = "a string"
POSITIVE = "an integer from 1"
NUMBER = "a number"
EXACT = "one value only"

#: frame -> member -> rule for its value
MEMBERS: dict[str, dict[str, str]] = {
    "e2ee": {
        **dict.fromkeys(("type", "version", "profile"), EXACT),
        **dict.fromkeys(("sessionId", "iv", "tag", "ciphertext"), FILLED),
        **dict.fromkeys(("epoch", "seq"), POSITIVE),
    },
    "init v3": {
        **dict.fromkeys(("type", "version", "profile"), EXACT),
        **dict.fromkeys(("requestId", "clientEphemeralPublicKey", "encryptedClientStatic"), TEXT),
    },
    "init v2": {
        **dict.fromkeys(("type", "version", "profile"), EXACT),
        **dict.fromkeys(("requestId", "clientPublicKey", "clientNonce", "clientProof"), TEXT),
    },
    "response v3": {
        **dict.fromkeys(("type", "version", "profile"), EXACT),
        **dict.fromkeys(("requestId", "sessionId"), FILLED),
        **dict.fromkeys(("daemonPublicKey", "daemonEphemeralPublicKey", "encryptedMetadata", "proof"), TEXT),
        "epoch": POSITIVE,
    },
    "response v2": {
        **dict.fromkeys(("type", "version", "profile"), EXACT),
        **dict.fromkeys(("requestId", "sessionId"), FILLED),
        **dict.fromkeys(("daemonNonce", "proof"), TEXT),
        "epoch": NUMBER,
    },
    "key update": {"type": EXACT, "sessionId": FILLED, "nextEpoch": NUMBER},
    "offer request": {"type": EXACT, **dict.fromkeys(("requestId", "clientChannelPublicKey"), FILLED)},
    "redeem request": {
        "type": EXACT,
        **dict.fromkeys(("requestId", "offerId", "encIv", "encTag", "encCiphertext"), FILLED),
    },
    "offer response": {
        **dict.fromkeys(("type", "ok"), EXACT),
        **dict.fromkeys(("requestId", "daemonChannelPublicKey", "encIv", "encTag", "encCiphertext"), FILLED),
    },
    "offer failure": {"type": EXACT, **dict.fromkeys(("requestId", "errorCode"), FILLED)},
    "redeem response": {**dict.fromkeys(("type", "ok"), EXACT), "requestId": FILLED},
    "redeem failure": {"type": EXACT, **dict.fromkeys(("requestId", "errorCode"), FILLED)},
    "subscribe": {"type": EXACT, "channel": FILLED},
    "unsubscribe": {"type": EXACT, "channel": FILLED},
    "presence": {"type": EXACT, "channel": FILLED, "action": EXACT, "userId": FILLED},
    "session event": {"schema": EXACT, "channel": FILLED, "event": EXACT},
    "worker request": {"type": EXACT, "requestId": FILLED, "method": EXACT, "path": EXACT},
}

NOT_A_STRING: tuple[Any, ...] = (..., None, 5, True, ["a"], {"a": "b"})
BLANK = ("", " ", "\t\n\r", "\u00a0\ufeff", "\u2028\u3000")
NOT_A_NUMBER: tuple[Any, ...] = (..., None, "1", True, False, [1], {})
NOT_AN_INTEGER: tuple[Any, ...] = (*NOT_A_NUMBER, 1.5, 0, -1, 0.0, 1e-9)


def wrong_members() -> Iterator[Any]:
    for name, members in MEMBERS.items():
        for member, rule in members.items():
            values: tuple[Any, ...]
            match rule:
                case "a string that is not blank":
                    values = (*NOT_A_STRING, *BLANK)
                case "a string":
                    values = NOT_A_STRING
                case "an integer from 1":
                    values = NOT_AN_INTEGER
                case "a number":
                    values = NOT_A_NUMBER
                case _:
                    values = (..., None, "", "other", 7, [], ["e2ee"])
            for value in values:
                yield pytest.param(name, member, value, id=f"{name}: {member}={value!r}")


@pytest.mark.parametrize(("name", "member", "value"), list(wrong_members()))
def test_a_wrong_member_is_refused(name: str, member: str, value: Any) -> None:
    for role in roles_of(name):
        assert decode(role, name, **{member: value}) is None


def texts_that_may_be_blank() -> Iterator[Any]:
    for name, members in MEMBERS.items():
        for member in (m for m, rule in members.items() if rule == TEXT):
            yield pytest.param(name, member, id=f"{name}: {member}")


@pytest.mark.parametrize(("name", "member"), list(texts_that_may_be_blank()))
@pytest.mark.parametrize("value", ["", "  "])
def test_other_key_exchange_strings_may_be_blank(name: str, member: str, value: str) -> None:
    assert decode(roles_of(name)[0], name, **{member: value}) is not None


MORE: list[tuple[str, dict[str, Any], bool]] = [
    # name, changes, valid
    ("e2ee", {"profile": "noise-ikpsk2"}, True),
    ("e2ee", {"profile": "noise-xx"}, False),
    ("e2ee", {"profile": "NOISE-IK"}, False),
    ("e2ee", {"version": 1}, False),
    ("e2ee", {"version": 3}, False),
    ("e2ee", {"version": "2"}, False),
    ("e2ee", {"version": 2.0}, True),
    ("e2ee", {"type": "E2EE"}, False),
    ("init v3", {"version": 4}, False),
    ("init v3", {"version": 2}, False),
    ("init v2", {"version": 3}, False),
    ("init v2", {"version": 1}, False),
    ("init v3", {"profile": "noise-ikpsk2"}, False),
    ("init v3", {"profile": "noise-ikpsk2", "pairingPeerId": "peer"}, True),
    ("init v3", {"profile": "noise-ikpsk2", "pairingPeerId": " "}, False),
    ("init v3", {"profile": "noise-ikpsk2", "pairingPeerId": None}, False),
    ("init v2", {"profile": "noise-ikpsk2"}, False),
    ("init v2", {"profile": "noise-ikpsk2", "pairingPeerId": "peer"}, True),
    ("init v3", {"pairingPeerId": None}, True),  # an extra member under noise-ik
    ("init v3", {"previousSessionId": "session-0"}, True),
    ("init v3", {"previousSessionId": ""}, True),
    ("init v3", {"previousSessionId": None}, False),
    ("init v3", {"previousSessionId": 7}, False),
    ("response v3", {"version": 2}, False),
    ("response v3", {"epoch": 1.5}, False),
    ("response v2", {"epoch": 1.5}, True),
    ("response v2", {"epoch": -3}, True),
    ("response v2", {"daemonPublicKey": 7}, True),  # not a member of version 2
    ("key update", {"nextEpoch": 2.5}, True),
    ("key update", {"nextEpoch": 0}, True),
    ("offer request", {"ttlSeconds": 30}, True),
    ("offer request", {"ttlSeconds": 3600}, True),
    ("offer request", {"ttlSeconds": 60.0}, True),
    ("offer request", {"ttlSeconds": 29}, False),
    ("offer request", {"ttlSeconds": 3601}, False),
    ("offer request", {"ttlSeconds": 60.5}, False),
    ("offer request", {"ttlSeconds": "60"}, False),
    ("offer request", {"ttlSeconds": None}, False),
    ("offer request", {"ttlSeconds": True}, False),
    ("offer response", {"ok": 1}, False),
    ("offer response", {"ok": "true"}, False),
    ("offer response", {"ok": False}, False),  # without ok, errorCode is required
    ("offer response", {"ok": False, "errorCode": "X"}, True),
    ("offer failure", {"ok": True}, False),  # with ok, the offer is required
    ("redeem failure", {"ok": True}, True),
    ("redeem response", {"errorCode": None}, True),
    ("subscribe", {"afterSequence": 0}, True),
    ("subscribe", {"afterSequence": 12.0}, True),
    ("subscribe", {"afterSequence": -1}, False),
    ("subscribe", {"afterSequence": 0.5}, False),
    ("subscribe", {"afterSequence": "1"}, False),
    ("subscribe", {"afterSequence": None}, False),
    ("subscribe", {"channel": "agent-session:"}, False),
    ("subscribe", {"channel": "agent-session: "}, False),
    ("subscribe", {"channel": " agent-session:a "}, True),
    ("subscribe", {"channel": "Agent-Session:a"}, False),
    ("subscribe", {"channel": "workspace:a"}, False),
    ("unsubscribe", {"channel": "x"}, False),
    ("presence", {"action": "left"}, True),
    ("presence", {"action": "heartbeat"}, True),
    ("presence", {"action": "Joined"}, False),
    ("presence", {"action": ["joined"]}, False),
    ("presence", {"userId": "u" * 128}, True),
    ("presence", {"userId": "u" * 129}, False),
    ("presence", {"userId": "\U0001f600" * 64}, True),  # two UTF-16 units each
    ("presence", {"userId": "\U0001f600" * 65}, False),
    ("presence", {"displayName": ""}, True),
    ("presence", {"displayName": "d" * 255}, True),
    ("presence", {"displayName": "d" * 256}, False),
    ("presence", {"displayName": None}, False),
    ("presence", {"sentAt": "whenever"}, True),
    ("presence", {"sentAt": 1}, False),
    ("session event", {"type": "x"}, False),
    ("session event", {"type": None}, False),
    ("session event", {"event": []}, False),
    ("session event", {"event": None}, False),
    ("session event", {"event": {}}, True),
    ("session event", {"schema": "viewport.session_event_relay_frame/v2"}, False),
    ("worker request", {"method": "POST"}, True),
    ("worker request", {"method": "PATCH"}, True),
    ("worker request", {"method": "DELETE"}, False),
    ("worker request", {"method": "get"}, False),
    ("worker request", {"path": "/api/runtime/workspaces/"}, True),
    ("worker request", {"path": "/api/runtime/workspaces"}, False),
    ("worker request", {"path": " /api/runtime/workspaces/w"}, False),
    ("worker request", {"headers": {}}, True),
    ("worker request", {"headers": None}, False),
    ("worker request", {"headers": []}, False),
    ("worker request", {"body": ""}, True),
    ("worker request", {"body": None}, False),
    ("worker request", {"body": {"a": 1}}, False),
]


@pytest.mark.parametrize(("name", "changes", "good"), MORE, ids=lambda value: str(value)[:60])
def test_further_rows_of_the_table(name: str, changes: dict[str, Any], good: bool) -> None:
    assert (decode(roles_of(name)[0], name, **changes) is not None) is good


@pytest.mark.parametrize(
    ("role", "name", "sent", "compared"),
    [
        ("client", "init v3", "\u00a0 r \ufeff", "r"),
        ("client", "init v3", "  ", ""),
        ("client", "init v2", "\n r", "r"),
        ("client", "offer request", " r ", "r"),
        ("daemon", "redeem response", "r\t", "r"),
        ("daemon", "response v3", "r ", "r"),
        # stripped by Python, not by JavaScript
        ("client", "offer request", "\x85r\x1f", "\x85r\x1f"),
        ("client", "offer request", "\x85", "\x85"),
    ],
)
def test_request_ids_are_compared_trimmed(role: str, name: str, sent: str, compared: str) -> None:
    assert decode(role, name, requestId=sent).request_id == compared


def test_channels_are_trimmed() -> None:
    for role, name in (
        ("client", "subscribe"),
        ("client", "unsubscribe"),
        ("client", "presence"),
        ("daemon", "session event"),
    ):
        assert decode(role, name, channel="\u00a0 agent-session:a\ufeff").channel == "agent-session:a"


def test_a_presence_frame_is_at_most_16_kib() -> None:
    bare = len(encoded("presence", sentAt=""))
    assert decode_client(encoded("presence", sentAt="x" * (16_384 - bare))) is not None
    assert decode_client(encoded("presence", sentAt="x" * (16_385 - bare))) is None
    assert decode_client(encoded("subscribe", extra="x" * 20_000)) is not None


def test_headers_of_a_worker_are_at_most_64_kib() -> None:
    assert decode("worker", "worker request", headers={"a": "x" * 65_000}) is not None
    assert decode("worker", "worker request", headers={"a": "x" * 65_536}) is None


def test_session_ids_are_not_trimmed() -> None:
    for role, name in (
        ("client", "e2ee"),
        ("daemon", "e2ee"),
        ("daemon", "response v3"),
        ("daemon", "key update"),
    ):
        assert decode(role, name, sessionId=" s ").session_id == " s "


def test_header_values_that_are_no_strings_are_left_out() -> None:
    headers = {"Accept": "a/b", "x-n": 5, "x-o": None, "x-l": ["a"], "x-e": ""}
    assert decode("worker", "worker request", headers=headers, method="POST", body="b") == ExecutorRequest(
        "request-1",
        "POST",
        "/api/runtime/workspaces/w/managed-executors/x",
        {"Accept": "a/b", "x-e": ""},
        "b",
    )


# -- JSON as JavaScript reads it --------------------------------------------------------------------------------

PLAIN = json.dumps(example("e2ee"))
WITH_SEQ = json.dumps(example("e2ee", seq="@")).replace('"@"', "{}").replace("{", "{{", 1)[:-1] + "}}"


@pytest.mark.parametrize(
    "digits", ["1", "1.0", "1e0", "1E+0", "10e-1", "9007199254740993", "1" + "0" * 308], ids=lambda d: d[:20]
)
def test_notations_of_an_integer(digits: str) -> None:
    assert is_decoded(decode_client(WITH_SEQ.format(digits).encode()), E2ee, session_id="session-1")


@pytest.mark.parametrize(
    "digits",
    [
        "0",
        "-1",
        "1.5",
        "01",
        "1.",
        ".1",
        "+1",
        "0x1",
        "1e999",
        "2" + "0" * 308,
        "1" + "0" * 309,
        "1" + "0" * 5000,
        "2e308",
    ],
    ids=lambda d: f"{d[:8]}-{len(d)}",
)
def test_notations_that_are_no_positive_integer(digits: str) -> None:
    assert decode_client(WITH_SEQ.format(digits).encode()) is None


WITH_EXTRA = PLAIN[:-1] + ',"extra":{}}}'.replace("{}", "@")
GOOD_JSON = {
    "huge integer in an extra member": WITH_EXTRA.replace("@", "9" * 5000)[:-1],
    "number beyond a double in an extra member": WITH_EXTRA.replace("@", "1e999")[:-1],
    "lone surrogate in an extra member": WITH_EXTRA.replace("@", '"\\ud800"')[:-1],
    "lone surrogate as a session id": PLAIN.replace("session-1", "\\udfff"),
    "escaped key": PLAIN.replace('"type"', '"\\u0074ype"'),
    "escaped value": PLAIN.replace('"e2ee"', '"\\u0065\\u0032ee"'),
    "duplicate key, the last one good": PLAIN[:-1].replace('"seq": 1', '"seq": 0') + ',"seq":3}',
    "duplicate type, the last one good": '{"type":"x",' + PLAIN[1:],
    "white space around": "\t\r\n " + PLAIN + " \n",
    "solidus escaped": PLAIN.replace("b3BhcXVl", "\\/"),
    "delete character": PLAIN.replace("b3BhcXVl", "\x7f"),
    "emoji": PLAIN.replace("b3BhcXVl", "\U0001f600"),
}


@pytest.mark.parametrize("name", GOOD_JSON)
def test_unusual_json_that_is_valid(name: str) -> None:
    for decoder in (decode_client, decode_daemon):
        assert isinstance(decoder(GOOD_JSON[name].encode()), E2ee)


BAD_JSON = {
    "nothing": "",
    "white space": "  ",
    "no JSON": "hello",
    "array": f"[{PLAIN}]",
    "string": '"e2ee"',
    "number": "1",
    "null": "null",
    "empty object": "{}",
    "byte order mark": "\ufeff" + PLAIN,
    "trailing text": PLAIN + "x",
    "two values": PLAIN + PLAIN,
    "trailing comma": PLAIN[:-1] + ",}",
    "truncated": PLAIN[:-1],
    "single quotes": PLAIN.replace('"', "'"),
    "comment": PLAIN + "//",
    "form feed": PLAIN + "\f",
    "no-break space outside": PLAIN + "\u00a0",
    "raw line end in a string": PLAIN.replace("b3BhcXVl", "b3\nBh"),
    "raw tab in a string": PLAIN.replace("b3BhcXVl", "b3\tBh"),
    "raw NUL in a string": PLAIN.replace("session-1", "a\x00b"),
    "unknown escape": PLAIN.replace("b3BhcXVl", "\\x41"),
    "short escape": PLAIN.replace("b3BhcXVl", "\\u12"),
    "NaN": WITH_EXTRA.replace("@", "NaN")[:-1],
    "Infinity": WITH_EXTRA.replace("@", "-Infinity")[:-1],
    "True": WITH_EXTRA.replace("@", "True")[:-1],
    "duplicate key, the last one bad": PLAIN[:-1] + ',"seq":0}',
    "duplicate ciphertext, the last one blank": PLAIN[:-1] + ',"ciphertext":" "}',
    "duplicate type, the last one unknown": PLAIN[:-1] + ',"type":"x"}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_invalid_json_and_invalid_frames(name: str) -> None:
    for decoder in DECODERS.values():
        assert decoder(BAD_JSON[name].encode()) is None


@pytest.mark.parametrize(
    "opening", ["[", '{"a":', '{"type":"e2ee","ciphertext":[', '{"type":"e2ee","x":{"y":[']
)
def test_deep_nesting_is_refused(opening: str) -> None:
    for decoder in DECODERS.values():
        assert decoder((opening * 200_000).encode()) is None


def test_bytes_that_are_not_utf8_are_no_frame() -> None:
    for place in ("session-1", "sessionId", "seq", "aXYtaXYtaXYt"):
        message = PLAIN.encode().replace(place.encode(), b"\xff\xfe")
        for decoder in DECODERS.values():
            assert decoder(message) is None
