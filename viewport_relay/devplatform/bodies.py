"""The bodies of requests: one struct for each endpoint, with the member names of the wire protocol.

A null is allowed where a member may be absent. Members that a struct does not name are ignored, but for `Validate`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

#: Form of workspace, target, client and relay ids (wire protocol, section 1).
IDENTIFIER = r"^[A-Za-z0-9._:-]{1,128}\Z"
TOKEN_MAX_CHARS = 4096

Identifier = Annotated[str, Meta(pattern=IDENTIFIER)]
Role = Annotated[str, Meta(pattern=r"^(workspace-daemon|client|worker)\Z")]
Scope = Annotated[str, Meta(pattern=r"^(runtime|pairing|session-events)\Z")]
Direction = Annotated[str, Meta(pattern=r"^(client_to_daemon|daemon_to_clients)\Z")]
Channel = Annotated[str, Meta(pattern=r"^agent-session:", max_length=255)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
MachineId = Annotated[str, Meta(min_length=1, max_length=255)]
Url = Annotated[str, Meta(min_length=1, max_length=512)]
Signature = Annotated[str, Meta(min_length=1, max_length=256)]
Token = Annotated[str, Meta(min_length=1, max_length=TOKEN_MAX_CHARS)]
#: Integers as JavaScript has them: 1.0 is one, true is none.
Whole = Annotated[float, Meta(ge=0, lt=2**53, multiple_of=1)]
Positive = Annotated[float, Meta(ge=1, lt=2**53, multiple_of=1)]


class RelayToken(Struct, rename="camel"):
    """`POST relay-token`. A target that is absent and a null are told apart."""

    role: Role
    workspace_id: Identifier
    credential: Token | None = None
    runtime_target_id: Identifier | UnsetType | None = UNSET
    client_id: Identifier | None = None
    scope: Scope = "runtime"
    managed_executor_id: Identifier | None = None
    machine_id: MachineId | None = None
    user_id: Identifier | None = None
    session_channels: Annotated[list[Channel], Meta(max_length=64)] | None = None

    def __post_init__(self) -> None:
        if not all(channel.isprintable() for channel in self.session_channels or ()):
            raise ValueError("Expected printable characters - at `$.sessionChannels`")


class DaemonKey(Struct, rename="camel"):
    """`POST workspaces/{id}/daemon-key`."""

    credential: Token | None = None
    runtime_target_id: Identifier | None = None
    machine_id: MachineId | None = None
    rotate: bool = False


class Validate(Struct, rename="camel", forbid_unknown_fields=True):
    """`POST validate`."""

    relay_token: Token
    role: Role
    workspace_id: Identifier
    runtime_target_id: Identifier | None = None


class Resolve(Struct, rename="camel"):
    """`POST presence/resolve`."""

    workspace_id: Identifier
    runtime_target_id: Identifier


class Upsert(Resolve):
    """`POST presence/upsert`."""

    relay_id: Name
    relay_ws_base_url: Url
    daemon_connected: bool
    machine_id: MachineId | None = None


class BusFrame(Struct, rename="camel"):
    """`POST bus/publish`: what a bus frame must have. The frame is carried as it came."""

    workspace_id: Name
    runtime_target_id: Name
    source_relay_id: Name
    direction: Direction
    issued_at_ms: Whole
    signature: Signature
    payload: str
    target_relay_id: Name | None = None


class Pull(Struct, rename="camel"):
    """`POST bus/pull`."""

    relay_id: Name
    since_id: Whole = 0
    limit: Positive = 200
    wait_ms: Whole = 0
