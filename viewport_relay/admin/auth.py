"""Authorization of HTTP requests to the admin pages.

Programs send a token in a header. The dashboard sends the token once and gets a session cookie, which scripts cannot read and
other sites cannot send. A POST or DELETE with the cookie also needs a second value (CSRF), which only the dashboard's own page
has. Both values are derived from the tokens: sessions survive a restart, and end when the tokens change. The server stores
only the sessions that were signed out before their end.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from twisted.web.server import Request

from viewport_relay.reasons import Reason, Refusal

CSRF_HEADER: Final = "x-relay-csrf"

#: How long a session lasts, seconds.
SESSION_SECONDS: Final = 12 * 3600

#: Signed-out sessions that are remembered at most; the oldest go first. Only token holders can make one.
ENDED_MAX: Final = 4096

#: How long a one-time key opens a session, seconds, and how many keys there are at most; the oldest go first.
ONE_TIME_SECONDS: Final = 600
ONE_TIME_MAX: Final = 8

#: Wrong tokens of one address within a minute that are answered 401; then they are answered 429.
WRONG_TOKENS_PER_MINUTE: Final = 20

#: The access that a page needs: none; none, while there is an admin token; a metrics or an admin token; an admin token. A
#: session of the dashboard counts as an admin token.
Access = Literal["open", "visitor", "scraper", "operator"]

_BEARER: Final = re.compile(rb"bearer(?:\s+(.*))?\Z", re.IGNORECASE | re.DOTALL)
_SAFE_METHODS: Final = frozenset({b"GET", b"HEAD"})


class AdminAuth:
    """Judges requests by their token or session."""

    def __init__(
        self,
        tokens: Sequence[str],
        metrics_tokens: Sequence[str] = (),
        *,
        now: Callable[[], float],
        clock: Callable[[], float] | None = None,
        wrong_token: Callable[[str], int] = lambda address: 0,
    ) -> None:
        """`tokens` are those of RELAY_ADMIN_TOKEN, `metrics_tokens` those of RELAY_METRICS_TOKEN.

        `now` gives seconds since the epoch, `clock` those of a clock that is never set (None: `now` is one).
        `wrong_token` counts a wrong token of an address, and returns the seconds for which it is over its limit, or
        0.
        """
        self._now = now
        self._clock = clock or now
        self._wrong_token = wrong_token
        #: stem of a signed-out session -> second at which it would have ended
        self._ended: dict[str, float] = {}
        #: digest of a one-time key -> second of `clock` at which it ends
        self._one_time: dict[bytes, float] = {}
        self.set_tokens(tokens, metrics_tokens)

    def set_tokens(self, tokens: Sequence[str], metrics_tokens: Sequence[str]) -> None:
        """Apply other tokens. Sessions of the dashboard end when the admin tokens change."""
        self._tokens = [token.encode("utf-8") for token in tokens]
        self._metrics_tokens = [token.encode("utf-8") for token in metrics_tokens]
        secret = b"\n".join(self._tokens) or os.urandom(32)
        self._key = hmac.digest(secret, b"viewport relay admin session", "sha256")
        # Browsers do not tell the ports of one host apart: two relays there need two names.
        self.cookie = f"relay_admin_{self._mac('name', '')[:8]}"

    @property
    def exists(self) -> bool:
        """Whether there is an admin token at all."""
        return bool(self._tokens)

    def _refusal_reason(self, request: Request, access: Access) -> Reason | None:
        """None when the request may have what it asks for, else the reason why not.

        A bearer header decides alone; then X-Relay-Admin-Token; then the dashboard's cookie.
        """
        if access == "open":
            return None
        if not self._tokens and not (self._metrics_tokens and access == "scraper"):
            return Reason.ADMIN_ENDPOINTS_DISABLED
        if access == "visitor":
            return None
        given = _given_tokens(request)
        if given:
            known = _is_one_of(given[0], self._tokens + (self._metrics_tokens if access == "scraper" else []))
            return None if len(given) == 1 and known else Reason.ADMIN_UNAUTHORIZED
        session = self.session(request)
        if session is None:
            return Reason.ADMIN_UNAUTHORIZED
        if request.method not in _SAFE_METHODS:
            proof = request.getHeader(CSRF_HEADER) or ""
            if not hmac.compare_digest(proof.encode("utf-8", "replace"), self.csrf(session).encode("ascii")):
                return Reason.ADMIN_CSRF_MISMATCH
        return None

    def admits(self, request: Request, access: Access) -> bool:
        """Whether the request may have what it asks for. Counts nothing."""
        return self._refusal_reason(request, access) is None

    def check(self, request: Request, access: Access, address: str) -> None:
        """Raise Refusal unless the request may have what it asks for; a wrong token is counted for its address."""
        reason = self._refusal_reason(request, access)
        if reason is Reason.ADMIN_UNAUTHORIZED:
            given = _given_tokens(request)
            # A metrics token on another page is the wrong one, but no attempt to guess one.
            if given and not _is_one_of(given[0], self._metrics_tokens):
                self._count_wrong(address)
        if reason is not None:
            raise Refusal(reason)

    def check_form(self, token: bytes, address: str) -> None:
        """Raise Refusal unless the sign-in form's token is an admin token; a wrong one is counted for its address."""
        if not _is_one_of(token, self._tokens):
            self._count_wrong(address)
            raise Refusal(Reason.ADMIN_UNAUTHORIZED)

    def _count_wrong(self, address: str) -> None:
        """Raise Refusal for an address over WRONG_TOKENS_PER_MINUTE.

        A right token is always taken: an address that many share (a proxy's) must not lock operators out, and tokens are too
        long to be guessed.
        """
        wait = self._wrong_token(address)
        if wait:
            detail = f"more than {WRONG_TOKENS_PER_MINUTE} wrong tokens within a minute, a fixed limit"
            raise Refusal(Reason.ADMIN_RATE_LIMIT_EXCEEDED, detail, wait)

    # -- sessions of the dashboard ---------------------------------------------------------------------------

    def open_session(self) -> tuple[str, int]:
        """A new cookie value and the second at which it ends."""
        ends = int(self._now()) + SESSION_SECONDS
        stem = f"{ends}.{os.urandom(16).hex()}"
        return f"{stem}.{self._mac('session', stem)}", ends

    def one_time_key(self) -> str:
        """A key that opens one session, once, within ONE_TIME_SECONDS."""
        key, now = secrets.token_urlsafe(24), self._clock()
        digest = hashlib.sha256(key.encode("ascii")).digest()
        _remember(self._one_time, digest, now + ONE_TIME_SECONDS, now, ONE_TIME_MAX)
        return key

    def redeem(self, key: str) -> bool:
        """Whether this one-time key opens a session. Each key does so once."""
        ends = self._one_time.pop(hashlib.sha256(key.encode("utf-8", "replace")).digest(), 0.0)
        return ends > self._clock()

    def session(self, request: Request) -> str | None:
        """The request's session, if this relay made it and it has not ended."""
        raw = request.getCookie(self.cookie.encode("ascii"))
        if raw is None or not self._tokens:
            return None
        text = raw.decode("latin-1")
        stem, _, mac = text.rpartition(".")
        if not hmac.compare_digest(mac.encode("utf-8"), self._mac("session", stem).encode("ascii")):
            return None
        return text if _end_of(stem) > self._now() and stem not in self._ended else None

    def end_session(self, session: str) -> None:
        """Sign a session out: its cookie is refused from now on."""
        stem = session.rpartition(".")[0]
        _remember(self._ended, stem, _end_of(stem), self._now(), ENDED_MAX)

    def csrf(self, session: str) -> str:
        """The value that a POST or DELETE of this session must have in X-Relay-CSRF."""
        return self._mac("csrf", session)

    def set_cookie(self, request: Request, value: str, seconds: int, *, secure: bool) -> None:
        """Set the session cookie in the answer; 0 seconds deletes the cookie."""
        shared = {"path": "/", "max_age": str(seconds), "httpOnly": True, "sameSite": "Strict"}
        request.addCookie(self.cookie, value, secure=secure, **shared)

    def _mac(self, purpose: str, text: str) -> str:
        message = f"{purpose}|{text}".encode("utf-8", "replace")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()


def _given_tokens(request: Request) -> list[bytes]:
    """The tokens in the request's headers: the bearer ones, or else those of X-Relay-Admin-Token."""
    headers = request.requestHeaders
    bearers = [
        (match[1] or b"").strip()
        for value in headers.getRawHeaders(b"authorization", [])
        if (match := _BEARER.match(value.strip()))
    ]
    return bearers or list(headers.getRawHeaders(b"x-relay-admin-token", []))


def _is_one_of(given: bytes, tokens: Sequence[bytes]) -> bool:
    """Whether `given` is one of the tokens; each comparison takes constant time."""
    return any(hmac.compare_digest(given, token) for token in tokens)


def _remember(table: dict[Any, float], key: Any, ends: float, now: float, most: int) -> None:
    """Keep `key` until `ends`. Keys that have ended are dropped, and the oldest when there are `most`."""
    for old in [old for old, end in table.items() if end <= now]:
        del table[old]
    if len(table) >= most:
        del table[next(iter(table))]
    table[key] = ends


def _end_of(stem: str) -> int:
    return int(stem.partition(".")[0])
