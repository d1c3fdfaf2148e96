"""The actions of operators: close connections, empty caches. Each leaves a log entry."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.web.server import Request

from viewport_relay.admin.reply import BadRequest, body_json, put_body, put_late
from viewport_relay.admin.state import StateSource
from viewport_relay.observe.sink import EventSink
from viewport_relay.routing.views import Selection

_ID = r"[A-Za-z0-9._:-]{1,128}", "1 to 128 characters of A-Z a-z 0-9 . _ : -"

#: The members of a selection, in the order of its fields: the form of each, and the form in words.
_MEMBERS = {
    "workspaceId": _ID,
    "runtimeTargetId": _ID,
    "connectionId": _ID,
    # A token's `jti`: the standard only says that it is a string (RFC 7519, section 4.1.7).
    "tokenId": (r"[ -~]{1,255}", "1 to 255 printable ASCII characters"),
}
_DISCONNECT_TAKES = 'either {"workspaceId", "runtimeTargetId"?}, {"connectionId"} or {"tokenId"}'


@frozen(eq=False)
class Actions:
    """The pages `POST /disconnect` and `POST /cache/flush`. `AdminResource` has checked the access; the pages check the body."""

    _state: StateSource
    _log: EventSink
    _client_ip: Callable[[Request], str]

    def disconnect(self, request: Request) -> int:
        """`POST /disconnect`: close a connection, all of a workspace or target, or all of a token (its `jti`)."""
        body = body_json(request)
        unknown = sorted(set(body) - set(_MEMBERS))
        if unknown:
            raise BadRequest(unknown[0][:64], "nothing: there is no such member; " + _DISCONNECT_TAKES)
        which = Selection(*(_identifier(body, name) for name in _MEMBERS))
        parts = (which.workspace_id, which.connection_id, which.token_id)
        if sum(part is not None for part in parts) != 1 or (
            which.workspace_id is None and which.runtime_target_id is not None
        ):
            raise BadRequest("body", _DISCONNECT_TAKES)

        operator = self._client_ip(request)

        def log(closed: int) -> int:
            self._log.event(
                "operator_disconnect",
                message=f"an operator closed {closed} connections",
                connection_id=which.connection_id,
                workspaceId=which.workspace_id,
                runtimeTargetId=which.runtime_target_id,
                tokenId=which.token_id,
                closed=closed,
                operator=operator,
            )
            return closed

        closing = self._state.disconnect(which)
        closed = (closing if isinstance(closing, Deferred) else succeed(closing)).addCallback(log)
        return put_late(request, closed, lambda n: put_body(request, {"ok": True, "disconnected": n}))

    def flush(self, request: Request) -> bytes:
        """`POST /cache/flush`: forget validations, and fetch the key set again with the next upgrade."""
        body_json(request)
        self._state.flush_caches()
        ip = self._client_ip(request)
        self._log.event("operator_cache_flush", message="an operator emptied the caches", operator=ip)
        return put_body(request, {"ok": True})


def _identifier(body: dict[str, Any], name: str) -> str | None:
    value, (form, takes) = body.get(name), _MEMBERS[name]
    if value is None or (isinstance(value, str) and re.fullmatch(form, value)):
        return value
    raise BadRequest(name, takes)
