"""`DevPlatform`: the development platform made of its parts, and the controls of tests.

    platform = DevPlatform(reactor, internal_key="…")
    platform.listen(reactor)
    environment = platform.relay_environment()      # what a relay needs to find it

It decides nothing itself; see `issue` for tokens, `endpoints` for answers, `rules` for overrides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jwt
from twisted.internet.interfaces import IReactorTime
from twisted.internet.ssl import CertificateOptions

from viewport_relay.devplatform.bus import Bus, PresenceTable
from viewport_relay.devplatform.endpoints import JWKS_PATH, VALIDATE_PATH, Endpoints
from viewport_relay.devplatform.issue import TOKEN_TTL_SECONDS, TokenIssuer
from viewport_relay.devplatform.jsonhttp import Refused
from viewport_relay.devplatform.resources import ControlPlane, Listener, make_site
from viewport_relay.devplatform.rules import Rule
from viewport_relay.devplatform.tokens import KeyRing, SigningKey
from viewport_relay.devplatform.workspaces import Workspaces

ANSWER_ONLY_CLAIMS = frozenset(
    {"policyMode", "pairingSecret", "e2eeProfile", "daemonPublicKey", "relayWsBaseUrl"}
)
"""Claims that belong into the answer to `validate` and never into a token."""


class DevPlatform:
    """A control plane in memory.

    `clock` measures intervals (normally the reactor), `now` gives Unix seconds. `internal_key` is what relays must send;
    an empty one is a ValueError. `credential` is what clients and executors show for a token (made at
    random if None, and then daemons need none to get an issue token). `signing_key` saves the time of
    making one; `pairing_secret` (base64url of 32 bytes) is that of `dev-paired`.

    Its state may be read and changed while it runs: `internal_key`; `workspaces`; `presence` and `bus` of server mode;
    `records`, the calls seen by kind; `rules`, overrides by path, and `validate_rules` by token. `credential` is fixed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        internal_key: str,
        credential: str | None = None,
        signing_key: SigningKey | None = None,
        pairing_secret: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not internal_key:
            raise ValueError("the development platform needs an internal key")
        self.keys = KeyRing(signing_key)
        self.workspaces = Workspaces(pairing_secret)
        self._clock = clock
        self.presence, self.bus = PresenceTable(clock, now), Bus(clock, now)
        issuer = self._issuer = TokenIssuer(now, self.keys, self.workspaces, credential)
        self.credential = issuer.credential
        self._endpoints = Endpoints(
            now, internal_key, self.keys, self.workspaces, issuer, self.presence, self.bus
        )
        self.records = self._endpoints.records
        self.validate_rules = self._endpoints.validate_rules
        self.resource = ControlPlane(clock, self._endpoints)
        self.rules = self.resource.rules
        self._listeners: list[Listener] = []

    # -- state and tokens --------------------------------------------------------------------------------

    @property
    def internal_key(self) -> str:
        """The key that relays must send."""
        return self._endpoints.internal_key

    @internal_key.setter
    def internal_key(self, key: str) -> None:
        self._endpoints.internal_key = key

    def revoke(self, token: str) -> None:
        """Let `validate` deny this token from now on."""
        denied = Refused(401, "TOKEN_REVOKED", "the token has been revoked").answer()
        self.validate_rules[token] = Rule(status=denied.status, body=denied.body)

    def issue(
        self,
        role: str,
        workspace_id: str,
        runtime_target_id: str | None = None,
        *,
        ttl: int = TOKEN_TTL_SECONDS,
        key: SigningKey | None = None,
        drop: Collection[str] = (),
        header: Mapping[str, object] | None = None,
        hmac_secret: str | None = None,
        answer: Mapping[str, object] | None = None,
        rule: Rule | None = None,
        **claims: object,
    ) -> str:
        """Sign a token without asking for a credential, right or wrong as a test needs it.

        `claims` are added to the token, except those that only an answer may carry: they, and `answer`,
        change the answer to `validate` alone (`...` leaves a claim out there). `drop` takes claims out of
        the token. `hmac_secret` signs HS256 instead. `ttl` is in seconds and may be negative.
        """
        payload = self._issuer.registered_claims(ttl)
        payload.update(role=role, workspaceId=workspace_id)
        if runtime_target_id is not None:
            payload["runtimeTargetId"] = runtime_target_id
        payload.update({name: value for name, value in claims.items() if name not in ANSWER_ONLY_CLAIMS})
        for name in drop:
            payload.pop(name, None)
        signer = key or self.keys.signing
        if hmac_secret is not None:
            token = jwt.encode(payload, hmac_secret, algorithm="HS256", headers={"kid": signer.kid})
        else:
            token = signer.sign(payload, header)
        in_answer = {name: value for name, value in claims.items() if name in ANSWER_ONLY_CLAIMS}
        in_answer.update(answer or {})
        if in_answer:
            self._endpoints.answer_claims[token] = in_answer
        if rule is not None:
            self.validate_rules[token] = rule
        return token

    # -- listening ------------------------------------------------------------------------------------

    def listen(self, reactor: Any, port: int = 0, tls: CertificateOptions | None = None) -> None:
        """Listen on 127.0.0.1, on a free port if 0; for HTTPS with `tls` (`resources.tls_options`).

        Raises CannotListenError.
        """
        listener = Listener(reactor, make_site(self._clock, self.resource), port, tls)
        listener.up()
        self._listeners.append(listener)

    async def down(self) -> None:
        """Stop listening everywhere and cut all connections; state is kept for `up`."""
        for listener in self._listeners:
            await listener.down()

    def up(self) -> None:
        """Listen again on the same ports."""
        for listener in self._listeners:
            listener.up()

    async def close(self) -> None:
        """Stop all listeners and cut all connections."""
        await self.down()
        self._listeners.clear()

    @property
    def url(self) -> str:
        """Origin of the newest listener; IndexError before the first one."""
        return self._listeners[-1].url

    @property
    def port(self) -> int:
        """Port of the newest listener."""
        return self._listeners[-1].port

    def relay_environment(self) -> dict[str, str]:
        """The variables that point a relay at the newest listener."""
        return {
            "SERVER_URL": self.url,
            "RELAY_JWKS_URL": self.url + JWKS_PATH,
            "RELAY_VALIDATE_URL": self.url + VALIDATE_PATH,
            "RELAY_INTERNAL_KEY": self.internal_key,
        }
