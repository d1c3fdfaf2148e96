"""The workspaces of the development platform, and the policy and secrets of each.

A workspace is a value. Tokens and peers are judged elsewhere (`issue`, `endpoints`).
"""

from __future__ import annotations

import re
import secrets

from attrs import Attribute, field, frozen

from viewport_relay.devplatform.bodies import IDENTIFIER
from viewport_relay.devplatform.jsonhttp import Refused

DEFAULT_TARGET = "dev-machine"
MISSING_WORKSPACE = "dev-missing"
"""A name that is promised never to exist, so that the refusal can be shown."""


def new_pairing_secret() -> str:
    """32 random bytes as base64url without padding (43 characters)."""
    return secrets.token_urlsafe(32)


def _well_formed(_instance: Workspace, _attribute: Attribute[str], value: str) -> None:
    if re.search(IDENTIFIER, value) is None:
        raise ValueError("a workspace id is 1 to 128 of A-Z a-z 0-9 . _ : -")
    if value == MISSING_WORKSPACE:
        raise ValueError(f"{MISSING_WORKSPACE} must stay unknown")


@frozen
class Workspace:
    """One workspace and the claims that `validate` adds for it.

    `pairing_secret` is base64url of 32 bytes; it goes out in the answer to `validate` only, never in a
    token, and is kept out of `repr`. `None` leaves a claim out.
    """

    workspace_id: str = field(validator=_well_formed)
    policy_mode: str = "standard"
    e2ee_profile: str | None = "noise-ik"
    pairing_secret: str | None = field(default=None, repr=False)
    daemon_public_key: str | None = None
    relay_ws_base_url: str | None = None

    def policy_claims(self) -> dict[str, object]:
        """Claims that only the platform's answer carries, with the names of the wire protocol."""
        claims: dict[str, object | None] = {
            "policyMode": self.policy_mode,
            "e2eeProfile": self.e2ee_profile,
            "pairingSecret": self.pairing_secret,
            "daemonPublicKey": self.daemon_public_key,
            "relayWsBaseUrl": self.relay_ws_base_url,
        }
        return {name: value for name, value in claims.items() if value is not None}


class Workspaces(dict[str, Workspace]):
    """The known workspaces by id; starts with `dev-workspace`, `dev-link` and `dev-paired`."""

    def __init__(self, pairing_secret: str | None = None) -> None:
        super().__init__()
        self.add("dev-workspace")
        self.add("dev-link")
        self.add(
            "dev-paired",
            policy_mode="crypto_pairing",
            e2ee_profile="noise-ikpsk2",
            pairing_secret=pairing_secret or new_pairing_secret(),
        )

    def add(self, workspace_id: str, **policy: str | None) -> Workspace:
        """Add or replace a `Workspace`; ValueError for an id of a wrong form or `dev-missing`."""
        made: Workspace = Workspace(workspace_id, **policy)  # type: ignore[arg-type]
        self[workspace_id] = made
        return made

    def require(self, workspace_id: str) -> Workspace:
        """The workspace of this id; Refused 404 if there is none."""
        try:
            return self[workspace_id]
        except KeyError:
            raise Refused(404, "WORKSPACE_NOT_FOUND", "no such workspace") from None
