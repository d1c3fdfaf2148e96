"""The relay's own frames, with exactly the members that the wire protocol names (section 5)."""

from __future__ import annotations

import json

from viewport_relay.protocol.frames import Subscribe, Unsubscribe, ViewerPresence


def _text(**members: object) -> str:
    """The JSON of these members, without those that are None."""
    return json.dumps(
        {name: value for name, value in members.items() if value is not None}, separators=(",", ":")
    )


def _status(code: str, message: str, workspace_id: str, **more: object) -> str:
    return _text(type="relay_status", code=code, message=message, workspaceId=workspace_id, **more)


def daemon_unavailable(workspace_id: str, runtime_target_id: str | None, machine_id: str | None) -> str:
    message = "No machine runtime is connected for this runtime target"
    more = {"runtimeTargetId": runtime_target_id, "machineId": machine_id}
    return _status("DAEMON_UNAVAILABLE", message, workspace_id, retryable=True, **more)


def runtime_target_required(workspace_id: str) -> str:
    message = "Runtime client must specify a runtime target"
    return _status("RUNTIME_TARGET_REQUIRED", message, workspace_id, retryable=False)


def invalid_frame(workspace_id: str) -> str:
    message = "client frame must be a valid runtime or pairing control frame"
    return _status("INVALID_FRAME", message, workspace_id)


def session_events_scope_only(workspace_id: str) -> str:
    message = "session-events scoped clients can only subscribe to authorized session event channels"
    return _status("SESSION_EVENTS_SCOPE_ONLY", message, workspace_id)


def relay_redirect(workspace_id: str, ws_base_url: str, runtime_target_id: str | None = None) -> str:
    """The redirect to another relay; `runtime_target_id` is given in the answer to a frame, not after the upgrade."""
    message = "Workspace is assigned to a different relay instance"
    more = {"relayWsBaseUrl": ws_base_url, "runtimeTargetId": runtime_target_id}
    return _status("RELAY_REDIRECT", message, workspace_id, **more)


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


def executor_response(request_id: str, status: int, headers: dict[str, str], body: str) -> str:
    return _text(
        type="viewport.worker_transport.response/v1",
        requestId=request_id,
        status=status,
        headers=headers,
        body=body,
    )
