"""The platform's claims: their form, and their agreement with the query."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from viewport_relay.admission.claims import grant_for, parse_claims
from viewport_relay.protocol.grant import Claims, Grant, Profile, Role, Scope, UpgradeQuery
from viewport_relay.protocol.json import parse_json
from viewport_relay.reasons import Reason, Refusal

CLIENT = UpgradeQuery(Role.CLIENT, "ws-1", "rt-1")

GOOD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "unknown": {"somethingNew": [None], "x": 1e999},
    "null where named": {"daemonPublicKey": None, "pairingSecret": None, "relayWsBaseUrl": None},
    "longest": {
        "clientId": "c" * 128, "machineId": "m" * 255, "iss": "i" * 255, "jti": "j" * 255, "policyMode": "p" * 128,
        "daemonPublicKey": "k" * 512, "pairingSecret": "s" * 1024, "relayWsBaseUrl": "u" * 512, "aud": "a" * 255,
    },
    "blank is not empty": {"clientId": " "},
    "astral counts twice": {"clientId": "\U0001f600" * 64},
    "aud list": {"aud": ["a", "b" * 255]},
    "aud empty list": {"aud": []},
    "64 channels": {"sessionChannels": [f"agent-session:{i}" for i in range(64)]},
    "64 sessions": {"sessionIds": ["s" * 128] * 64},
    "channel of 255": {"sessionChannels": ["agent-session:" + "x" * 241]},
    "1.0": {"daemonIssueGeneration": 1.0},
    "zero": {"daemonIssueGeneration": 0},
    "minus zero": {"daemonIssueGeneration": -0.0},
    "times": {"iat": 1, "exp": 2.0, "nbf": -3, "ver": 1},
    "role": {"role": "client"},
}  # fmt: skip

BAD: dict[str, dict[str, Any]] = {
    **{
        f"{name} {what}": {name: value}
        for name in (
            "clientId", "userId", "installId", "runtimeTargetId", "machineId", "role", "workspaceId", "iss", "jti",
            "managedExecutorId", "scope", "e2eeProfile", "policyMode", "aud",
        )
        for what, value in (("null", None), ("empty", ""), ("number", 7), ("true", True), ("object", {"a": 1}))
    },
    **{
        f"{name} {what}": {name: value}
        for name in ("daemonPublicKey", "pairingSecret", "relayWsBaseUrl")
        for what, value in (("empty", ""), ("number", 7), ("list", []))
    },
    **{
        f"{name} {what}": {name: value}
        for name in ("iat", "exp", "nbf", "ver", "daemonIssueGeneration")
        for what, value in (
            ("null", None), ("string", "1"), ("true", True), ("fraction", 1.5), ("endless", float("inf")), ("list", [1])
        )
    },
    **{
        f"{name} {what}": {name: value}
        for name in ("sessionIds", "sessionChannels")
        for what, value in (("null", None), ("string", "agent-session:x"), ("null in it", [None]), ("empty", [""]))
    },
    "generation below 0": {"daemonIssueGeneration": -1},
    "clientId 129": {"clientId": "c" * 129},
    "clientId 129 in UTF-16": {"clientId": "\U0001f600" * 64 + "x"},
    "machineId 256": {"machineId": "m" * 256},
    "iss 256": {"iss": "i" * 256},
    "jti 256": {"jti": "i" * 256},
    "aud 256": {"aud": "a" * 256},
    "aud 256 in list": {"aud": ["a" * 256]},
    "aud number in list": {"aud": ["a", 1]},
    "aud empty in list": {"aud": [""]},
    "daemonPublicKey 513": {"daemonPublicKey": "k" * 513},
    "pairingSecret 1025": {"pairingSecret": "k" * 1025},
    "relayWsBaseUrl 513": {"relayWsBaseUrl": "k" * 513},
    "lone surrogate": {"machineId": "\ud800"},
    "role of another": {"role": "worker"},
    "role unknown": {"role": "root"},
    "role case": {"role": "Client"},
    "scope unknown": {"scope": "everything"},
    "profile unknown": {"e2eeProfile": "noise-xx"},
    "65 channels": {"sessionChannels": [f"agent-session:{i}" for i in range(65)]},
    "65 sessions": {"sessionIds": [f"{i}" for i in range(65)]},
    "channel of another kind": {"sessionChannels": ["other:1"]},
    "channel without name": {"sessionChannels": ["agent-session:"]},
    "channel of 256": {"sessionChannels": ["agent-session:" + "x" * 242]},
    "session of 129": {"sessionIds": ["s" * 129]},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_claims(name: str) -> None:
    assert isinstance(parse_claims(GOOD[name], CLIENT), Claims)


@pytest.mark.parametrize("name", BAD)
def test_bad_claims_name_the_claim(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_claims(BAD[name], CLIENT)
    (claim,) = BAD[name]
    assert refused.value.reason is Reason.VALIDATION_RESPONSE_INVALID
    assert refused.value.details["claim"] == claim and claim in refused.value.detail


def test_all_claims() -> None:
    claims = parse_claims(
        {
            "workspaceId": "w", "runtimeTargetId": "t", "clientId": "c", "userId": "u", "machineId": "m",
            "role": "client", "managedExecutorId": "x", "scope": "session-events", "e2eeProfile": "noise-ikpsk2",
            "sessionChannels": ["\ufeff agent-session:a\u00a0", "agent-session:b"], "policyMode": "crypto_pairing",
            "daemonPublicKey": "k", "pairingSecret": "s", "daemonIssueGeneration": 4.0, "exp": 1e9,
        },
        CLIENT,
    )  # fmt: skip
    assert claims == Claims(
        "w", "t", "c", "u", "m", Role.CLIENT, "x", Scope.SESSION_EVENTS,
        frozenset({"agent-session:a", "agent-session:b"}), Profile.IKPSK2, "crypto_pairing", "k", "s", 4, 1e9,
    )  # fmt: skip
    assert type(claims.daemon_issue_generation) is int


def test_numbers_follow_javascript() -> None:
    for text in ("1", "1.0", "1e0", "10e-1"):
        assert (
            parse_claims(parse_json(f'{{"daemonIssueGeneration":{text}}}'), CLIENT).daemon_issue_generation
            == 1
        )
    for text in ("true", '"1"', "1.5", "1e999", "9" * 400):
        with pytest.raises(Refusal):
            parse_claims(parse_json(f'{{"daemonIssueGeneration":{text}}}'), CLIENT)


def test_repr_has_no_secrets() -> None:
    assert "hush" not in repr(parse_claims({"pairingSecret": "hush", "daemonPublicKey": "hush"}, CLIENT))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({name for claims in [*GOOD.values(), *BAD.values()] for name in claims})


@given(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4), st.sampled_from(list(Role)))
def test_any_claims_are_read_or_refused(claims: dict[str, Any], role: Role) -> None:
    query = evolve(CLIENT, role=role)
    try:
        read = parse_claims(claims, query)
    except Refusal as refused:
        assert refused.reason is Reason.VALIDATION_RESPONSE_INVALID
    else:
        assert isinstance(grant_for(query, read, "conn"), (Grant, Refusal))


# -- agreement with the query ------------------------------------------------------------------------------

FULL = Claims(workspace_id="ws-1", runtime_target_id="rt-1", scope=Scope.RUNTIME, client_id="c-1")

AGAINST: dict[str, tuple[dict[str, Any], dict[str, Any], Reason | None]] = {
    "fits": ({}, {}, None),
    "no workspace": ({}, {"workspace_id": None}, Reason.MISSING_WORKSPACE_CLAIM),
    "other workspace": ({}, {"workspace_id": "ws-2"}, Reason.WORKSPACE_CLAIM_MISMATCH),
    "case of workspace": ({}, {"workspace_id": "WS-1"}, Reason.WORKSPACE_CLAIM_MISMATCH),
    "other target": ({}, {"runtime_target_id": "rt-2"}, Reason.RUNTIME_TARGET_CLAIM_MISMATCH),
    "target not claimed": ({}, {"runtime_target_id": None}, Reason.RUNTIME_TARGET_CLAIM_MISMATCH),
    "target from the claim": ({"runtime_target_id": None}, {}, None),
    "odd target from the claim": (
        {"runtime_target_id": None}, {"runtime_target_id": "a\nb"}, Reason.RUNTIME_TARGET_CLAIM_MISMATCH
    ),
    "no scope": ({}, {"scope": None}, Reason.INVALID_SCOPE_CLAIM),
    "no target": ({"runtime_target_id": None}, {"runtime_target_id": None}, Reason.MISSING_RUNTIME_TARGET_CLAIM),
    "no target, session-events": (
        {"runtime_target_id": None}, {"runtime_target_id": None, "scope": Scope.SESSION_EVENTS},
        Reason.MISSING_RUNTIME_TARGET_CLAIM,
    ),
    "no target, pairing": (
        {"runtime_target_id": None}, {"runtime_target_id": None, "scope": Scope.PAIRING}, None
    ),
    "daemon": ({"role": Role.DAEMON}, {"scope": None}, None),
    "daemon, no target": (
        {"role": Role.DAEMON, "runtime_target_id": None}, {"runtime_target_id": None, "scope": None},
        Reason.MISSING_RUNTIME_TARGET_CLAIM,
    ),
    "worker, no target, no scope": (
        {"role": Role.WORKER, "runtime_target_id": None}, {"runtime_target_id": None, "scope": None}, None
    ),
    "worker, other target": ({"role": Role.WORKER}, {"runtime_target_id": "x"}, Reason.RUNTIME_TARGET_CLAIM_MISMATCH),
    "order: workspace before target": (
        {}, {"workspace_id": None, "runtime_target_id": "x", "scope": None}, Reason.MISSING_WORKSPACE_CLAIM
    ),
    "order: target before scope": (
        {}, {"runtime_target_id": "x", "scope": None}, Reason.RUNTIME_TARGET_CLAIM_MISMATCH
    ),
    "order: scope before target": (
        {"runtime_target_id": None}, {"runtime_target_id": None, "scope": None}, Reason.INVALID_SCOPE_CLAIM
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST)
def test_claims_against_the_query(name: str) -> None:
    change, claims, reason = AGAINST[name]
    query = evolve(CLIENT, **change)
    granted = grant_for(query, evolve(FULL, **claims), "conn-1")
    if reason is not None:
        assert isinstance(granted, Refusal) and granted.reason is reason
        return
    assert isinstance(granted, Grant)
    assert (granted.role, granted.workspace_id) == (query.role, "ws-1")
    assert granted.scope is (evolve(FULL, **claims).scope if query.role is Role.CLIENT else None)


def test_the_granted_target_may_come_from_the_claims() -> None:
    granted = grant_for(evolve(CLIENT, runtime_target_id=None), FULL, "conn-1")
    assert isinstance(granted, Grant) and granted.runtime_target_id == "rt-1"


def test_a_client_without_id_gets_the_id_of_its_connection() -> None:
    granted = grant_for(CLIENT, evolve(FULL, client_id=None), "conn-1")
    assert isinstance(granted, Grant) and granted.client_id == "conn-1"
    assert isinstance(named := grant_for(CLIENT, FULL, "conn-1"), Grant) and named.client_id == "c-1"


def test_a_client_without_id_keeps_its_rates_over_connections_with_one_token() -> None:
    def charged_as(connection_id: str, client_id: str | None, token_id: str | None) -> tuple[str, str]:
        granted = grant_for(CLIENT, evolve(FULL, client_id=client_id, token_id=token_id), connection_id)
        assert isinstance(granted, Grant)
        return granted.charged_as

    assert charged_as("conn-1", None, "t-1") == charged_as("conn-2", None, "t-1")
    assert charged_as("conn-1", None, "t-1") != charged_as("conn-1", None, "t-2")
    assert charged_as("conn-1", None, "same") != charged_as("conn-1", "same", None)
    assert charged_as("conn-1", "c-1", "t-1") == charged_as("conn-2", "c-1", "t-2")
    assert charged_as("conn-1", None, None) != charged_as("conn-2", None, None)


@pytest.mark.parametrize(
    "policy,profile,required",
    [
        (None, None, None),
        ("open", None, None),
        (None, Profile.IK, Profile.IK),
        (None, Profile.IKPSK2, Profile.IKPSK2),
        ("crypto_pairing", None, Profile.IKPSK2),
        ("crypto_pairing", Profile.IK, Profile.IKPSK2),
        ("Crypto_Pairing", Profile.IK, Profile.IK),
    ],
)
def test_the_required_profile(policy: str | None, profile: Profile | None, required: Profile | None) -> None:
    granted = grant_for(CLIENT, evolve(FULL, policy_mode=policy, e2ee_profile=profile), "c")
    assert isinstance(granted, Grant) and granted.required_profile is required
