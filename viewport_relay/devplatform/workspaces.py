"""The workspaces that the development platform knows, and what it grants in each.

A workspace is a value: which policy holds in it and which secrets come with it. This module decides
nothing about tokens or peers.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterator

from attrs import Attribute, field, frozen

IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Form of workspace, target, client and relay ids (wire protocol, section 1); use `fullmatch`."""

DEFAULT_TARGET = "dev-machine"
MISSING_WORKSPACE = "dev-missing"
"""A name that is promised never to exist, so that the refusal can be shown."""


def new_pairing_secret() -> str:
    """32 random bytes as base64url without padding (43 characters)."""
    return secrets.token_urlsafe(32)


def _well_formed(_instance: Workspace, _attribute: Attribute[str], value: str) -> None:
    if IDENTIFIER.fullmatch(value) is None:
        raise ValueError("a workspace id is 1 to 128 of A-Z a-z 0-9 . _ : -")


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

    def pairing_secret_bytes(self) -> bytes | None:
        """The pairing secret as raw bytes, for a peer that is paired out of band."""
        if self.pairing_secret is None:
            return None
        padding = "=" * (-len(self.pairing_secret) % 4)
        return base64.urlsafe_b64decode(self.pairing_secret + padding)


class Workspaces:
    """The known workspaces by id; starts with `dev-workspace`, `dev-link` and `dev-paired`."""

    def __init__(self, pairing_secret: str | None = None) -> None:
        self._known: dict[str, Workspace] = {}
        self.add(Workspace("dev-workspace"))
        self.add(Workspace("dev-link"))
        self.add(
            Workspace(
                "dev-paired",
                policy_mode="crypto_pairing",
                e2ee_profile="noise-ikpsk2",
                pairing_secret=pairing_secret or new_pairing_secret(),
            )
        )

    def add(self, workspace: Workspace) -> Workspace:
        """Add or replace a workspace; ValueError for the id that is promised to be missing."""
        if workspace.workspace_id == MISSING_WORKSPACE:
            raise ValueError(f"{MISSING_WORKSPACE} must stay unknown")
        self._known[workspace.workspace_id] = workspace
        return workspace

    def remove(self, workspace_id: str) -> None:
        """Forget a workspace; KeyError if there is none."""
        del self._known[workspace_id]

    def get(self, workspace_id: str) -> Workspace | None:
        """The workspace of this id, or None."""
        return self._known.get(workspace_id)

    def __getitem__(self, workspace_id: str) -> Workspace:
        return self._known[workspace_id]

    def __iter__(self) -> Iterator[Workspace]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)
