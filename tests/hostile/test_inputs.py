"""Generated input for all parsers of untrusted bytes: each input is accepted or refused, without another exception.

    make fuzz           # many more examples

Raw bytes and mutated valid input: tokens, key sets, validation responses, frames, bus frames, settings, request
heads.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.http_headers import Headers

from tests.conformance.echo import site
from tests.drill.peer import kex_init, kex_response, upgrade_request
from tests.wireframes import EXAMPLES as FRAMES
from viewport_relay.admission.claims import grant_for, parse_claims
from viewport_relay.admission.httpcall import Answer
from viewport_relay.admission.jwt import TokenRules, check_payload, payload_signed_by, read_header
from viewport_relay.admission.keys import KeySet, KeySetError
from viewport_relay.admission.token import token_from
from viewport_relay.admission.verdict import judge_answer
from viewport_relay.backplane.replay import Freshness
from viewport_relay.backplane.signing import FrameVerifier
from viewport_relay.config import VARIABLES, Config, ConfigError, load
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.protocol.decoding import decode_client, decode_daemon, decode_executor
from viewport_relay.protocol.grant import Claims, Role, UpgradeQuery
from viewport_relay.reasons import Refusal

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
relaxed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

KEY = SigningKey.generate("ES256")
URL = "http://platform.example/validate"
QUERY = UpgradeQuery(Role.CLIENT, "w", "t")
RULES = TokenRules("viewport-server", "viewport-relay", 30)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just(10**400)
    | st.just("1e999"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
nonsense = st.one_of(
    st.binary(max_size=300),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.integers(1, 60_000).map(lambda depth: b"[" * depth),
    st.integers(1, 60_000).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth),
    st.integers(1, 9000).map(lambda digits: b'{"exp":' + b"9" * digits + b"}"),
)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Valid input with a few bytes changed, removed, repeated or inserted."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.integers(0, 3))
        if kind == 0 and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == 2:
            data[at:at] = draw(
                st.binary(min_size=1, max_size=8)
                | st.sampled_from([b'"', b"{", b"\\u0000", b"e999", b"\xff"])
            )
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
    return bytes(data)


def replaced(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A valid object with some members replaced by any value."""
    return st.dictionaries(st.sampled_from(sorted(good)), json_values, max_size=4).map(
        lambda wrong: {**good, **wrong}
    )


def token_of(header: dict[str, Any], payload: bytes) -> str:
    def part(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    return f"{part(json.dumps(header).encode())}.{part(payload)}.{part(b'x' * 64)}"


def good_token() -> str:
    now = time.time()
    return KEY.sign(
        {
            "iss": "viewport-server",
            "aud": "viewport-relay",
            "exp": now + 60,
            "role": "client",
            "workspaceId": "w",
        }
    )


KEYS = KeySet.parse(json.dumps({"keys": [KEY.jwk()]}).encode())
CLAIMS = {
    "clientId": "c", "userId": "u", "runtimeTargetId": "t", "machineId": "m", "role": "client", "workspaceId": "w",
    "scope": "runtime", "sessionIds": ["s"], "sessionChannels": ["agent-session:a"], "e2eeProfile": "noise-ik",
    "policyMode": "standard", "daemonPublicKey": None, "pairingSecret": "x" * 43, "exp": 1, "iat": 1, "nbf": 1,
    "jti": "j", "daemonIssueGeneration": 1, "aud": ["a"], "iss": "i", "ver": 1,
}  # fmt: skip


def accept(token: str) -> None:
    try:
        header = read_header(token)
        payload = payload_signed_by(token, header, KEYS)
        check_payload(payload, QUERY, RULES, time.time())
    except Refusal:
        pass


@relaxed
@given(
    st.one_of(st.text(max_size=200), mutated(good_token().encode()).map(lambda raw: raw.decode("latin-1")))
)
def test_tokens(token: str) -> None:
    accept(token)


@relaxed
@given(
    st.fixed_dictionaries({}, optional={"alg": json_values | st.sampled_from(["ES256", "none", "HS256", "RS256"]),
                                        "kid": json_values | st.just(KEY.kid), "typ": json_values, "crit": json_values,
                                        "b64": json_values, "jwk": json_values, "x5u": json_values}),
    nonsense,
)  # fmt: skip
def test_token_headers_and_payloads(header: dict[str, Any], payload: bytes) -> None:
    accept(token_of(header, payload))


@relaxed
@given(replaced({"exp": 2e9, "nbf": 1, "iat": 1, "iss": "viewport-server", "aud": "viewport-relay", "role": "client",
                 "workspaceId": "w", "runtimeTargetId": "t"}))  # fmt: skip
def test_signed_payloads(payload: dict[str, Any]) -> None:
    try:
        check_payload(payload, QUERY, RULES, 1e9)
    except Refusal:
        pass


@relaxed
@given(
    st.lists(st.text(max_size=60), max_size=4),
    st.lists(st.text(max_size=60), max_size=4),
    st.none() | st.text(),
)
def test_the_places_of_a_token(authorization: list[str], offered: list[str], in_query: str | None) -> None:
    source = token_from(authorization, offered, in_query, "prod")
    assert source is None or 10 <= len(source.token) <= 4096


@relaxed
@given(
    st.one_of(
        nonsense,
        mutated(json.dumps({"keys": [KEY.jwk()]}).encode()),
        st.lists(replaced(dict(KEY.jwk())), max_size=3).map(lambda keys: json.dumps({"keys": keys}).encode()),
    )
)
def test_key_sets(body: bytes) -> None:
    try:
        KeySet.parse(body)
    except KeySetError:
        pass


@relaxed
@given(
    st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 418, 500, 503]),
    st.one_of(
        nonsense,
        mutated(json.dumps({"ok": True, "claims": CLAIMS}).encode()),
        replaced(CLAIMS).map(lambda claims: json.dumps({"ok": True, "claims": claims}).encode()),
        replaced({"ok": False, "reason": "r", "error": "e"}).map(lambda body: json.dumps(body).encode()),
    ),
)
def test_validation_answers(status: int, body: bytes) -> None:
    verdict = judge_answer(Answer(status, Headers(), body), QUERY, URL)
    assert isinstance(verdict, (Claims, Refusal))
    if isinstance(verdict, Claims):
        grant_for(QUERY, verdict, "c-1")


@relaxed
@given(replaced(CLAIMS))
def test_claims(claims: dict[str, Any]) -> None:
    try:
        parse_claims(claims, QUERY)
    except Refusal:
        pass


ONE_OF_EACH = st.sampled_from([json.dumps(example).encode() for example in FRAMES.values()])


@relaxed
@given(st.one_of(nonsense, ONE_OF_EACH.flatmap(mutated), st.sampled_from(list(FRAMES.values())).flatmap(
    lambda good: replaced(dict(good)).map(lambda frame: json.dumps(frame).encode()))))  # fmt: skip
def test_frames(message: bytes) -> None:
    try:
        message.decode()
    except UnicodeDecodeError:
        return  # closed before the peer reads it
    for decode in (decode_client, decode_daemon, decode_executor):
        call: Callable[[bytes], object] = decode
        call(message)
        if decode is not decode_executor:
            decode(memoryview(message))  # type: ignore[operator]


BUS_FRAME = {
    "workspaceId": "w", "runtimeTargetId": "t", "machineId": "m", "sourceRelayId": "a", "targetRelayId": None,
    "direction": "client_to_daemon", "payload": kex_init("r"), "issuedAtMs": 1_800_000_000_000, "signature": "s" * 43,
}  # fmt: skip


@relaxed
@given(st.one_of(nonsense, mutated(json.dumps(BUS_FRAME).encode()),
                 replaced(BUS_FRAME).map(lambda frame: json.dumps(frame).encode())))  # fmt: skip
def test_bus_frames(raw: bytes) -> None:
    BUS.verify(raw)


BUS = FrameVerifier(
    "a-key-of-the-bus-0123456789abcdef", "b", Freshness(Clock(), lambda: 1_800_000_000.0, 15.0), 1_048_576
)


@relaxed
@given(st.dictionaries(st.sampled_from([variable.name for variable in VARIABLES] + ["RELAY_TYPO", "HOST"]),
                       st.text(max_size=60) | st.sampled_from(["0", "1", "-1", "auto", "on", "::1", "ws://x", "9" * 5000]),
                       max_size=6))  # fmt: skip
def test_settings(environ: dict[str, str]) -> None:
    base = {"SERVER_URL": "http://127.0.0.1:1", "RELAY_MODE": "dev"}
    try:
        assert isinstance(load(base | environ), Config)
    except ConfigError as error:
        assert error.errors


HEAD = upgrade_request(
    "/ws?role=client&workspaceId=w&runtimeTargetId=t",
    {"Authorization": "Bearer " + "x" * 40, "Origin": "http://x"},
)


@relaxed
@given(
    st.lists(
        st.one_of(
            mutated(HEAD),
            st.binary(max_size=200),
            st.sampled_from(
                [
                    HEAD,
                    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
                ]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 400),
)
def test_request_heads(requests: list[bytes], step: int) -> None:
    """Through the relay's channel, upgrade resource and, after an upgrade, connection."""
    clock = Clock()
    factory = site(clock, RELAY_LISTEN_HOST="127.0.0.1")
    transport = StringTransport()
    transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
    channel = factory.buildProtocol(None)
    channel.callLater = clock.callLater
    transport.protocol = channel  # type: ignore[attr-defined]
    channel.makeConnection(transport)
    stream = b"".join(requests)
    for at in range(0, len(stream), step):
        if transport.disconnecting:
            break
        transport.protocol.dataReceived(stream[at : at + step])  # type: ignore[attr-defined]
    clock.advance(100)
    transport.protocol.connectionLost(_gone())  # type: ignore[attr-defined]
    clock.advance(100)
    assert clock.getDelayedCalls() == []


def _gone() -> Any:
    from twisted.internet.error import ConnectionLost
    from twisted.python.failure import Failure

    return Failure(ConnectionLost())


def test_unmutated_inputs_are_valid() -> None:
    """The unmutated inputs are valid; otherwise the tests above would test nothing."""
    header = read_header(good_token())
    payload = payload_signed_by(good_token(), header, KEYS)
    assert check_payload(payload, QUERY, RULES, time.time())
    assert isinstance(
        judge_answer(Answer(200, Headers(), json.dumps({"ok": True, "claims": CLAIMS}).encode()), QUERY, URL),
        Claims,
    )
    assert decode_client(kex_init("r").encode()) and decode_daemon(kex_response("r", "s").encode())
