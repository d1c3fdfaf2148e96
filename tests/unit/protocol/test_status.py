"""The relay's own frames: exactly the members of the wire protocol."""

from __future__ import annotations

import json

import pytest

from viewport_relay.protocol import status
from viewport_relay.protocol.frames import Subscribe, Unsubscribe, ViewerPresence

FRAMES: list[tuple[str, dict[str, object]]] = [
    (
        status.daemon_unavailable("w", "t", "m"),
        {
            "type": "relay_status",
            "code": "DAEMON_UNAVAILABLE",
            "message": "No machine runtime is connected for this runtime target",
            "workspaceId": "w",
            "retryable": True,
            "runtimeTargetId": "t",
            "machineId": "m",
        },
    ),
    (
        status.daemon_unavailable("w", "t", None),
        {
            "type": "relay_status",
            "code": "DAEMON_UNAVAILABLE",
            "message": "No machine runtime is connected for this runtime target",
            "workspaceId": "w",
            "retryable": True,
            "runtimeTargetId": "t",
        },
    ),
    (
        status.runtime_target_required("w"),
        {
            "type": "relay_status",
            "code": "RUNTIME_TARGET_REQUIRED",
            "message": "Runtime client must specify a runtime target",
            "workspaceId": "w",
            "retryable": False,
        },
    ),
    (
        status.invalid_frame("w"),
        {
            "type": "relay_status",
            "code": "INVALID_FRAME",
            "message": "client frame must be a valid runtime or pairing control frame",
            "workspaceId": "w",
        },
    ),
    (
        status.session_events_scope_only("w"),
        {
            "type": "relay_status",
            "code": "SESSION_EVENTS_SCOPE_ONLY",
            "message": "session-events scoped clients can only subscribe to authorized session event channels",
            "workspaceId": "w",
        },
    ),
    (
        status.relay_redirect("w", "wss://relay-2.example"),
        {
            "type": "relay_status",
            "code": "RELAY_REDIRECT",
            "message": "Workspace is assigned to a different relay instance",
            "workspaceId": "w",
            "relayWsBaseUrl": "wss://relay-2.example",
        },
    ),
    (
        status.relay_redirect("w", "wss://relay-2.example", "t"),
        {
            "type": "relay_status",
            "code": "RELAY_REDIRECT",
            "message": "Workspace is assigned to a different relay instance",
            "workspaceId": "w",
            "relayWsBaseUrl": "wss://relay-2.example",
            "runtimeTargetId": "t",
        },
    ),
    (
        status.rate_limited("w", 1500),
        {
            "type": "relay_status",
            "code": "RATE_LIMITED",
            "message": "rate limit exceeded",
            "workspaceId": "w",
            "retryAfterMs": 1500,
        },
    ),
    (
        status.subscribed(Subscribe("agent-session:a", 7)),
        {
            "type": "viewport.session_events.subscribed/v1",
            "channel": "agent-session:a",
            "afterSequence": 7,
            "authoritativeSource": "session_events",
            "websocketRequiredForBackfill": False,
        },
    ),
    (
        status.unsubscribed(Unsubscribe("agent-session:a")),
        {"type": "viewport.session_events.unsubscribed/v1", "channel": "agent-session:a"},
    ),
    (
        status.channel_denied(Subscribe("agent-session:a", 0), "w"),
        {
            "type": "viewport.session_events.subscribe_denied/v1",
            "channel": "agent-session:a",
            "reason": "CHANNEL_NOT_AUTHORIZED",
            "workspaceId": "w",
        },
    ),
    (
        status.channel_denied(ViewerPresence("agent-session:a", "u"), "w"),
        {
            "type": "viewport.session_viewer_presence_denied/v1",
            "channel": "agent-session:a",
            "reason": "CHANNEL_NOT_AUTHORIZED",
            "workspaceId": "w",
        },
    ),
    (
        status.executor_response("r", 201, {"content-type": "text/plain"}, "b\u00e9\ud800"),
        {
            "type": "viewport.worker_transport.response/v1",
            "requestId": "r",
            "status": 201,
            "headers": {"content-type": "text/plain"},
            "body": "b\u00e9\ud800",
        },
    ),
]


@pytest.mark.parametrize(("text", "members"), FRAMES, ids=lambda value: str(value)[:50])
def test_exactly_these_members(text: str, members: dict[str, object]) -> None:
    assert json.loads(text) == members
    assert text.encode("ascii")  # ASCII, even with surrogates in an id of a peer
