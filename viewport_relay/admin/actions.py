"""The actions of operators: close connections, empty caches. Each leaves a log entry."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.web.server import Request

from viewport_relay.admin.reply import BadRequest, body_json, put_json, put_late
from viewport_relay.admin.state import StateSource
from viewport_relay.observe.sink import EventSink
from viewport_relay.routing.views import Selection

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_TAKES = "1 to 128 characters of A-Z a-z 0-9 . _ : -"
#: A token's `jti`; the standard only says that it is a string (RFC 7519 section 4.1.7).
_TOKEN_ID = re.compile(r"[ -~]{1,255}")
_TOKEN_ID_TAKES = "1 to 255 printable ASCII characters"
_DISCONNECT_TAKES = 'either {"workspaceId", "runtimeTargetId"?}, {"connectionId"} or {"tokenId"}'


@frozen(eq=False)
class Actions:
    """The POST pages. The gate has checked the request; the body is checked here."""

    _state: StateSource
    _log: EventSink
    _client_ip: Callable[[Request], str]

    def disconnect(self, request: Request) -> bytes | int:
        """`POST /disconnect`: close a connection, all of a workspace or target, or all of a token (its `jti`)."""
        body = body_json(request)
        unknown = sorted(set(body) - {"workspaceId", "runtimeTargetId", "connectionId", "tokenId"})
        if unknown:
            raise BadRequest(unknown[0][:64], "nothing: there is no such member; " + _DISCONNECT_TAKES)
        which = Selection(
            _identifier(body, "workspaceId"),
            _identifier(body, "runtimeTargetId"),
            _identifier(body, "connectionId"),
            _identifier(body, "tokenId", _TOKEN_ID),
        )
        given = sum(part is not None for part in (which.workspace_id, which.connection_id, which.token_id))
        if given != 1 or (which.workspace_id is None and which.runtime_target_id is not None):
            raise BadRequest("body", _DISCONNECT_TAKES)
        closed = self._state.disconnect(which)

        def say(closed: int) -> bytes:
            self._log.event(
                "operator_disconnect",
                message=f"an operator closed {closed} connections",
                connection_id=which.connection_id,
                workspaceId=which.workspace_id,
                runtimeTargetId=which.runtime_target_id,
                tokenId=which.token_id,
                closed=closed,
                operator=self._client_ip(request),
            )
            return put_json(request, {"ok": True, "disconnected": closed})

        if isinstance(closed, Deferred):
            return put_late(request, closed, say)
        return say(closed)

    def flush(self, request: Request) -> bytes:
        """`POST /cache/flush`: forget validations, and fetch the key set again with the next upgrade."""
        body_json(request)
        self._state.flush_caches()
        self._log.event(
            "operator_cache_flush",
            message="an operator emptied the caches",
            operator=self._client_ip(request),
        )
        return put_json(request, {"ok": True})


def _identifier(body: dict[str, Any], name: str, form: re.Pattern[str] = _ID) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise BadRequest(name, _ID_TAKES if form is _ID else _TOKEN_ID_TAKES)
    return value
