"""Issues relay tokens: checks the credential and selects the claims.

Daemons show a daemon issue token, clients and executors the development credential. Tokens live 300 s
and never carry a workspace's policy or pairing secret: those travel in the answer to `validate` only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping

from attrs import field, frozen
from msgspec import UNSET

from viewport_relay.devplatform import bodies
from viewport_relay.devplatform.bodies import TOKEN_MAX_CHARS
from viewport_relay.devplatform.jsonhttp import Refused
from viewport_relay.devplatform.tokens import AUDIENCE, ISSUER, KeyRing
from viewport_relay.devplatform.workspaces import DEFAULT_TARGET, Workspaces

TOKEN_TTL_SECONDS = 300
MAX_ISSUE_TOKENS = 4096
MAX_TARGETS = 4096
DEFAULT_EXECUTOR = "dev-executor"


def fingerprint(secret: str) -> bytes:
    """SHA-256 of a credential: the key of tables, and the text for comparison in constant time."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def same_secret(given: str | None, expected: str) -> bool:
    """Compare in constant time; an absent secret equals none."""
    return given is not None and hmac.compare_digest(fingerprint(given), fingerprint(expected))


@frozen
class DaemonKey:
    """The grant behind a daemon issue token. `generation` is the target's at the time it was made."""

    workspace_id: str
    runtime_target_id: str
    machine_id: str
    generation: int


class DaemonKeys:
    """Daemon issue tokens (kept as digests, the oldest go first) and the generation of each target.

    A generation starts at 1 and is raised by `rotate` only; that makes the target's earlier issue tokens
    worthless, while relay tokens made from them still carry the lower generation.
    """

    def __init__(self) -> None:
        self._by_digest: dict[bytes, DaemonKey] = {}
        self._raised: dict[tuple[str, str], int] = {}

    def generation(self, workspace_id: str, runtime_target_id: str) -> int:
        """The target's current generation, from 1."""
        return self._raised.get((workspace_id, runtime_target_id), 1)

    def rotate(self, workspace_id: str, runtime_target_id: str) -> int:
        """Raise the generation by one; Refused 429 when too many targets have one above 1."""
        target = (workspace_id, runtime_target_id)
        if target not in self._raised and len(self._raised) >= MAX_TARGETS:
            raise Refused(429, "TOO_MANY_TARGETS", "too many targets have been rotated")
        self._raised[target] = self.generation(*target) + 1
        return self._raised[target]

    def issue(self, workspace_id: str, runtime_target_id: str, machine_id: str) -> str:
        """A new daemon issue token for the target, of its current generation."""
        token = "dit_" + secrets.token_urlsafe(32)
        generation = self.generation(workspace_id, runtime_target_id)
        key = DaemonKey(workspace_id, runtime_target_id, machine_id, generation)
        self._by_digest[fingerprint(token)] = key
        while len(self._by_digest) > MAX_ISSUE_TOKENS:
            del self._by_digest[next(iter(self._by_digest))]
        return token

    def redeem(self, token: str | None, workspace_id: str) -> DaemonKey:
        """The key behind an issue token; Refused 401 if it is unknown, of another workspace or outdated."""
        key = None if token is None else self._by_digest.get(fingerprint(token))
        if key is None or key.workspace_id != workspace_id:
            raise Refused(401, "DAEMON_ISSUE_TOKEN_INVALID", "no such daemon issue token for this workspace")
        if key.generation < self.generation(key.workspace_id, key.runtime_target_id):
            raise Refused(401, "DAEMON_ISSUE_TOKEN_STALE", "the target's daemon key has been rotated")
        return key


@frozen
class IssuedToken:
    """A relay token and the claims in it."""

    token: str = field(repr=False)
    claims: Mapping[str, object]


class TokenIssuer:
    """Issues tokens to peers: daemon issue tokens, and relay tokens. `now` gives Unix seconds."""

    def __init__(
        self, now: Callable[[], float], keys: KeyRing, workspaces: Workspaces, credential: str | None
    ) -> None:
        self._now = now
        self._keys = keys
        self._workspaces = workspaces
        self.daemon_keys = DaemonKeys()
        self.credential = credential or secrets.token_urlsafe(24)
        # Without a configured credential every daemon gets one: the platform is on loopback.
        self.open_to_daemons = credential is None

    def daemon_key(self, workspace_id: str, body: bodies.DaemonKey, bearer: str | None) -> dict[str, object]:
        """Answer of `daemon-key`: a new issue token for the target. Refused 401, 404."""
        credential = body.credential or bearer
        if not self.open_to_daemons and not same_secret(credential, self.credential):
            raise Refused(401, "CREDENTIAL_INVALID", "the development credential is missing or wrong")
        self._workspaces.require(workspace_id)
        target = body.runtime_target_id or DEFAULT_TARGET
        machine = body.machine_id or target
        if body.rotate:
            self.daemon_keys.rotate(workspace_id, target)
        token = self.daemon_keys.issue(workspace_id, target, machine)
        return {"ok": True, "daemonIssueToken": token, "runtimeTargetId": target}

    def relay_token(self, body: bodies.RelayToken, bearer: str | None) -> IssuedToken:
        """Check the credential for the role and sign a relay token. Refused 401, 404, 400.

        `runtimeTargetId` absent means `dev-machine` (a daemon's: that of its key), null means no target.
        """
        role, workspace_id = body.role, body.workspace_id
        credential = body.credential or bearer
        claims = self.registered_claims()
        claims.update(role=role, workspaceId=workspace_id)
        target = None if body.runtime_target_id is UNSET else body.runtime_target_id
        if role == "workspace-daemon":
            key = self.daemon_keys.redeem(credential, workspace_id)
            if target not in (None, key.runtime_target_id):
                raise Refused(401, "DAEMON_ISSUE_TOKEN_INVALID", "the daemon issue token is another target's")
            target = key.runtime_target_id
            claims.update(machineId=key.machine_id, daemonIssueGeneration=key.generation)
        elif not same_secret(credential, self.credential):
            raise Refused(401, "CREDENTIAL_INVALID", "the development credential is missing or wrong")
        elif body.runtime_target_id is UNSET:
            target = DEFAULT_TARGET
        self._workspaces.require(workspace_id)
        if target is not None:
            claims["runtimeTargetId"] = target
        claims.update(self._requested_claims(body))
        token = self._keys.signing.sign(claims)
        if len(token) > TOKEN_MAX_CHARS:
            raise Refused(400, "TOKEN_TOO_LONG", f"the token would exceed {TOKEN_MAX_CHARS} characters")
        return IssuedToken(token, claims)

    def registered_claims(self, ttl: int = TOKEN_TTL_SECONDS) -> dict[str, object]:
        """The registered claims of a token (RFC 7519, section 4.1); times are Unix seconds."""
        now = int(self._now())
        return {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + ttl,
            "jti": secrets.token_hex(16),
            "ver": 1,
        }

    @staticmethod
    def _requested_claims(body: bodies.RelayToken) -> dict[str, object]:
        """Claims that the development platform grants as asked."""
        executor = (body.managed_executor_id or DEFAULT_EXECUTOR) if body.role == "worker" else None
        claims = {
            "clientId": body.client_id or f"dev-{body.role}-{secrets.token_hex(4)}",
            "scope": body.scope,
            "managedExecutorId": executor,
            "machineId": None if body.role == "workspace-daemon" else body.machine_id,
            "userId": body.user_id,
            "sessionChannels": body.session_channels,
        }
        return {name: value for name, value in claims.items() if value is not None}
