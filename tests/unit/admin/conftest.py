"""The admin resource on a real loopback port, with a fake relay state."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import pytest_twisted
import treq
from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.server import Site

from viewport_relay import config as settings
from viewport_relay.admin.auth import WRONG_TOKENS_PER_MINUTE, AdminAuth
from viewport_relay.admin.site import build
from viewport_relay.admission.limits import WindowCounter
from viewport_relay.config import configured_secrets
from viewport_relay.observe.checks import Condition
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.routing.views import PeerView, Selection, TargetView

TOKEN = "unit-admin-token-0123456789abcdef"


def peer(role: str = "client", name: str = "c-1", **changes: Any) -> PeerView:
    values: dict[str, Any] = {
        "connection_id": f"conn-{name}", "role": role, "client_id": name, "ip": "192.0.2.7", "since": 1_700_000_000.0,
        "queued_bytes": 0, "noise": "none", "subprotocol": None, "version": "unit/1", "paused": False,
    }  # fmt: skip
    return PeerView(**(values | changes))


def target(workspace: str = "w-1", name: str | None = "t-1", **changes: Any) -> TargetView:
    values: dict[str, Any] = {
        "workspace_id": workspace, "runtime_target_id": name, "daemon": None, "clients": (), "executors": (),
        "sessions": 0, "pending_requests": 0, "frames": 0, "bytes": 0, "created_at": 1_700_000_000.0,
        "last_activity_at": 1_700_000_001.5,
    }  # fmt: skip
    return TargetView(**(values | changes))


@define
class FakeState:
    """A `StateSource` with values that a test sets."""

    views: list[TargetView] = field(factory=list)
    ready: tuple[bool, str] = (True, "")
    age: float | None = 12.0
    back: dict[str, Any] = field(factory=lambda: {"mode": "single"})
    pids: dict[str, int] = field(factory=lambda: {"relay": os.getpid()})
    closed: int = 0
    refreshed: int = 0
    calls: list[Any] = field(factory=list)

    def targets(self) -> list[TargetView]:
        return self.views

    def connections(self) -> Mapping[str, int]:
        counts = {"workspace-daemon": 0, "client": 0, "worker": 0}
        for view in self.views:
            counts["workspace-daemon"] += view.daemon is not None
            counts["client"] += len(view.clients)
            counts["worker"] += len(view.executors)
        return counts

    def disconnect(self, selection: Selection) -> int:
        self.calls.append(selection)
        return self.closed

    def flush_caches(self) -> None:
        self.calls.append("flush")

    def condition(self) -> Condition:
        return Condition(*self.ready, self.age, self.back)

    def refresh(self) -> None:
        self.refreshed += 1

    def processes(self) -> Mapping[str, int]:
        return self.pids


@define
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")


class OpenAdmin:
    """A listening admin resource with its config, log, counters, state and clock."""

    def __init__(self, environ: dict[str, str], **build_options: Any) -> None:
        self.stream = io.StringIO()
        self.config = settings.load({"SERVER_URL": "http://127.0.0.1:1", "RELAY_MODE": "dev"} | environ)
        self.log = EventLog(
            self.stream, max_entries=self.config.max_logs, secrets=configured_secrets(self.config)
        )
        self.counters = Counters()
        self.state = FakeState()
        tokens, metrics = self.config.admin_tokens, self.config.metrics_tokens
        if not self.config.enable_admin_http:
            tokens = metrics = ()
        self.clock = Clock()
        began = reactor.seconds()
        wrong = WindowCounter(WRONG_TOKENS_PER_MINUTE)
        self.auth = AdminAuth(
            tokens, metrics, now=time.time, wrong_token=lambda ip: wrong.hit(ip, self.clock.seconds())
        )
        self.admin = build(
            lambda: self.config, log=self.log, counters=self.counters, state=self.state, reactor=reactor,
            periodically=lambda seconds, call: None,
            uptime=lambda: 1.0 + reactor.seconds() - began, auth=self.auth,
            client_ip=lambda request: request.getClientAddress().host,
            **{"admin": True, "others": {}} | build_options,
        )  # fmt: skip
        site = Site(self.admin)
        site.displayTracebacks = False
        site.log = lambda request: None
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.base = f"http://127.0.0.1:{self.port.getHost().port}"
        self.pool = HTTPConnectionPool(reactor, persistent=False)

    async def ask(
        self,
        method: str,
        path: str,
        headers: Any = None,
        body: bytes | None = None,
        token: str | None = TOKEN,
    ) -> Answer:
        sent = dict(headers or {})
        if token is not None and not any(name.lower() == "authorization" for name in sent):
            sent["Authorization"] = f"Bearer {token}"
        response = await treq.request(
            method,
            self.base + path,
            headers=sent,
            data=body,
            agent=Agent(reactor, pool=self.pool),
            allow_redirects=False,
        )
        received = {
            name.decode().lower(): values[-1].decode() for name, values in response.headers.getAllRawHeaders()
        }
        return Answer(response.code, received, await response.content())

    async def get(self, path: str, headers: Any = None, token: str | None = TOKEN) -> Answer:
        return await self.ask("GET", path, headers, None, token)

    async def post(self, path: str, body: object, headers: Any = None, token: str | None = TOKEN) -> Answer:
        sent = {"Content-Type": "application/json"} | (headers or {})
        return await self.ask("POST", path, sent, json.dumps(body).encode(), token)

    def close(self) -> Deferred[Any]:
        return self.port.stopListening()


@pytest.fixture
def open_admin() -> Iterator[Callable[..., OpenAdmin]]:
    """Factory: open an admin resource with a given environment."""
    admins: list[OpenAdmin] = []

    def make(environ: dict[str, str] | None = None, **build_options: Any) -> OpenAdmin:
        admins.append(
            OpenAdmin({"RELAY_ADMIN_TOKEN": TOKEN} if environ is None else environ, **build_options)
        )
        return admins[-1]

    yield make
    for admin in admins:
        pytest_twisted.blockon(admin.close())


@pytest.fixture
def admin(open_admin: Callable[..., OpenAdmin]) -> OpenAdmin:
    """An admin resource in dev mode with the token TOKEN."""
    return open_admin()


@pytest.fixture
def state() -> FakeState:
    return FakeState()


@pytest.fixture
def make_peer() -> Callable[..., PeerView]:
    return peer


@pytest.fixture
def make_target() -> Callable[..., TargetView]:
    return target


@pytest.fixture
def token() -> str:
    return TOKEN
