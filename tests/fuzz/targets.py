"""Fuzzing targets: one function for each kind of untrusted input.

Each target passes bytes to the relay's reader of such input and asserts invariants. A result or a refusal is expected; any
other exception is a finding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from tests.conformance.echo import site
from tests.drill.peer import kex_init, upgrade_request
from tests.wireframes import EXAMPLES
from viewport_relay.admission.claims import grant_for
from viewport_relay.admission.httpcall import Answer
from viewport_relay.admission.jwt import TokenRules, check_payload, payload_signed_by, read_header
from viewport_relay.admission.keys import KeySet, KeySetError
from viewport_relay.admission.token import token_from
from viewport_relay.admission.verdict import judge_answer
from viewport_relay.backplane.replay import Freshness
from viewport_relay.backplane.signing import FrameVerifier
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.protocol.decoding import decode_client, decode_daemon, decode_executor
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Refusal

Target = Callable[[bytes], None]

_KEY: Final = SigningKey.generate("ES256")
_KEYS: Final = KeySet.parse(json.dumps({"keys": [_KEY.jwk()]}).encode())
_QUERY: Final = UpgradeQuery(Role.CLIENT, "w", "t")
_RULES: Final = TokenRules("viewport-server", "viewport-relay", 30)
#: Most pieces of a head.
_PIECES: Final = 64

_STATUSES: Final = (200, 201, 204, 301, 400, 401, 403, 404, 418, 500, 503)
_BUS: Final = FrameVerifier(
    "a-key-of-the-bus-0123456789abcdef", "b", Freshness(Clock(), lambda: 1_800_000_000.0, 15.0), 1_048_576
)
_CLAIMS: Final = {
    "clientId": "c",
    "userId": "u",
    "runtimeTargetId": "t",
    "machineId": "m",
    "role": "client",
    "workspaceId": "w",
    "scope": "runtime",
    "sessionIds": ["s"],
    "sessionChannels": ["agent-session:a"],
    "e2eeProfile": "noise-ik",
    "policyMode": "standard",
    "daemonPublicKey": None,
    "pairingSecret": "x" * 43,
    "exp": 1,
    "iat": 1,
    "nbf": 1,
    "jti": "j",
    "daemonIssueGeneration": 1,
    "aud": ["a"],
    "iss": "i",
    "ver": 1,
}


def frames(data: bytes) -> None:
    """Frames of all three roles. The fast decode of e2ee frames equals the full decode."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return  # the codec closes with 1007 before the frame is decoded
    for decode in (decode_client, decode_daemon):
        assert decode(data) == decode(data, fast=False)
        assert decode(memoryview(data)) == decode(data)
    decode_executor(data)


def tokens(data: bytes) -> None:
    """A token in each place of the upgrade, and through the local check."""
    text = data.decode("latin-1")
    source = token_from([f"Bearer {text}"], [f"auth.{text}"], text, "dev")
    assert source is None or 10 <= len(source.token) <= 4096
    try:
        header = read_header(text)
        check_payload(payload_signed_by(text, header, _KEYS), _QUERY, _RULES, time.time())
    except Refusal:
        pass


def payloads(data: bytes) -> None:
    """The payload of a correctly signed token."""
    try:
        members = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(members, dict):
        try:
            check_payload(members, _QUERY, _RULES, 1e9)
        except Refusal:
            pass


def key_sets(data: bytes) -> None:
    """The body of a JWKS response."""
    try:
        KeySet.parse(data)
    except KeySetError:
        pass


def answers(data: bytes) -> None:
    """The platform's response about a token: one byte for the status, then the body."""
    status = _STATUSES[data[0] % len(_STATUSES)] if data else 200
    verdict = judge_answer(Answer(status, Headers(), data[1:]), _QUERY, "http://platform.example/validate")
    assert isinstance(verdict, (Claims, Refusal))
    if isinstance(verdict, Claims):
        grant_for(_QUERY, verdict, "c-1")


def bus_frames(data: bytes) -> None:
    """A frame from the bus, never with a valid signature."""
    _BUS.verify(data)


@cache
def _site() -> tuple[Clock, Any]:
    """One site for all inputs: making it costs five times what an input does. Each input is later than the limits' minute."""
    clock = Clock()
    return clock, site(clock, RELAY_LISTEN_HOST="127.0.0.1")


def heads(data: bytes) -> None:
    """Bytes of a new connection, in pieces: HTTP channel, upgrade, connection.

    The first byte is the size of the pieces, of which there are at most `_PIECES`.
    """
    clock, factory = _site()
    stream = data[1:]
    step = max(data[0] + 1 if data else 1, len(stream) // _PIECES + 1)
    transport: Any = StringTransport()
    transport.abortConnection = transport.loseConnection
    channel = factory.buildProtocol(None)
    channel.callLater = clock.callLater
    transport.protocol = channel
    channel.makeConnection(transport)
    for at in range(0, len(stream), step):
        if transport.disconnecting:
            break
        transport.protocol.dataReceived(stream[at : at + step])
        clock.advance(0)
    clock.advance(100)
    transport.protocol.connectionLost(Failure(ConnectionLost()))
    clock.advance(100)
    assert clock.getDelayedCalls() == [], "a timer is left behind"


#: Every target with valid seed inputs.
TARGETS: Final[Mapping[str, tuple[Target, tuple[bytes, ...]]]] = {
    "frames": (frames, tuple(json.dumps(example).encode() for example in EXAMPLES.values())),
    "tokens": (
        tokens,
        (_KEY.sign({"iss": "viewport-server", "aud": "viewport-relay", "exp": 2e9}).encode(),),
    ),
    "payloads": (
        payloads,
        (
            b'{"iss":"viewport-server","aud":["viewport-relay"],"exp":2e9,"nbf":1,"iat":1,"role":"client","workspaceId":"w"}',
        ),
    ),
    "key_sets": (
        key_sets,
        tuple(
            json.dumps({"keys": [SigningKey.generate(kind).jwk()]}).encode()
            for kind in ("RS256", "ES256", "EdDSA")
        ),
    ),
    "answers": (
        answers,
        (
            b"\0" + json.dumps({"ok": True, "claims": _CLAIMS}).encode(),
            b'\5{"ok":false,"reason":"WORKSPACE_NOT_FOUND"}',
        ),
    ),
    "bus_frames": (
        bus_frames,
        (
            json.dumps(
                {
                    "workspaceId": "w",
                    "runtimeTargetId": "t",
                    "machineId": "m",
                    "sourceRelayId": "a",
                    "targetRelayId": None,
                    "direction": "client_to_daemon",
                    "payload": kex_init("r"),
                    "issuedAtMs": 1_800_000_000_000,
                    "signature": "s" * 43,
                }
            ).encode(),
        ),
    ),
    "heads": (
        heads,
        (
            b"\xff"
            + upgrade_request(
                "/ws?role=client&workspaceId=w&runtimeTargetId=t",
                {"Authorization": "Bearer " + "x" * 40, "Origin": "http://x"},
            ),
            b"\x07GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x20POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        ),
    ),
}
