"""The form of `GET /ws`'s query parameters (wire protocol, section 1). Splitting the URL is the caller's."""

from __future__ import annotations

import re

from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def is_identifier(text: str) -> bool:
    """Whether `text` may be a workspaceId or runtimeTargetId: 1 to 128 of `A-Za-z0-9._:-`, nothing else."""
    return _IDENTIFIER.fullmatch(text) is not None


def read_query(role: str | None, workspace_id: str | None, runtime_target_id: str | None) -> UpgradeQuery:
    """The checked query; None stands for a parameter that is absent. Raises Refusal QUERY_INVALID."""
    try:
        known = Role(role)
    except ValueError:
        words = "role is missing" if role is None else "role is none of workspace-daemon, client, worker"
        raise Refusal(Reason.QUERY_INVALID, words) from None
    if workspace_id is None:
        raise Refusal(Reason.QUERY_INVALID, "workspaceId is missing")
    for name, value in (("workspaceId", workspace_id), ("runtimeTargetId", runtime_target_id)):
        if value is not None and not is_identifier(value):
            raise Refusal(Reason.QUERY_INVALID, f"{name} is not 1 to 128 of A-Za-z0-9._:-")
    return UpgradeQuery(known, workspace_id, runtime_target_id)
