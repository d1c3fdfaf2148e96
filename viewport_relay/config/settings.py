"""The settings in force: `Config`, made of the groups of the table, and the table as rows."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from attrs import Factory, field, frozen

from viewport_relay.config.basics import Basics
from viewport_relay.config.fleet import Fleet
from viewport_relay.config.limits import Limits
from viewport_relay.config.rare import Rare
from viewport_relay.config.retired import Retired
from viewport_relay.config.table import Variable, by_attribute, rows
from viewport_relay.config.tls import Tls

#: Every environment variable, in the order of the reference; those that it does not list come last.
VARIABLES: tuple[Variable, ...] = (
    *rows(Basics, "What everybody sets"),
    *rows(Limits, "Limits"),
    *rows(Tls, "TLS"),
    *rows(Fleet, "Several relays"),
    *rows(Rare, "Rare"),
    *rows(Retired, "No longer listed", listed=False),
)

BY_ATTRIBUTE: Mapping[str, Variable] = by_attribute(VARIABLES)


@frozen(slots=False)
class Config(Basics, Limits, Tls, Fleet, Rare, Retired):
    """The settings in force, immutable. A reload makes a new one."""

    dev_platform: bool = field(kw_only=True, default=False)
    #: attribute -> where its value came from: a variable's name, "option --x", "default"
    sources: Mapping[str, str] = field(kw_only=True, default=Factory(dict), repr=False, eq=False)
    #: what is worth a line at start, one sentence each
    warnings: tuple[str, ...] = field(kw_only=True, default=(), eq=False)
    #: what was chosen for the operator and why, one sentence each
    notes: tuple[str, ...] = field(kw_only=True, default=(), eq=False)

    @property
    def relay_id_in_log(self) -> str | None:
        """What every log line carries as `relayId`: nothing where there is one relay."""
        return None if self.backplane_mode == "single" else self.relay_id

    @property
    def serves_tls(self) -> bool:
        """Whether TLS ends in the relay itself."""
        return self.tls_cert_path is not None and self.tls != "0" and self.tls_termination == "self"


def configured_secrets(config: Config) -> list[str]:
    """Every secret value of the settings, and the password inside the Redis URL."""
    found = [getattr(config, v.attribute) for v in VARIABLES if v.secret and v.attribute != "redis_url"]
    try:
        password = urlsplit(config.redis_url).password
    except ValueError:
        password = None
    if password:
        found += [password, unquote(password)]
    return [secret for secret in found if secret]
