"""JSON over twisted.web: bounded requests, strict bodies, and answers as values.

Nothing here knows an endpoint. Every way in which a request can be wrong ends as a `Refused` with an
HTTP status, a reason code and a sentence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from attrs import field, frozen
from twisted.web.server import Request

IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Form of workspace, target, client and relay ids (wire protocol, section 1); use `fullmatch`."""

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
    """A request that is answered with an error; `error` never repeats what the request contained."""

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

    def fields(self, *, empty_ok: bool = False) -> Fields:
        """The body as a JSON object; Refused 400 for anything else."""
        if empty_ok and not self.raw.strip():
            return Fields({})
        return Fields(parse_object(self.raw))

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


class Fields:
    """Typed access to the members of a JSON object; null counts as absent. All raise Refused 400."""

    def __init__(self, body: Mapping[str, object]) -> None:
        self.body = body

    def __contains__(self, name: str) -> bool:
        return name in self.body

    def only(self, *names: str) -> None:
        """Refuse members that are not among `names`."""
        if set(self.body) - set(names):
            raise _invalid(f"the body has members beside {', '.join(names)}")

    def text(self, name: str, *, most: int) -> str:
        """A string of 1 to `most` characters, encodable as UTF-8."""
        value = self.body.get(name)
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise _invalid(f"{name} must be a string of 1 to {most} characters")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _invalid(f"{name} has a lone surrogate") from None
        return value

    def optional_text(self, name: str, *, most: int) -> str | None:
        """As `text`, or None if absent."""
        return None if self.body.get(name) is None else self.text(name, most=most)

    def identifier(self, name: str) -> str:
        """An id: 1 to 128 of `A-Za-z0-9._:-`."""
        value = self.body.get(name)
        if not isinstance(value, str) or IDENTIFIER.fullmatch(value) is None:
            raise _invalid(f"{name} must be 1 to 128 of A-Z a-z 0-9 . _ : -")
        return value

    def optional_identifier(self, name: str) -> str | None:
        """As `identifier`, or None if absent."""
        return None if self.body.get(name) is None else self.identifier(name)

    def one_of(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of `choices`."""
        value = self.body.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise _invalid(f"{name} must be one of {', '.join(choices)}")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A boolean; required when there is no default."""
        value = self.body.get(name, default)
        if not isinstance(value, bool):
            raise _invalid(f"{name} must be true or false")
        return value

    def integer(self, name: str, *, least: int = 0, default: int | None = None) -> int:
        """An integer from `least` to 2**53 - 1, read as JavaScript reads it (1.0 is one, true is none)."""
        value = self.body.get(name, default)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not whole:
            raise _invalid(f"{name} must be an integer")
        if not least <= value < 2**53:
            raise _invalid(f"{name} must be at least {least} and below 2**53")
        return int(value)


def _invalid(error: str) -> Refused:
    return Refused(400, "INVALID_BODY", error)


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
