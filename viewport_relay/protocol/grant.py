"""The values of an admission: the query of the upgrade, the link's sub-protocol, the platform's claims, the grant.

Everything here is immutable. `admission/claims.py` parses and checks the platform's claims.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import frozen

#: The sub-protocol by which a peer chooses the Noise link (wire protocol, section 11).
LINK_SUBPROTOCOL: Final = "viewport.noise-link.v1"


class Role(str, Enum):
    """The role of a peer (wire protocol, section 1)."""

    DAEMON = "workspace-daemon"
    CLIENT = "client"
    WORKER = "worker"


class Scope(str, Enum):
    """The frames that a client may send (wire protocol, section 3)."""

    RUNTIME = "runtime"
    PAIRING = "pairing"
    SESSION_EVENTS = "session-events"


class Profile(str, Enum):
    """End-to-end Noise profile."""

    IK = "noise-ik"
    IKPSK2 = "noise-ikpsk2"


#: The names of the profiles.
PROFILES: Final = frozenset(profile.value for profile in Profile)


@frozen
class UpgradeQuery:
    """The query of `GET /ws`, already checked for form."""

    role: Role
    workspace_id: str
    runtime_target_id: str | None

    def describe(self) -> dict[str, str | None]:
        """The details of a log entry about an upgrade with this query."""
        return {
            "role": self.role.value,
            "workspaceId": self.workspace_id,
            "runtimeTargetId": self.runtime_target_id,
        }


@frozen
class Claims:
    """The platform's claims about a token, already checked for form. None: absent (or null, where allowed)."""

    workspace_id: str | None = None
    runtime_target_id: str | None = None
    client_id: str | None = None
    user_id: str | None = None
    machine_id: str | None = None
    role: Role | None = None
    managed_executor_id: str | None = None
    scope: Scope | None = None
    session_channels: frozenset[str] = frozenset()  # trimmed
    e2ee_profile: Profile | None = None
    policy_mode: str | None = None
    daemon_public_key: str | None = None
    pairing_secret: str | None = None
    daemon_issue_generation: int | None = None
    expires_at: float | None = None  # exp of claims or token, the earlier one; seconds since the epoch
    token_id: str | None = None  # jti

    def __repr__(self) -> str:  # secrets stay out of logs and tracebacks
        return f"Claims(workspace_id={self.workspace_id!r}, role={self.role!r}, scope={self.scope!r})"


@frozen
class Grant:
    """The grant of one admitted connection. Frames are judged by their sender's own grant alone.

    `runtime_target_id` is None for executors and pairing clients without one. `required_profile` is what
    `policyMode` and `e2eeProfile` together demand (wire protocol, section 3), None for no demand.
    """

    role: Role
    workspace_id: str
    runtime_target_id: str | None
    scope: Scope | None
    client_id: str
    claims: Claims
    required_profile: Profile | None

    def describe(self) -> dict[str, str | None]:
        """The details of a log entry about a peer with this grant."""
        return {
            "role": self.role.value,
            "workspaceId": self.workspace_id,
            "runtimeTargetId": self.runtime_target_id,
            "clientId": self.client_id,
        }

    @property
    def charged_as(self) -> tuple[str, str]:
        """Kind and value of the id that a client's rates go by: clientId, else the token's, else the connection's.

        Without a clientId a connection that is opened again with the same token keeps its budget. The kind keeps a token id
        apart from a clientId with the same text.
        """
        claims = self.claims
        if claims.client_id is None and claims.token_id is not None:
            return "token", claims.token_id
        return "client", self.client_id
