"""JSON over twisted.web: bounded requests, strict bodies, and answers as values.

Nothing here knows an endpoint. Every way in which a request can be wrong ends as a `Refused` with an
HTTP status, a reason code and a sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any, TypeVar

import msgspec
from attrs import field, frozen
from twisted.web.server import Request

B = TypeVar("B", bound=msgspec.Struct)

BODY_MAX_BYTES = 1_048_576
DISCARD_MAX_BYTES = 8 * BODY_MAX_BYTES
"""What is read and thrown away of a body that is too large, so that the sender sees the answer."""


@frozen
class Answer:
    """An HTTP answer: `raw` if given, else `body` as JSON. `delay` and `drip` are seconds (see `Rule`)."""

    status: int = 200
    body: object = field(factory=dict, repr=False)
    raw: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    delay: float = 0.0
    drip: float = 0.0

    def payload(self) -> bytes:
        """The bytes of the body."""
        return self.raw if self.raw is not None else json.dumps(self.body).encode("ascii")


class Refused(Exception):
    """A request that is answered with an error; `error` never repeats a value of the request."""

    def __init__(
        self, status: int, reason: str, error: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.error = error
        self.headers = headers or {}

    def answer(self) -> Answer:
        """The refusal as JSON: `ok`, `reason`, and `error` if there is one."""
        body: dict[str, object] = {"ok": False, "reason": self.reason}
        if self.error is not None:
            body["error"] = self.error
        return Answer(self.status, body, headers=self.headers)


@frozen
class Ask:
    """A request as endpoints see it: `target` is the raw request target, `path` the part before `?`."""

    method: str
    target: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    raw: bytes = field(repr=False)

    def body(self, kind: type[B]) -> B:
        """The body as a struct. Refused 400: `INVALID_JSON` for what is no JSON object, `INVALID_BODY` for a wrong one."""
        parse_object(self.raw)
        try:
            return msgspec.json.decode(self.raw, type=kind)
        except msgspec.DecodeError as wrong:
            raise Refused(400, "INVALID_BODY", f"the body does not fit: {wrong}") from None

    def bearer(self) -> str | None:
        """The credential of an `Authorization: Bearer` header (scheme in any case), or None."""
        scheme, _, credential = self.headers.get("authorization", "").partition(" ")
        return credential.strip() or None if scheme.lower() == "bearer" else None


def parse_object(raw: bytes) -> dict[str, object]:
    """One JSON object in UTF-8 (RFC 8259); Refused 400 `INVALID_JSON` names the error."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except UnicodeDecodeError:
        raise Refused(400, "INVALID_JSON", "the body is not UTF-8") from None
    except json.JSONDecodeError as wrong:
        raise Refused(400, "INVALID_JSON", f"the body is not JSON: {wrong.msg} at {wrong.pos}") from None
    except ValueError:
        raise Refused(400, "INVALID_JSON", "the body has a number that is out of range") from None
    except RecursionError:
        raise Refused(400, "INVALID_JSON", "the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise Refused(400, "INVALID_JSON", "the body is not a JSON object")
    return value


def _finite(text: str) -> float:
    # NaN and infinite numbers could not be written as JSON again.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("out of range")
    return number


class BoundedRequest(Request):
    """A twisted.web request that keeps at most 1 MiB of body, in memory.

    Of a longer one up to 8 MiB are read and thrown away, so that the sender reads the 413; a sender that
    still goes on is cut off.
    """

    too_large = False
    _arrived = 0

    def gotLength(self, length: int | None) -> None:
        """Called by the channel after the headers."""
        self._kept = self.content = BytesIO()
        self.too_large = length is not None and length > BODY_MAX_BYTES

    def handleContentChunk(self, data: bytes) -> None:
        """Called by the channel for each piece of body."""
        self._arrived += len(data)
        if self._arrived > BODY_MAX_BYTES:
            self.too_large = True
        if not self.too_large:
            self._kept.write(data)
        elif self._arrived > DISCARD_MAX_BYTES:
            channel: Any = self.channel
            channel.transport.abortConnection()

    def ask(self) -> Ask:
        """This request as a value. Repeated headers are joined with a comma, names are in lower case."""
        headers: dict[str, str] = {}
        for name, values in self.requestHeaders.getAllRawHeaders():
            headers[name.lower().decode("latin-1")] = b", ".join(values).decode("latin-1")
        return Ask(
            method=self.method.decode("latin-1"),
            target=self.uri.decode("latin-1"),
            path=self.path.decode("latin-1"),
            headers=headers,
            raw=self._kept.getvalue(),
        )
