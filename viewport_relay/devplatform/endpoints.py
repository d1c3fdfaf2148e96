"""The endpoints of the development platform: each turns an `Ask` into an `Answer`.

The table of paths is at the end. Signing and storing are done by the parts that are passed in; sending
and rules are `resources`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from attrs import define, field, frozen

from viewport_relay.devplatform import bodies
from viewport_relay.devplatform.bus import Bus, PresenceTable
from viewport_relay.devplatform.issue import TokenIssuer, same_secret
from viewport_relay.devplatform.jsonhttp import Answer, Ask, B, Refused, parse_object
from viewport_relay.devplatform.rules import Record, Rule
from viewport_relay.devplatform.tokens import InvalidToken, KeyRing
from viewport_relay.devplatform.workspaces import Workspaces

JWKS_PATH = "/api/.well-known/jwks.json"
RELAY_TOKEN_PATH = "/api/runtime/relay-token"
INTERNAL_PREFIX = "/api/runtime/internal/relay/"
VALIDATE_PATH = INTERNAL_PREFIX + "validate"
WORKSPACES_PREFIX = "/api/runtime/workspaces/"
INTERNAL_KEY_HEADER = "x-relay-internal-key"

Endpoint = Callable[[Ask], Awaitable[Answer]]


@frozen
class Records:
    """The requests seen, by kind. A request is recorded before anything about it is checked."""

    jwks: Record = field(factory=Record)
    validate: Record = field(factory=Record)
    presence_upserts: Record = field(factory=Record)
    presence_resolves: Record = field(factory=Record)
    published: Record = field(factory=Record)
    pulls: Record = field(factory=Record)
    worker: Record = field(factory=Record)


@define(eq=False)
class Endpoints:
    """The endpoints, with the state that they answer from.

    `validate_rules` are overrides of the validate answer by token (for callers who have the internal key), `answer_claims`
    claims laid over those of that answer; `...` as a value leaves a claim out.
    """

    _now: Callable[[], float]
    internal_key: str
    _keys: KeyRing
    _workspaces: Workspaces
    _issuer: TokenIssuer
    presence: PresenceTable
    bus: Bus
    records: Records = field(factory=Records)
    validate_rules: dict[str, Rule] = field(factory=dict)
    answer_claims: dict[str, Mapping[str, object]] = field(factory=dict)

    # -- open ---------------------------------------------------------------------------------------

    async def jwks(self, ask: Ask) -> Answer:
        """`GET /api/.well-known/jwks.json`, with a strong ETag (RFC 9110, section 8.8.3)."""
        self.records.jwks.add(ask)
        document = self._keys.jwks()
        etag = f'"{hashlib.sha256(document).hexdigest()[:32]}"'
        headers = {"cache-control": "public, max-age=300", "etag": etag}
        known = [tag.strip().removeprefix("W/") for tag in ask.headers.get("if-none-match", "").split(",")]
        if etag in known or "*" in known:
            return Answer(304, raw=b"", headers=headers)
        return Answer(raw=document, headers=headers)

    async def relay_token(self, ask: Ask) -> Answer:
        """`POST relay-token` {role, workspaceId, credential, …} → {ok, relayToken, claims}.

        The claims are what validate will answer, so that a development peer learns its pairing secret; the token
        itself never carries that.
        """
        issued = self._issuer.relay_token(ask.body(bodies.RelayToken), ask.bearer())
        policy = self._workspaces[str(issued.claims["workspaceId"])].policy_claims()
        return Answer(body={"ok": True, "relayToken": issued.token, "claims": {**issued.claims, **policy}})

    async def daemon_key(self, ask: Ask) -> Answer:
        """`POST workspaces/{id}/daemon-key` → {ok, daemonIssueToken, runtimeTargetId}."""
        workspace_id = unquote(ask.path.split("/")[4])
        body = ask.body(bodies.DaemonKey) if ask.raw.strip() else bodies.DaemonKey()
        return Answer(body=self._issuer.daemon_key(workspace_id, body, ask.bearer()))

    async def worker(self, ask: Ask) -> Answer:
        """The worker API: echoes the request, header names without their values."""
        self.records.worker.add(ask)
        self._workspaces.require(unquote(ask.path.split("/")[4]))
        body = ask.raw.decode("utf-8", "replace")
        seen = {"method": ask.method, "path": ask.target, "headers": sorted(ask.headers), "body": body}
        return Answer(body={"ok": True, **seen})

    # -- for relays, behind the internal key --------------------------------------------------------

    async def validate(self, ask: Ask) -> Answer:
        """`POST validate` {relayToken, role, workspaceId, runtimeTargetId?} → {ok, claims}."""
        body = self._internal(ask, self.records.validate, bodies.Validate)
        try:
            answer = self._judge(body)
        except Refused as refused:
            answer = refused.answer()
        rule = self.validate_rules.get(body.relay_token)
        return answer if rule is None else rule.over(answer)

    def _judge(self, body: bodies.Validate) -> Answer:
        token, role, workspace_id = body.relay_token, body.role, body.workspace_id
        workspace = self._workspaces.require(workspace_id)
        try:
            claims = self._keys.verify(token, self._now())
        except InvalidToken as wrong:
            raise Refused(401, "INVALID_TOKEN", f"the token is not valid: {wrong}") from None
        if claims.get("role", role) != role or claims.get("workspaceId", workspace_id) != workspace_id:
            raise Refused(401, "INVALID_TOKEN", "the token is for another role or workspace")
        claims = {**claims, **workspace.policy_claims(), **self.answer_claims.get(token, {})}
        claims = {name: value for name, value in claims.items() if value is not ...}
        return Answer(body={"ok": True, "claims": claims})

    async def presence_upsert(self, ask: Ask) -> Answer:
        """`POST presence/upsert`: a daemon joined, is still there, or left."""
        body = self._internal(ask, self.records.presence_upserts, bodies.Upsert)
        target = body.workspace_id, body.runtime_target_id
        if body.daemon_connected:
            self.presence.announce(*target, body.relay_id, body.relay_ws_base_url, body.machine_id)
        else:
            self.presence.withdraw(*target, body.relay_id)
        return Answer(body={"ok": True})

    async def presence_resolve(self, ask: Ask) -> Answer:
        """`POST presence/resolve`: which relay holds the daemon; nulls and false if none does."""
        body = self._internal(ask, self.records.presence_resolves, bodies.Resolve)
        entry = self.presence.resolve(body.workspace_id, body.runtime_target_id)
        absent = {"relayId": None, "relayWsBaseUrl": None, "daemonConnected": False}
        return Answer(body={"ok": True, **(entry or absent)})

    async def bus_publish(self, ask: Ask) -> Answer:
        """`POST bus/publish`: queue one bus frame; only what routing needs is looked at."""
        self._internal(ask, self.records.published, bodies.BusFrame)
        self.bus.publish(parse_object(ask.raw))
        return Answer(body={"ok": True})

    async def bus_pull(self, ask: Ask) -> Answer:
        """`POST bus/pull` {relayId, sinceId, limit, waitMs}: frames after sinceId, waiting up to 2 s."""
        body = self._internal(ask, self.records.pulls, bodies.Pull)
        frames = await self.bus.pull(body.relay_id, body.since_id, body.limit, body.wait_ms / 1000)
        return Answer(body={"ok": True, "frames": frames})

    def _internal(self, ask: Ask, record: Record, kind: type[B]) -> B:
        """Record the request, require the internal key, return the body."""
        record.add(ask)
        if not same_secret(ask.headers.get(INTERNAL_KEY_HEADER), self.internal_key):
            raise Refused(401, "RELAY_INTERNAL_KEY_INVALID", "the relay internal key is missing or wrong")
        return ask.body(kind)

    # -- the table ----------------------------------------------------------------------------------

    def find(self, path: str) -> Mapping[str, Endpoint] | None:
        """The endpoints of a path by method, or None if there is no such path. Matching is exact."""
        fixed: dict[str, dict[str, Endpoint]] = {
            JWKS_PATH: {"GET": self.jwks, "HEAD": self.jwks},
            RELAY_TOKEN_PATH: {"POST": self.relay_token},
            VALIDATE_PATH: {"POST": self.validate},
            INTERNAL_PREFIX + "presence/upsert": {"POST": self.presence_upsert},
            INTERNAL_PREFIX + "presence/resolve": {"POST": self.presence_resolve},
            INTERNAL_PREFIX + "bus/publish": {"POST": self.bus_publish},
            INTERNAL_PREFIX + "bus/pull": {"POST": self.bus_pull},
        }
        if path in fixed:
            return fixed[path]
        if _DAEMON_KEY.fullmatch(path):
            return {"POST": self.daemon_key}
        if _WORKER.fullmatch(path):
            return {"GET": self.worker, "POST": self.worker, "PATCH": self.worker}
        return None


_DAEMON_KEY = re.compile(re.escape(WORKSPACES_PREFIX) + r"[^/]+/daemon-key")
_WORKER = re.compile(re.escape(WORKSPACES_PREFIX) + r"[^/]+/managed-executors/[^/]+(/.*)?")
