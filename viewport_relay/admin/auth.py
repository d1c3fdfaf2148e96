"""Who may use the operator's door.

Programs send the admin token in a header. The dashboard hands it in once and gets a cookie that scripts cannot
read, that other sites cannot send, and that is worth nothing for a POST or DELETE without a second value which
only the dashboard's own page has. Both are derived from the admin token, so there is no table of sessions to
fill up, every worker process accepts them, and a new admin token ends them all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable

from twisted.web.server import Request

from viewport_relay.reasons import Reason

CSRF_HEADER = "x-relay-csrf"

#: How long a sign-in lasts, seconds.
SESSION_SECONDS = 12 * 3600

_BEARER = re.compile(rb"bearer(?:\s+(.*))?\Z", re.IGNORECASE | re.DOTALL)
_SAFE_METHODS = frozenset({b"GET", b"HEAD"})


class Gate:
    """Judges requests.

    `token` is RELAY_ADMIN_TOKEN, None when there is none; `now` gives seconds since the epoch.
    """

    def __init__(self, token: str | None, *, now: Callable[[], float]) -> None:
        self._token = token.encode("utf-8") if token else None
        self._now = now
        self._key = hmac.digest(self._token or os.urandom(32), b"viewport relay admin session", "sha256")
        # browsers do not tell the ports of one host apart: two relays there need two names
        self.cookie = f"relay_admin_{self._mac('name', '')[:8]}"

    @property
    def exists(self) -> bool:
        """Whether there is an admin token at all."""
        return self._token is not None

    def judge(self, request: Request) -> Reason | None:
        """None: let it in; else why not.

        A bearer header decides alone; then X-Relay-Admin-Token; then the dashboard's cookie.
        """
        if self._token is None:
            return Reason.ADMIN_ENDPOINTS_DISABLED
        headers = request.requestHeaders
        bearers = [
            match[1] or b""
            for value in headers.getRawHeaders(b"authorization", [])
            if (match := _BEARER.match(value.strip()))
        ]
        given = [value.strip() for value in bearers] or headers.getRawHeaders(b"x-relay-admin-token", [])
        if given:
            right = len(given) == 1 and self.is_token(given[0])
            return None if right else Reason.ADMIN_UNAUTHORIZED
        session = self.session(request)
        if session is None:
            return Reason.ADMIN_UNAUTHORIZED
        if request.method not in _SAFE_METHODS:
            proof = request.getHeader(CSRF_HEADER) or ""
            if not hmac.compare_digest(proof.encode("utf-8", "replace"), self.csrf(session).encode("ascii")):
                return Reason.ADMIN_CSRF_MISMATCH
        return None

    def is_token(self, given: bytes) -> bool:
        """Whether this is the admin token, in time that does not depend on where it differs."""
        return self._token is not None and hmac.compare_digest(given, self._token)

    # -- the dashboard's session -----------------------------------------------------------------------------

    def open_session(self) -> tuple[str, int]:
        """A new cookie value and the second at which it ends."""
        ends = int(self._now()) + SESSION_SECONDS
        stem = f"{ends}.{os.urandom(16).hex()}"
        return f"{stem}.{self._mac('session', stem)}", ends

    def session(self, request: Request) -> str | None:
        """The request's session if it is one of ours and not over."""
        raw = request.getCookie(self.cookie.encode("ascii"))
        if raw is None or self._token is None:
            return None
        text = raw.decode("latin-1")
        stem, _, mac = text.rpartition(".")
        if not hmac.compare_digest(mac.encode("utf-8"), self._mac("session", stem).encode("ascii")):
            return None
        return text if int(stem.partition(".")[0]) > self._now() else None

    def csrf(self, session: str) -> str:
        """What a POST or DELETE of this session must carry in X-Relay-CSRF."""
        return self._mac("csrf", session)

    def set_cookie(self, request: Request, value: str, seconds: int, *, secure: bool) -> None:
        """Put the session cookie on the answer; 0 seconds takes it away."""
        parts = [f"{self.cookie}={value}", "Path=/", f"Max-Age={seconds}", "HttpOnly", "SameSite=Strict"]
        if secure:
            parts.append("Secure")
        request.cookies.append("; ".join(parts).encode("ascii"))

    def _mac(self, purpose: str, text: str) -> str:
        message = f"{purpose}|{text}".encode("utf-8", "replace")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
