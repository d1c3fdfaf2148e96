"""The admin resource: every HTTP request but upgrades.

`AdminResource` is one leaf resource. The resource matches paths exactly, checks the access, and hands the request to the
page. The pages are in the other modules of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.admin.about import About
from viewport_relay.admin.actions import Actions
from viewport_relay.admin.auth import Access, AdminAuth
from viewport_relay.admin.logs import EXPLAIN, TEXT_PATH, LogsPage
from viewport_relay.admin.metrics import MetricsPage, RelayCollector
from viewport_relay.admin.overview import Overview
from viewport_relay.admin.page import ONCE_PATH, SignIn, assets
from viewport_relay.admin.reply import BadRequest, put_body, put_late, refuse, refuse_bad
from viewport_relay.admin.state import StateSource, facts_reader, state_json
from viewport_relay.admin.trends import STEP, Trends
from viewport_relay.config import Config
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.verdict import ready_in_words
from viewport_relay.reasons import Reason, Refusal

#: Answers a request: the body, or NOT_DONE_YET.
Page = Callable[[Request], bytes | int]


@frozen
class Route:
    """A page and its access."""

    page: Page
    access: Access = "operator"


class AdminResource(Resource):
    """The resource of every request but upgrades. It is a leaf: render it with the whole path."""

    isLeaf = True

    def __init__(
        self,
        routes: dict[tuple[bytes, bytes], Route],
        auth: AdminAuth,
        log: EventLog,
        client_ip: Callable[[Request], str],
        refresh: Callable[[], Deferred[None] | None],
    ) -> None:
        """`refresh` is that of `StateSource`: called before the answer to an operator."""
        Resource.__init__(self)
        self._routes = routes
        self._refresh = refresh
        self._auth = auth
        self._log = log
        self._client_ip = client_ip

    def render(self, request: Request) -> bytes | int:
        """Check the access, then answer: a page that reads the state, for operators and scrapers, after a refresh of it."""
        try:
            route = self._admitted(request)
        except Refusal as refusal:
            return self._answer(request, partial(self._refuse, refusal))
        if route.access in ("open", "visitor") or request.method not in (b"GET", b"HEAD"):
            return self._answer(request, route.page)
        return put_late(request, maybeDeferred(self._refresh), lambda _: self._answer(request, route.page))

    def _admitted(self, request: Request) -> Route:
        """The route of a request that may use it. Raises Refusal."""
        route = self._route(request)
        if route is None:
            raise Refusal(Reason.NOT_FOUND)
        self._auth.check(request, route.access, self._client_ip(request))
        return route

    def _answer(self, request: Request, page: Page) -> bytes | int:
        """The page's answer; to HEAD as to GET, without the body (RFC 9110 section 9.3.2)."""
        try:
            body = page(request)
        except BadRequest as bad:
            body = refuse_bad(request, bad)
        except Refusal as refusal:
            body = self._refuse(refusal, request)
        if request.method != b"HEAD":
            return body
        if isinstance(body, bytes):
            return b""
        if request.startedWriting and not request.finished:  # a stream: its head is all there is
            request.unregisterProducer()
            request.finish()
        return body

    def _refuse(self, refusal: Refusal, request: Request) -> bytes:
        reason, detail = refusal.reason, refusal.detail or None
        if reason not in (Reason.NOT_FOUND, Reason.ADMIN_ENDPOINTS_DISABLED):  # what scanners ask for
            address, path = self._client_ip(request), request.path.decode("latin-1")
            self._log.event("admin_refused", reason=reason, ip=address, path=path, detail=detail)
        return refuse(request, refusal)

    def _route(self, request: Request) -> Route | None:
        method = b"GET" if request.method == b"HEAD" else request.method
        path = EXPLAIN if request.path.startswith(EXPLAIN) else request.path
        return self._routes.get((method, path))


def build(
    settings: Callable[[], Config],
    *,
    log: EventLog,
    counters: Counters,
    state: StateSource,
    reactor: IReactorTime,
    periodically: Callable[[float, Callable[[], None]], object],
    uptime: Callable[[], float],
    auth: AdminAuth,
    client_ip: Callable[[Request], str],
    admin: bool,
    others: Mapping[bytes, Page],
) -> AdminResource:
    """The admin resource of one listener.

    `settings` gives those in force, `uptime` seconds since the start. `admin=False` makes a resource without
    admin paths, for the public port when RELAY_ADMIN_LISTEN is set; then only `/health`, `/ready` and `others` are there.
    `others` are pages of the wire protocol by path, for GET, open to all.
    `periodically(seconds, call)` calls `call` every `seconds` while the relay runs, for the numbers of the last hour.
    """

    config = settings()
    routes: dict[tuple[bytes, bytes], Route] = {
        (b"GET", b"/health"): Route(lambda r: put_body(r, health_json(config, uptime())), "open"),
        (b"GET", b"/ready"): Route(lambda r: _ready(r, state), "open"),
        **{(b"GET", path): Route(page, "open") for path, page in others.items()},
    }
    if not admin:
        return AdminResource(routes, auth, log, client_ip, state.refresh)
    facts = facts_reader(config, log, state)
    trends = Trends(settings, counters, state, log.now)
    periodically(STEP, trends.sample)
    logs = LogsPage(log, About(log, state), facts, reactor, partial(auth.admits, access="operator"))
    metrics = MetricsPage(RelayCollector(counters, state, log, uptime, config.relay_id))
    actions = Actions(state, log, client_ip)
    overview = Overview(settings, log, counters, state, facts, trends, uptime)
    sign_in = SignIn(auth, log, client_ip, always_secure=config.tls_termination == "platform")
    routes |= {
        (b"GET", b"/logs"): Route(logs.render),
        (b"GET", TEXT_PATH): Route(logs.render),
        (b"GET", EXPLAIN): Route(logs.explain),
        (b"GET", EXPLAIN.rstrip(b"/")): Route(logs.explain),
        (b"GET", b"/state"): Route(lambda r: put_body(r, state_json(config, state, log.redactor))),
        (b"GET", b"/metrics"): Route(metrics.render, "scraper"),
        (b"POST", b"/disconnect"): Route(actions.disconnect),
        (b"POST", b"/cache/flush"): Route(actions.flush),
        (b"GET", b"/admin/api/session"): Route(sign_in.ask, "visitor"),
        (b"POST", b"/admin/api/session"): Route(sign_in.sign_in, "visitor"),
        (b"DELETE", b"/admin/api/session"): Route(sign_in.sign_out),
        (b"GET", b"/admin/api/overview"): Route(overview.overview),
        (b"GET", b"/admin/api/reasons"): Route(overview.reasons),
        (b"GET", b"/admin/api/workspaces"): Route(overview.workspaces),
        (b"GET", b"/admin/api/connections"): Route(overview.connections),
        (b"GET", b"/admin/api/settings"): Route(overview.settings),
        (b"GET", b"/admin/api/history"): Route(lambda r: put_body(r, trends.history())),
    }
    if config.mode == "dev":
        routes[b"POST", b"/admin/api/sign-in-link"] = Route(sign_in.make_link)
        routes[b"GET", ONCE_PATH.encode("ascii")] = Route(sign_in.use_link, "visitor")
    routes[b"GET", b"/"] = routes[b"GET", b"/admin"] = Route(sign_in.redirect, "open")
    for name, asset in assets().items():
        routes[b"GET", b"/admin/" + name] = Route(asset.render, "visitor")
    return AdminResource(routes, auth, log, client_ip, state.refresh)


def health_json(config: Config, uptime: float) -> dict[str, Any]:
    """The body of `GET /health`; `uptime` in seconds."""
    body: dict[str, Any] = {"ok": True, "service": "relay", "uptimeMs": round(uptime * 1000)}
    if not config.health_verbose:
        return body
    of_relay = {"relayMode": config.mode, "relayId": config.relay_id, "version": __version__}
    return body | {"tlsEnabled": config.serves_tls} | of_relay


def _ready(request: Request, state: StateSource) -> bytes:
    """`GET /ready`: whether peers can be admitted, the reason as a code or sentence, and the same in words."""
    condition = state.condition()
    reason = {"reason": condition.why} if condition.why else {}
    body = {"ok": condition.ready, **reason, "message": ready_in_words(condition)}
    return put_body(request, body, 200 if condition.ready else 503)
