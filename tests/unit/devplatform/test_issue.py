"""Token issuance: claims by role, workspace and credential."""

from __future__ import annotations

import json

import pytest
from twisted.internet.task import Clock

from viewport_relay.devplatform import bodies
from viewport_relay.devplatform.issue import (
    MAX_ISSUE_TOKENS,
    MAX_TARGETS,
    DaemonKeys,
    TokenIssuer,
    same_secret,
)
from viewport_relay.devplatform.jsonhttp import Ask, B, Refused
from viewport_relay.devplatform.tokens import KeyRing
from viewport_relay.devplatform.workspaces import Workspace, Workspaces
from viewport_relay.peer import base64url

CREDENTIAL = "the-development-credential"


@pytest.fixture
def issuer(clock: Clock, keys: KeyRing) -> TokenIssuer:
    return TokenIssuer(clock.seconds, keys, Workspaces(), CREDENTIAL)


def sent(kind: type[B], **members: object) -> B:
    return Ask("POST", "/", "/", {}, json.dumps(members).encode()).body(kind)


def ask(**members: object) -> bodies.RelayToken:
    usual = {"role": "client", "workspaceId": "dev-workspace", "credential": CREDENTIAL}
    return sent(bodies.RelayToken, **(usual | members))


def refusal(issuer: TokenIssuer, **members: object) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        issuer.relay_token(ask(**members), None)
    return caught.value.status, caught.value.reason


def test_a_clients_token_carries_the_claims_and_lasts_300_s(
    issuer: TokenIssuer, keys: KeyRing, clock: Clock
) -> None:
    issued = issuer.relay_token(ask(), None)
    claims = keys.verify(issued.token, clock.seconds())
    assert claims == issued.claims
    assert claims["exp"] == int(clock.seconds()) + 300
    assert {
        name: claims[name] for name in ("iss", "aud", "role", "workspaceId", "runtimeTargetId", "scope")
    } == {
        "iss": "viewport-server",
        "aud": "viewport-relay",
        "role": "client",
        "workspaceId": "dev-workspace",
        "runtimeTargetId": "dev-machine",
        "scope": "runtime",
    }
    assert str(claims["clientId"]).startswith("dev-client-")
    assert "managedExecutorId" not in claims
    assert "daemonIssueGeneration" not in claims


def test_no_token_carries_policy_or_secret(issuer: TokenIssuer) -> None:
    issued = issuer.relay_token(ask(workspaceId="dev-paired", pairingSecret="x", policyMode="y"), None)
    assert not {"pairingSecret", "policyMode", "e2eeProfile"} & set(issued.claims)


def test_requested_claims_are_added(issuer: TokenIssuer) -> None:
    claims = issuer.relay_token(
        ask(
            scope="session-events",
            clientId="me",
            machineId="m1",
            userId="u1",
            sessionChannels=["agent-session:1"],
            runtimeTargetId="t2",
        ),
        None,
    ).claims
    assert claims["scope"] == "session-events"
    assert (claims["clientId"], claims["machineId"], claims["userId"]) == ("me", "m1", "u1")
    assert claims["sessionChannels"] == ["agent-session:1"]
    assert claims["runtimeTargetId"] == "t2"


def test_a_null_target_is_no_target(issuer: TokenIssuer) -> None:
    assert (
        "runtimeTargetId" not in issuer.relay_token(ask(scope="pairing", runtimeTargetId=None), None).claims
    )


def test_a_worker_gets_its_executor(issuer: TokenIssuer) -> None:
    assert issuer.relay_token(ask(role="worker"), None).claims["managedExecutorId"] == "dev-executor"
    named = issuer.relay_token(ask(role="worker", managedExecutorId="e9"), None)
    assert named.claims["managedExecutorId"] == "e9"


@pytest.mark.parametrize("credential", [None, "", "wrong", CREDENTIAL + "x", 7, "\ud800"])
def test_a_wrong_credential_is_refused(issuer: TokenIssuer, credential: object) -> None:
    status, reason = refusal(issuer, credential=credential)
    assert (status, reason) in {(401, "CREDENTIAL_INVALID"), (400, "INVALID_BODY")}


def test_the_credential_may_come_as_bearer(issuer: TokenIssuer) -> None:
    assert issuer.relay_token(ask(credential=None), CREDENTIAL).token
    # The credential of the body has precedence: a wrong one fails although the header is right.
    with pytest.raises(Refused):
        issuer.relay_token(ask(credential="wrong"), CREDENTIAL)


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"workspaceId": "dev-missing"}, (404, "WORKSPACE_NOT_FOUND")),
        ({"workspaceId": "a b"}, (400, "INVALID_BODY")),
        ({"workspaceId": "dev-workspace\n"}, (400, "INVALID_BODY")),
        ({"role": "admin"}, (400, "INVALID_BODY")),
        ({"role": ["client"]}, (400, "INVALID_BODY")),
        ({"scope": "everything"}, (400, "INVALID_BODY")),
        ({"runtimeTargetId": "a/b"}, (400, "INVALID_BODY")),
        ({"sessionChannels": "agent-session:1"}, (400, "INVALID_BODY")),
        ({"sessionChannels": ["other:1"]}, (400, "INVALID_BODY")),
        ({"sessionChannels": ["agent-session:\ud800"]}, (400, "INVALID_BODY")),
        ({"sessionChannels": ["agent-session:1"] * 65}, (400, "INVALID_BODY")),
        ({"sessionChannels": ["agent-session:" + "x" * 200] * 30}, (400, "TOKEN_TOO_LONG")),
        # Without the credential, the answer does not reveal which workspaces exist.
        ({"workspaceId": "dev-missing", "credential": "wrong"}, (401, "CREDENTIAL_INVALID")),
    ],
)
def test_invalid_bodies(issuer: TokenIssuer, members: dict[str, object], wanted: tuple[int, str]) -> None:
    assert refusal(issuer, **members) == wanted


def test_a_daemon_needs_its_issue_token(issuer: TokenIssuer) -> None:
    made = issuer.daemon_key(
        "dev-workspace", sent(bodies.DaemonKey, machineId="laptop", credential=CREDENTIAL), None
    )
    assert made["runtimeTargetId"] == "dev-machine"
    key = made["daemonIssueToken"]
    claims = issuer.relay_token(ask(role="workspace-daemon", credential=key), None).claims
    assert claims["runtimeTargetId"] == "dev-machine"
    assert claims["machineId"] == "laptop"
    assert claims["daemonIssueGeneration"] == 1
    for wrong in (CREDENTIAL, "dit_unknown", None):
        assert refusal(issuer, role="workspace-daemon", credential=wrong)[1] == "DAEMON_ISSUE_TOKEN_INVALID"
    assert refusal(issuer, role="workspace-daemon", credential=key, workspaceId="dev-link")[0] == 401
    assert refusal(issuer, role="workspace-daemon", credential=key, runtimeTargetId="other")[0] == 401
    # An issue token is valid for daemons only.
    assert refusal(issuer, role="client", credential=key) == (401, "CREDENTIAL_INVALID")


def test_only_rotation_increments_the_generation(issuer: TokenIssuer) -> None:
    def key(**members: object) -> object:
        body = {"credential": CREDENTIAL, **members}
        return issuer.daemon_key("dev-workspace", sent(bodies.DaemonKey, **body), None)["daemonIssueToken"]

    first, second = key(), key()
    third = key(rotate=True)
    other = key(runtimeTargetId="elsewhere")
    for outdated in (first, second):
        assert refusal(issuer, role="workspace-daemon", credential=outdated)[1] == "DAEMON_ISSUE_TOKEN_STALE"
    generations = [
        issuer.relay_token(ask(role="workspace-daemon", credential=token), None).claims[
            "daemonIssueGeneration"
        ]
        for token in (third, other)
    ]
    assert generations == [2, 1]


def test_daemon_keys_are_open_only_without_a_configured_credential(clock: Clock, keys: KeyRing) -> None:
    free = TokenIssuer(clock.seconds, keys, Workspaces(), None)
    assert free.daemon_key("dev-workspace", bodies.DaemonKey(), None)["ok"] is True
    assert len(free.credential) >= 32
    shut = TokenIssuer(clock.seconds, keys, Workspaces(), CREDENTIAL)
    for bearer in (None, "wrong"):
        with pytest.raises(Refused) as caught:
            shut.daemon_key("dev-workspace", bodies.DaemonKey(), bearer)
        assert caught.value.reason == "CREDENTIAL_INVALID"
    assert shut.daemon_key("dev-workspace", bodies.DaemonKey(), CREDENTIAL)["ok"] is True
    with pytest.raises(Refused) as caught:
        shut.daemon_key("dev-missing", bodies.DaemonKey(), CREDENTIAL)
    assert caught.value.status == 404


def test_tables_are_bounded() -> None:
    keys = DaemonKeys()
    oldest, *newer = (keys.issue("w", "t", "m") for _ in range(MAX_ISSUE_TOKENS + 1))
    assert {keys.redeem(token, "w").generation for token in (newer[0], newer[-1])} == {1}
    with pytest.raises(Refused):
        keys.redeem(oldest, "w")
    for number in range(MAX_TARGETS - 2):
        keys.rotate("w", str(number))
    assert [keys.rotate("w", target) for target in ("a", "b", "a")] == [2, 2, 3]
    with pytest.raises(Refused) as caught:
        keys.rotate("w", "c")
    assert caught.value.status == 429


def test_secrets_are_compared_whole_and_kept_out_of_repr() -> None:
    assert same_secret("abc", "abc")
    assert not any(same_secret(given, "abc") for given in (None, "", "ab", "abcd", "ABC"))
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyISE"
    assert secret not in repr(Workspace("w", pairing_secret=secret))


def test_initial_workspaces() -> None:
    known = Workspaces()
    assert list(known) == ["dev-workspace", "dev-link", "dev-paired"]
    assert [workspace.workspace_id for workspace in known.values()] == list(known)
    assert known.get("dev-missing") is None
    paired = known["dev-paired"].policy_claims()
    assert (paired["policyMode"], paired["e2eeProfile"]) == ("crypto_pairing", "noise-ikpsk2")
    assert len(base64url.decode(paired["pairingSecret"], "pairingSecret")) == 32
    assert "pairingSecret" not in known["dev-workspace"].policy_claims()
    with pytest.raises(ValueError, match="must stay unknown"):
        known.add("dev-missing")
    with pytest.raises(ValueError, match="workspace id"):
        Workspace("not an id")
