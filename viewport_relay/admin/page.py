"""The files of the dashboard, and its sign-in.

The files are plain HTML, CSS and JavaScript of this package. They are read once and served under a content security policy:
a browser loads nothing from another origin and runs no inline script.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files

from attrs import frozen
from twisted.web.http import CACHED
from twisted.web.server import Request

from viewport_relay.admin.auth import SESSION_SECONDS, AdminAuth
from viewport_relay.admin.reply import TEXT_TYPE, BadRequest, body_json, put, put_body, query
from viewport_relay.config import is_loopback
from viewport_relay.observe.entry import timestamp
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason, Refusal

#: The path of a link that signs in once.
ONCE_PATH = "/admin/api/once"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
    " 'none'"
)

#: Headers of every file.
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@frozen
class Asset:
    """One file of the dashboard."""

    kind: str
    body: bytes
    etag: bytes

    def render(self, request: Request) -> bytes:
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        if request.setETag(self.etag) is CACHED:
            return put(request, 304, self.kind, b"")
        return put(request, 200, self.kind, self.body)


def assets() -> dict[bytes, Asset]:
    """Path below `/admin/` -> file; the empty one is the page."""
    found: dict[bytes, Asset] = {}
    for file in files("viewport_relay.admin").joinpath("dashboard").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            body, name = file.read_bytes(), "" if file.name == "index.html" else file.name
            etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found[name.encode("ascii")] = Asset(kind, body, etag.encode("ascii"))
    return found


@frozen(eq=False)
class SignIn:
    """`/admin/api/session`: POST the token for a cookie, GET whether there is one, DELETE it."""

    _auth: AdminAuth
    _log: EventSink
    _client_ip: Callable[[Request], str]
    _always_secure: bool

    def sign_in(self, request: Request) -> bytes:
        token = body_json(request).get("token")
        if not isinstance(token, str):
            raise BadRequest("token", "the admin token")
        self._auth.check_form(token.strip().encode("utf-8", "replace"), self._client_ip(request))
        session, ends = self._open(request)
        body = {"ok": True, "signedIn": True, "csrf": self._auth.csrf(session), "until": timestamp(ends)}
        return put_body(request, body)

    def _open(self, request: Request) -> tuple[str, int]:
        session, ends = self._auth.open_session()
        self._auth.set_cookie(request, session, SESSION_SECONDS, secure=self._secure(request))
        ip = self._client_ip(request)
        self._log.event("operator_signed_in", message="an operator opened the dashboard", operator=ip)
        return session, ends

    def make_link(self, request: Request) -> bytes:
        """`POST /admin/api/sign-in-link`: a link that signs in once. RELAY_MODE=dev only, and only for loopback."""
        if not is_loopback(self._client_ip(request)):
            raise Refusal(Reason.NOT_FOUND)
        return put_body(request, {"ok": True, "path": f"{ONCE_PATH}?key={self._auth.one_time_key()}"})

    def use_link(self, request: Request) -> bytes:
        """`GET /admin/api/once?key=…`: the dashboard, signed in; a key that was used before, or is too old, leads to the form."""
        key = query(request).get("key", "")
        if is_loopback(self._client_ip(request)) and self._auth.redeem(key):
            self._open(request)
        return self.redirect(request)

    def redirect(self, request: Request) -> bytes:
        """A redirect to the dashboard, while there is an admin token."""
        if not self._auth.exists:
            raise Refusal(Reason.NOT_FOUND)
        request.setHeader("Location", "/admin/")
        return put(request, 302, TEXT_TYPE, b"")

    def ask(self, request: Request) -> bytes:
        session = self._auth.session(request)
        if session is None:
            return put_body(request, {"ok": True, "signedIn": False})
        return put_body(request, {"ok": True, "signedIn": True, "csrf": self._auth.csrf(session)})

    def sign_out(self, request: Request) -> bytes:
        session = self._auth.session(request)
        if session is not None:
            self._auth.end_session(session)
        self._auth.set_cookie(request, "", 0, secure=self._secure(request))
        return put_body(request, {"ok": True, "signedIn": False})

    def _secure(self, request: Request) -> bool:
        return self._always_secure or request.isSecure()
