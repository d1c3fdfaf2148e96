"""Settings that an attacker could use: weak secrets, tokens in clear text, a platform that is not verified.

With RELAY_MODE=prod a weak secret and admin tokens in clear text are errors. Without it the relay is for trying out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from viewport_relay.config.network import bracketed, is_loopback
from viewport_relay.config.reading import Reading
from viewport_relay.config.settings import BY_ATTRIBUTE, VARIABLES

#: Fewest characters that a secret may have in RELAY_MODE=prod.
MIN_SECRET_CHARS: Final = 16

#: Secrets that the operator of another server chooses. The relay does not check their strength.
_PASSWORDS_OF_OTHERS: Final = frozenset(
    {"redis_url", "redis_sentinel_password", "server_client_key_passphrase", "http_proxy"}
)

_PLACEHOLDERS: Final = frozenset(
    "change-me changeme change_me replace-me replaceme replace_me placeholder secret password example test dev "
    "development todo xxx internal-key admin-token your-secret-here your-internal-key your-admin-token".split()
)


def check_security(reading: Reading, *, dev_platform: bool) -> None:
    """Check the secrets, and in mode prod the ways of the admin tokens and of the platform's answers."""
    _secrets(reading)
    if reading.values["mode"] == "prod":
        _admin_tokens_in_clear_text(reading)
        if dev_platform:
            reading.error("--dev starts the dev platform, which RELAY_MODE=prod never takes")
        _platform(reading, dev_platform=dev_platform)


def _secrets(reading: Reading) -> None:
    v = reading.values
    complain = reading.error if v["mode"] == "prod" else reading.warn
    for variable in VARIABLES:
        value = v[variable.attribute]
        if not variable.secret or value is None or variable.attribute in _PASSWORDS_OF_OTHERS:
            continue
        secrets = value if isinstance(value, tuple) else (value,)
        weak = next((found for secret in secrets if (found := _weakness(secret)) is not None), None)
        if weak is not None:
            complain(f"{variable.name} is {weak}: use at least {MIN_SECRET_CHARS} random characters")
    if set(v["metrics_tokens"]) & set(v["admin_tokens"]):
        reading.warn(
            "RELAY_METRICS_TOKEN is a token of RELAY_ADMIN_TOKEN too, so it opens every admin path: make another one"
        )


def _weakness(secret: str) -> str | None:
    """The weakness of a secret, in words that follow "is"; None for a strong one."""
    if secret.lower() in _PLACEHOLDERS or re.match(r"(?i)(change|replace)[-_ ]?(me|this)", secret):
        return "a placeholder"
    if len(secret) < MIN_SECRET_CHARS:
        return f"only {len(secret)} characters long"
    if len(set(secret)) < 4:
        return "one character repeated"
    return None


def _admin_tokens_in_clear_text(reading: Reading) -> None:
    v = reading.values
    if v["admin_listen"] is None or _tls_in_front_or_here(v):
        return
    host, port = v["admin_listen"]
    if not is_loopback(host):
        reading.error(
            f"RELAY_ADMIN_LISTEN={bracketed(host, port)} would carry admin tokens in clear text: listen on 127.0.0.1, set "
            "RELAY_TLS_CERT_PATH and RELAY_TLS_KEY_PATH, or RELAY_TLS_TERMINATION=platform where TLS ends in front"
        )


def _tls_in_front_or_here(v: Mapping[str, Any]) -> bool:
    return v["tls_termination"] == "platform" or bool(v["tls_cert_path"] and v["tls"] != "0")


def _platform(reading: Reading, *, dev_platform: bool) -> None:
    """Warn where relay and platform could not tell each other from an attacker."""
    v = reading.values
    if not v["server_tls_verify"]:
        reading.warn("RELAY_SERVER_TLS_VERIFY is off: an attacker on the network can admit peers")
    if v["internal_key"] is None and not dev_platform:
        reading.warn(
            "RELAY_INTERNAL_KEY is not set: the platform cannot tell this relay from a stranger; set the platform's value"
        )
    for attribute in ("jwks_url", "validate_url"):
        parts = urlsplit(v[attribute])
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            reading.warn(
                f"{BY_ATTRIBUTE[attribute].name} is http://: an attacker on the network can admit peers; use https://"
            )
