"""The settings in force: `Config`, made of the groups of the table, and the table as rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from attrs import Factory, field, frozen

from viewport_relay.config.groups import (
    BasicSettings,
    FleetSettings,
    LimitSettings,
    RareSettings,
    RetiredSettings,
    TlsSettings,
)
from viewport_relay.config.table import Variable, rows

#: Every environment variable, in the order of the reference; those that it does not list come last.
VARIABLES: tuple[Variable, ...] = (
    *rows(BasicSettings, "Basics"),
    *rows(LimitSettings, "Limits"),
    *rows(TlsSettings, "TLS"),
    *rows(FleetSettings, "Several relays"),
    *rows(RareSettings, "Rare"),
    *rows(RetiredSettings, "No longer listed", listed=False),
)

#: Attribute of `Config` -> its variable.
BY_ATTRIBUTE: Mapping[str, Variable] = {variable.attribute: variable for variable in VARIABLES}


@frozen(slots=False)
class Config(BasicSettings, LimitSettings, TlsSettings, FleetSettings, RareSettings, RetiredSettings):
    """The settings in force, immutable. A reload makes a new one."""

    dev_platform: bool = field(kw_only=True, default=False)
    #: attribute -> where its value came from: a variable's name, "option --x", "default"
    sources: Mapping[str, str] = field(kw_only=True, default=Factory(dict), repr=False, eq=False)
    #: what is worth a line at start, one sentence each
    warnings: tuple[str, ...] = field(kw_only=True, default=(), eq=False)
    #: what was chosen for the operator and why, one sentence each
    notes: tuple[str, ...] = field(kw_only=True, default=(), eq=False)
    #: RELAY_ID of the relay whose worker this process is, in a fleet; None in any other process
    worker_of: str | None = field(kw_only=True, default=None)

    @property
    def relay_id_in_log(self) -> str | None:
        """`relayId` of every log line; None where there is one relay."""
        return None if self.backplane_mode == "single" else self.relay_id

    def is_own(self, relay_id: str) -> bool:
        """Whether a relay of the fleet with this id is this process, the parent of this worker, or another of its workers."""
        if relay_id == self.relay_id or self.worker_of is None:
            return relay_id == self.relay_id
        rest = relay_id.removeprefix(self.worker_of)
        return relay_id == self.worker_of or (rest != relay_id and re.fullmatch("-w[0-9]+", rest) is not None)

    @property
    def serves_tls(self) -> bool:
        """Whether TLS ends in the relay itself."""
        return self.tls_cert_path is not None and self.tls != "0" and self.tls_termination == "self"


def configured_secrets(config: Config) -> list[str]:
    """Every secret value of the settings, and the password inside the Redis URL."""
    found: list[str | None] = []
    for variable in VARIABLES:
        if variable.secret and variable.attribute != "redis_url":
            value = getattr(config, variable.attribute)
            found += value if isinstance(value, tuple) else [value]
    try:
        password = urlsplit(config.redis_url).password
    except ValueError:
        password = None
    if password:
        found += [password, unquote(password)]
    return [secret for secret in found if secret]
