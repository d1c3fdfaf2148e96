"""Secrets that are too weak for production."""

from __future__ import annotations

import re
from typing import Final

#: Fewest characters that a secret may have in RELAY_MODE=prod.
MIN_SECRET_CHARS: Final = 16

_PLACEHOLDERS = frozenset(
    "change-me changeme change_me replace-me replaceme replace_me placeholder secret password example test dev "
    "development todo xxx internal-key admin-token your-secret-here your-internal-key your-admin-token".split()
)


def weakness(secret: str) -> str | None:
    """What is weak about a secret, to follow "is"; None if nothing is."""
    if secret.lower() in _PLACEHOLDERS or re.match(r"(?i)(change|replace)[-_ ]?(me|this)", secret):
        return "a placeholder"
    if len(secret) < MIN_SECRET_CHARS:
        return f"only {len(secret)} characters long"
    if len(set(secret)) < 4:
        return "one character repeated"
    return None
