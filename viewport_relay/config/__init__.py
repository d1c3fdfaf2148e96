"""Every setting of the relay: one table, one loader.

The table says for each environment variable its kind of value, default, older names and meaning; `--help`,
`viewport-relay config`, `docs/reference/environment.md`, the types of `Config` and the loader all come from it.

To add a setting, add a field with `setting(…)` to the class of its group in `groups`.
"""

from viewport_relay.config.files import KEY_FIX, exposure, merged, octal_mode, read_file
from viewport_relay.config.loader import EX_CONFIG, ConfigError, Reloaded, Reread, load, reread
from viewport_relay.config.network import Address, Network, bracketed, is_loopback, parse_network
from viewport_relay.config.security import MIN_SECRET_CHARS
from viewport_relay.config.settings import BY_ATTRIBUTE, VARIABLES, Config, configured_secrets
from viewport_relay.config.table import Variable, as_text
from viewport_relay.config.values import Mode

__all__ = [
    "BY_ATTRIBUTE", "EX_CONFIG", "KEY_FIX", "MIN_SECRET_CHARS", "VARIABLES", "Address", "Config", "ConfigError",
    "Mode", "Network", "Reloaded", "Reread", "Variable", "as_text", "bracketed", "configured_secrets", "exposure",
    "is_loopback", "load", "merged", "octal_mode", "parse_network", "read_file", "reread",
]  # fmt: skip
