"""The relay's own frames, with exactly the members that the wire protocol names (section 5)."""

from __future__ import annotations

import json

from viewport_relay.protocol.frames import Subscribe, Unsubscribe, ViewerPresence


def _text(**members: object) -> str:
    return json.dumps(members, separators=(",", ":"))


def _status(code: str, message: str, workspace_id: str, **more: object) -> str:
    return _text(type="relay_status", code=code, message=message, workspaceId=workspace_id, **more)


def daemon_unavailable(workspace_id: str, runtime_target_id: str | None, machine_id: str | None) -> str:
    more: dict[str, object] = {"retryable": True}
    if runtime_target_id is not None:
        more["runtimeTargetId"] = runtime_target_id
    if machine_id is not None:
        more["machineId"] = machine_id
    return _status(
        "DAEMON_UNAVAILABLE", "No machine runtime is connected for this runtime target", workspace_id, **more
    )


def runtime_target_required(workspace_id: str) -> str:
    return _status(
        "RUNTIME_TARGET_REQUIRED",
        "Runtime client must specify a runtime target",
        workspace_id,
        retryable=False,
    )


def invalid_frame(workspace_id: str) -> str:
    return _status(
        "INVALID_FRAME", "client frame must be a valid runtime or pairing control frame", workspace_id
    )


def session_events_scope_only(workspace_id: str) -> str:
    return _status(
        "SESSION_EVENTS_SCOPE_ONLY",
        "session-events scoped clients can only subscribe to authorized session event channels",
        workspace_id,
    )


def relay_redirect(workspace_id: str, ws_base_url: str, runtime_target_id: str | None = None) -> str:
    """`runtime_target_id` is given when this answers a frame, and not at the upgrade."""
    more = {"relayWsBaseUrl": ws_base_url}
    if runtime_target_id is not None:
        more["runtimeTargetId"] = runtime_target_id
    return _status(
        "RELAY_REDIRECT", "Workspace is assigned to a different relay instance", workspace_id, **more
    )


def rate_limited(workspace_id: str, retry_after_ms: int) -> str:
    return _status("RATE_LIMITED", "rate limit exceeded", workspace_id, retryAfterMs=retry_after_ms)


def subscribed(frame: Subscribe) -> str:
    return _text(
        type="viewport.session_events.subscribed/v1",
        channel=frame.channel,
        afterSequence=frame.after_sequence,
        authoritativeSource="session_events",
        websocketRequiredForBackfill=False,
    )


def unsubscribed(frame: Unsubscribe) -> str:
    return _text(type="viewport.session_events.unsubscribed/v1", channel=frame.channel)


def channel_denied(frame: Subscribe | Unsubscribe | ViewerPresence, workspace_id: str) -> str:
    kind = (
        "session_viewer_presence_denied"
        if isinstance(frame, ViewerPresence)
        else "session_events.subscribe_denied"
    )
    return _text(
        type=f"viewport.{kind}/v1",
        channel=frame.channel,
        reason="CHANNEL_NOT_AUTHORIZED",
        workspaceId=workspace_id,
    )


def worker_response(request_id: str, status: int, headers: dict[str, str], body: str) -> str:
    return _text(
        type="viewport.worker_transport.response/v1",
        requestId=request_id,
        status=status,
        headers=headers,
        body=body,
    )
