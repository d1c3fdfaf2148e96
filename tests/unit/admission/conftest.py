"""Keys, tokens and fakes for the tests of admission."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from tests.memorywire import Log
from viewport_relay.admission.httpcall import Answer, Call
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Role, UpgradeQuery

NOW = 1_800_000_000.0


class FakeHttp:
    """Test double for HttpClient: returns `replies` in order and repeats the last; awaits a Deferred."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.asked: list[tuple[Call, bytes | None]] = []

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        self.asked.append((call, body))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Deferred):
            reply = await reply
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None: ...


def _settle(coroutine: Any) -> Any:
    """The result of a coroutine or Deferred that must have fired; raises its failure."""
    waiting = coroutine if isinstance(coroutine, Deferred) else Deferred.fromCoroutine(coroutine)
    results: list[Any] = []
    waiting.addBoth(results.append)
    assert results, "the coroutine is still pending"
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    return results[0]


@pytest.fixture
def settle() -> Callable[[Any], Any]:
    return _settle


@pytest.fixture
def answer() -> Callable[..., Answer]:
    def make(status: int = 200, body: bytes | str = b"", **headers: str) -> Answer:
        raw = body.encode("utf-8") if isinstance(body, str) else body
        lines = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        return Answer(status, lines, raw)

    return make


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def http() -> FakeHttp:
    return FakeHttp()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def keys() -> dict[str, SigningKey]:
    """One key for each algorithm; kid = algorithm."""
    return {name: SigningKey.generate(name, name) for name in ("RS256", "ES256", "EdDSA")}


@pytest.fixture(scope="session")
def other_key() -> SigningKey:
    """An RSA key with the kid of the first key."""
    return SigningKey.generate("RS256", "RS256")


@pytest.fixture
def query() -> UpgradeQuery:
    return UpgradeQuery(Role.CLIENT, "ws-1", "rt-1")


@pytest.fixture
def payload() -> dict[str, Any]:
    """The claims of a valid token at NOW."""
    return {
        "iss": "viewport-server", "aud": "viewport-relay", "iat": int(NOW), "exp": int(NOW) + 300,
        "role": "client", "workspaceId": "ws-1", "runtimeTargetId": "rt-1",
    }  # fmt: skip


@pytest.fixture
def now() -> float:
    return NOW
