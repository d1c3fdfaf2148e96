"""The settings in force, without secrets: for the entry `relay_started`, the dashboard and `viewport-relay config`."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from viewport_relay.config import VARIABLES, Config, Variable, as_text

#: The texts in place of a secret that is set, and in place of user info and query of a URL.
SET: Final = "(set)"
MASK: Final = "********"

#: Settings that `relay_started` shows by other names, or that are different in every deployment.
_TOLD: Final = frozenset(
    {"listen_host", "listen_port", "jwks_url", "validate_url", "relay_id", "mode", "backplane_mode"}
)


def shown_url(url: str) -> str:
    """A URL with user info and query masked, which may hold secrets, and without fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a URL that does not parse)"
    user, _, host = parts.netloc.rpartition("@")
    query = f"?{MASK}" if parts.query else ""
    return f"{parts.scheme}://{f'{MASK}@' if user else ''}{host}{parts.path}{query}"


def shown_value(variable: Variable, value: Any) -> str:
    """A value as text; of secrets only whether they are set, of a secret URL what `shown_url` shows."""
    if isinstance(value, str) and "://" in value and (variable.name.endswith("_URL") or not variable.secret):
        return shown_url(value)
    return SET if variable.secret and value else as_text(value) or "none"


def changed(config: Config) -> dict[str, str]:
    """Settings that were set and differ from their default, by name, without secrets."""
    return {
        variable.name: shown_value(variable, getattr(config, variable.attribute))
        for variable in VARIABLES
        if config.sources.get(variable.attribute, "default") != "default"
        and variable.attribute not in _TOLD
        and not variable.secret
        and getattr(config, variable.attribute) != variable.default
    }


def settings_json(config: Config) -> list[dict[str, str]]:
    """Every setting: group, name, value, default and where the value came from."""
    return [
        {
            "group": variable.group,
            "name": variable.name,
            "value": shown_value(variable, getattr(config, variable.attribute)),
            "default": variable.shown_default,
            "source": config.sources.get(variable.attribute, "default"),
        }
        for variable in VARIABLES
    ]
