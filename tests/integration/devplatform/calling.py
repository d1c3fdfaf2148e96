"""A decorator that runs a test in the reactor, and a small HTTP client for the development platform."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest_twisted  # type: ignore[import-untyped]
import treq
from attrs import frozen
from twisted.internet import reactor
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

from viewport_relay.devplatform import DevPlatform

INTERNAL_KEY = "an-internal-key-for-these-tests-only"
Case = TypeVar("Case", bound=Callable[..., object])
_agent: Any = Agent


def in_reactor(case: Case) -> Case:
    """Decorator: runs an `async def` test in the reactor."""
    return cast(Case, pytest_twisted.ensureDeferred(case))


@frozen
class Reply:
    """Response: status, headers (lower case) and body."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Caller:
    """HTTP client of one platform; `body` is sent as JSON unless it is bytes."""

    def __init__(self, platform: DevPlatform) -> None:
        self.platform = platform
        self.agent = _agent(reactor)
        self.internal = {"x-relay-internal-key": INTERNAL_KEY}

    async def __call__(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Reply:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = Headers({name: [value] for name, value in (headers or {}).items()})
        client: Any = treq.client.HTTPClient(self.agent)
        response = await client.request(
            method, self.platform.url + path, data=data, headers=sent, allow_redirects=False
        )
        raw = await response.content()
        seen = {
            name.decode().lower(): values[-1].decode() for name, values in response.headers.getAllRawHeaders()
        }
        return Reply(response.code, seen, raw)

    async def relay(self, name: str, body: object) -> Reply:
        """POST to an internal endpoint with the right key."""
        return await self("POST", f"/api/runtime/internal/relay/{name}", body, self.internal)

    async def validate(self, token: str, role: str = "client", workspace: str = "dev-workspace") -> Reply:
        return await self.relay("validate", {"relayToken": token, "role": role, "workspaceId": workspace})
