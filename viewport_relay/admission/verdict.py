"""The verdict on an answer of the platform's validation: the table of the wire protocol, section 2. No I/O.

The first row that fits decides. The platform's own word goes into the refusal's details (`platformWord`),
printable, shortened, and without the token or key that it may repeat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from viewport_relay.admission.claims import parse_claims
from viewport_relay.admission.httpcall import Answer, Encoded, HttpFailure, TooLarge
from viewport_relay.admission.httpwords import redirect
from viewport_relay.admission.keys import COMPOSITES_MAX, printable
from viewport_relay.protocol.grant import Claims, UpgradeQuery
from viewport_relay.protocol.json import parse_json
from viewport_relay.reasons import Reason, Refusal

WORD_MAX_CHARS: Final = 128
#: Refusals of the peer; all others are faults between relay and platform.
DENIALS: Final = frozenset({Reason.VALIDATION_DENIED, Reason.WORKSPACE_NOT_FOUND})

#: What to do about a status, where the reason's own fix would mislead.
_SERVER_HINT: Final = (
    "the platform, or a gateway in front of it, was reached and failed: its own log has the cause"
)
_RATE_HINT: Final = (
    "the platform, or a gateway in front of it, limits the rate of this relay's requests: raise that limit"
)
_PAGE_HINT: Final = (
    "set RELAY_INTERNAL_KEY to the platform's value and restart the relay; but the answer is no JSON: where a proxy or "
    "firewall in front of the platform gives it, let this relay's requests pass there"
)

_NOT_A_LETTER = re.compile(r"[^a-z0-9]+")


def judge_answer(
    answer: Answer, query: UpgradeQuery, url: str, secrets: tuple[str, ...] = ()
) -> Claims | Refusal:
    """The claims that an answer of the platform gives, or the refusal. `url` was asked; `secrets` are texts that no detail may repeat."""
    status = answer.status
    if status >= 500:
        return _fault(
            Reason.PLATFORM_UNREACHABLE, f"the answer is HTTP {status}", url, status, hint=_SERVER_HINT
        )
    body = _json_object(answer.body)
    words = _words(body)
    shown = _shown(words, secrets)
    said = _letters(words)
    if body is not None and (status == 404 or any("workspacenotfound" in word for word in said)):
        return _denial(Reason.WORKSPACE_NOT_FOUND, "", status, shown)
    if status in (401, 403) and (not words or any("internalkey" in word for word in said)):
        page = body is None and bool(answer.body)
        why = f"the answer is HTTP {status}" + (f", {_kind(answer)}" if page else "")
        return _fault(Reason.INTERNAL_KEY_MISMATCH, why, url, status, shown, _PAGE_HINT if page else "")
    if body is not None and (body.get("ok") is False or status in (401, 403)):
        return _denial(Reason.VALIDATION_DENIED, shown or "the platform gives no reason", status, shown)
    why = _missing(answer, body)
    if body is None or why:
        hint = _RATE_HINT if status == 429 else ""
        return _fault(Reason.VALIDATION_RESPONSE_INVALID, why, url, status, shown, hint)
    try:
        return parse_claims(body["claims"], query)
    except Refusal as wrong:
        return evolve(wrong, detail=f"{wrong.detail} ({url})", details={**wrong.details, "url": url})


def judge_failure(failure: HttpFailure, url: str) -> Refusal:
    """The refusal for an answer from `url` that never came or was not read."""
    status = failure.status
    if not status or status >= 500:
        why = f"the answer is HTTP {status}" if status else failure.why
        hint = _SERVER_HINT if status else failure.hint
        return _fault(Reason.PLATFORM_UNREACHABLE, why, url, status, hint=hint)
    if isinstance(failure, TooLarge):
        return _fault(Reason.ADMISSION_RESPONSE_TOO_LARGE, failure.why, url, status)
    assert isinstance(failure, Encoded)
    return _fault(Reason.VALIDATION_RESPONSE_INVALID, failure.why, url, status)


def _denial(reason: Reason, detail: str, status: int, shown: str) -> Refusal:
    """The refusal of a peer that the platform refuses."""
    word = {"platformWord": shown} if shown else {}
    return Refusal(reason, detail, details={"httpStatus": status, **word})


def _fault(reason: Reason, why: str, url: str, status: int, shown: str = "", hint: str = "") -> Refusal:
    """The refusal for a fault between relay and platform. `status` is 0 where no answer came."""
    details: dict[str, Any] = {"why": why, "url": url}
    if status:
        details["httpStatus"] = status
    if shown:
        details["platformWord"] = shown
    if hint:
        details["hint"] = hint
    return Refusal(reason, f"{why} ({url})", details=details)


def _missing(answer: Answer, body: Mapping[str, Any] | None) -> str:
    """The fault that keeps an answer from being an admission, apart from its claims; "" if there is none."""
    status = answer.status
    if elsewhere := redirect(answer):
        return f"the answer is {elsewhere}"
    if body is None:
        return f"the answer (HTTP {status}, {_kind(answer)}) is not a JSON object"
    if not 200 <= status < 300:
        return f"the answer is HTTP {status} without ok:false"
    if body.get("ok") is not True:
        return "ok is neither true nor false" if "ok" in body else "ok is missing"
    if not isinstance(body.get("claims"), dict):
        return "claims is not an object" if "claims" in body else "claims is missing"
    return ""


def _kind(answer: Answer) -> str:
    """The content type of an answer."""
    return printable(answer.header("content-type") or "no content type", 64)


def _words(body: Mapping[str, Any] | None) -> list[str]:
    """`reason` and `error` of an answer as text; a value that is no string as JSON, no text for an empty one and null."""
    words: list[str] = []
    for name in ("reason", "error"):
        value = None if body is None else body.get(name)
        if isinstance(value, str):
            words.append(value)
        elif value:
            try:
                words.append(json.dumps(value, separators=(",", ":")))
            except RecursionError:  # it was just not too deep to be read
                words.append("a value that is nested too deeply")
    return [word for word in words if word.strip()]


def _letters(words: list[str]) -> list[str]:
    """Words reduced to lower-case letters and digits: the same for WORKSPACE_NOT_FOUND, workspaceNotFound, …"""
    return [_NOT_A_LETTER.sub("", word.lower()) for word in words]


def _shown(words: list[str], secrets: tuple[str, ...]) -> str:
    text = ": ".join(words)
    for secret in secrets:
        text = text.replace(secret, "…") if secret else text
    return printable(text, WORD_MAX_CHARS)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(body.decode("utf-8"), most_composites=COMPOSITES_MAX)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
