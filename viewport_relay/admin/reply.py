"""Reading queries and bodies, and writing answers of the admin pages: small, never cached, never sniffed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from attrs import define
from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.config.values import BOOLEAN
from viewport_relay.observe.entry import dump
from viewport_relay.reasons import Reason, Refusal

#: Longest body of a request, bytes.
MAX_BODY = 16_384

T = TypeVar("T")

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"


@define
class BadRequest(Exception):
    """A filter or a body of a wrong form. `parameter` names it, `takes` says what it takes, `known` lists the choices."""

    parameter: str
    takes: str
    status: int = 400
    known: tuple[str, ...] = ()


def put(request: Request, status: int, kind: str, body: bytes) -> bytes:
    """Set status and headers; returns the body for `render` to return."""
    request.setResponseCode(status, HTTPStatus(status).phrase.encode())
    headers = request.responseHeaders
    headers.setRawHeaders("Content-Type", [kind])
    headers.setRawHeaders("Content-Length", [str(len(body))])
    quiet(request)
    return body


def quiet(request: Request) -> None:
    """Set the headers of every answer: no caching, no sniffing, no referrer, same origin only."""
    for name, value in (
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    ):
        if not request.responseHeaders.hasHeader(name):
            request.responseHeaders.setRawHeaders(name, [value])


def json_text(body: Mapping[str, Any]) -> str:
    """JSON in ASCII without "<": no text that a peer chose is markup where the answer is shown."""
    return dump(body).replace("<", "\\u003c")


def put_body(request: Request, body: Mapping[str, Any] | str, status: int = 200) -> bytes:
    """Answer with a JSON object, or with text."""
    if isinstance(body, str):
        return put(request, status, TEXT_TYPE, body.encode("utf-8", "backslashreplace"))
    return put(request, status, JSON_TYPE, json_text(body).encode("ascii"))


def prefers_text(accept: str) -> bool:
    """Whether an Accept header (RFC 9110 section 12.5.1) prefers text to JSON. `*/*` alone does not."""
    quality: dict[str, float] = {}
    for part in accept[:2048].lower().split(","):
        kind, _, parameters = part.partition(";")
        weight = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", parameters)
        quality[kind.strip()] = float(weight[1]) if weight else 1.0
    text = max(quality.get(kind, 0.0) for kind in ("text/plain", "text/html", "text/*"))
    as_json = max(quality.get(kind, 0.0) for kind in ("application/json", "application/*"))
    return text > as_json and text >= quality.get("*/*", 0.0)


def put_late(request: Request, waiting: Deferred[T], page: Callable[[T], bytes | int]) -> int:
    """Answer with what `page` makes of the result of `waiting`, unless the client has left by then."""

    def put(result: T) -> None:
        body = page(result) if request.channel is not None else NOT_DONE_YET
        if isinstance(body, bytes):
            request.write(body)
            request.finish()

    waiting.addCallback(put)
    waiting.addErrback(
        lambda failure: failure if request.channel is None else request.processingFailed(failure)
    )
    return NOT_DONE_YET


def refuse(request: Request, refusal: Refusal) -> bytes:
    """Answer a Refusal: `{"ok":false,"reason":CODE}` with the reason's status, and Retry-After where it is known."""
    if refusal.retry_after:
        request.setHeader("Retry-After", str(refusal.retry_after))
    status = refusal.reason.entry.status
    if status == 401:
        request.setHeader("WWW-Authenticate", 'Bearer realm="viewport-relay"')  # RFC 9110 section 11.6.1
    return put_body(request, {"ok": False, "reason": refusal.reason.code}, status)


def refuse_bad(request: Request, bad: BadRequest) -> bytes:
    """Answer a BadRequest."""
    reason, message = Reason.ADMIN_REQUEST_INVALID.code, f"{bad.parameter} takes {bad.takes}"
    body = {"ok": False, "reason": reason, "parameter": bad.parameter, "message": message}
    return put_body(request, body | ({"known": bad.known} if bad.known else {}), bad.status)


def query(request: Request) -> dict[str, str]:
    """The query's parameters; of a repeated one the first value counts. Raises BadRequest."""
    text = request.uri.partition(b"?")[2].decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=32, encoding="utf-8", errors="replace")
    except ValueError:
        raise BadRequest("query", "at most 32 parameters") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def body_json(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises BadRequest."""
    kind = request.getHeader("content-type") or ""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise BadRequest("Content-Type", "application/json", 415)
    content = request.content
    text = content.read(MAX_BODY + 1) if content is not None else b""
    if len(text) > MAX_BODY:
        raise BadRequest("body", f"at most {MAX_BODY} bytes", 413)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest("body", "a JSON object") from None
    if not isinstance(found, dict):
        raise BadRequest("body", "a JSON object")
    return found


def boolean(name: str, text: str | None) -> bool:
    """A boolean parameter; absent is False. Raises BadRequest."""
    try:
        return text is not None and BOOLEAN(text)
    except ValueError:
        raise BadRequest(name, "0 or 1") from None
