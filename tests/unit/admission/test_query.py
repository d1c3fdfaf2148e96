"""The query of an upgrade: valid and invalid parameters."""

from __future__ import annotations

import pytest

from viewport_relay.admission.query import is_identifier, read_query
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

LONGEST = "Az09._:-" * 16


@pytest.mark.parametrize("role", ["workspace-daemon", "client", "worker"])
@pytest.mark.parametrize("target", [None, "t", LONGEST])
def test_valid_queries(role: str, target: str | None) -> None:
    assert read_query(role, LONGEST, target) == UpgradeQuery(Role(role), LONGEST, target)


@pytest.mark.parametrize(
    "role,workspace,target,named",
    [
        (None, "w", None, "role"),
        ("", "w", None, "role"),
        ("Client", "w", None, "role"),
        ("client\n", "w", None, "role"),
        ("admin", "w", None, "role"),
        ("client", None, None, "workspaceId"),
        ("client", "", None, "workspaceId"),
        ("client", "w1\n", None, "workspaceId"),
        ("client", "a b", None, "workspaceId"),
        ("client", "a/b", None, "workspaceId"),
        ("client", "é", None, "workspaceId"),
        ("client", "１", None, "workspaceId"),
        ("client", "a" * 129, None, "workspaceId"),
        ("client", "w", "", "runtimeTargetId"),
        ("client", "w", "a/b", "runtimeTargetId"),
        ("client", "w", "t\n", "runtimeTargetId"),
        ("client", "w", "a" * 129, "runtimeTargetId"),
    ],
)
def test_invalid_queries_name_the_parameter(
    role: str | None, workspace: str | None, target: str | None, named: str
) -> None:
    with pytest.raises(Refusal) as refused:
        read_query(role, workspace, target)
    assert refused.value.reason is Reason.QUERY_INVALID and refused.value.detail.startswith(named)


def test_identifiers() -> None:
    assert is_identifier("a") and not is_identifier("") and not is_identifier("a\x00")
