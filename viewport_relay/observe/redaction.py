"""Redaction: secrets are taken out of log entries by key, by shape and by exact value.

The event log sends every message, detail and traceback through one `Redactor`. Redaction is the second line of defence: no
code of the relay logs a token, a payload or a secret. The work is linear in the length of the text.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import PurePath
from urllib.parse import quote, quote_plus

#: Replaces a secret.
MARK = "[redacted]"

#: Details that hold an id or an address. Peers choose most of them; they are no secrets, and may be long.
ID_KEYS = frozenset(
    {
        "workspaceId", "runtimeTargetId", "clientId", "connectionId", "relayId", "requestId", "sessionId",
        "machineId", "userId", "installId", "managedExecutorId", "sourceRelayId", "targetRelayId", "channel",
        "kid", "ip", "operator",
    }
)  # fmt: skip

#: Details of which only tokens and secrets are taken out.
_READABLE = ID_KEYS | {"role", "noise", "method"}

_SECRET_KEY = re.compile(
    r"token|authori[sz]ation|secret|passw|passphrase|passwd|psk|cipher|cookie|credential|key$|^key|payload|signature"
    r"|^(?:iv|tag|proof|jwt|pem|bearer|pairing)$"
)
#: Keys of details that describe a secret and do not contain the secret.
_ABOUT = re.compile(
    r"(?:source|length|chars|bytes|count|kind|type|present|id|ids|name|names|age|state|mode|issuer|audience|expiry"
    r"|skewsec|skewms|signatures)$"
)

_SHORTEST_SECRET = 4
#: Text is searched for secrets up to this multiple of the characters that are shown.
_SCANNED = 4

#: Messages whose redaction is remembered, and characters of the longest of them.
_REMEMBERED = 256

#: A JSON Web Token, or the beginning of one: Base64 of `{"`, in the spellings that JSON has.
_TOKEN = r"(?:eyJ|eyA|eyI|ewo|ew0|ewk|ewg)[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*)*"

_SHAPES = re.compile(
    r"(?P<pem>-----BEGIN [^-\n]{1,64}-----.*?(?:-----END [^-\n]{1,64}-----|\Z))"
    rf"|(?P<jwt>(?<![A-Za-z0-9_-]){_TOKEN})"
    r"|(?P<scheme>\b(?i:bearer|basic)[ \t]{1,16})[^\s\"',;<>]{10,}"
    r"|(?P<sub>(?<![/@\w.-])(?i:auth)\.)[^\s\"',;<>]{10,}"
    r"|(?P<user>\b(?i:[a-z][a-z0-9+.-]{0,15})://)[^\s/?#\"'@]{0,4096}(?:@[^\s/?#\"'@]{0,4096}){0,4}@"
    r"|(?P<header>(?i:authorization|cookie|x-relay-internal-key|x-relay-admin-token)['\"]?\s{0,4}[:=]\s{0,4})"
    r"[^\r\n\"'}]{1,8192}"
    r"|(?P<pair>(?i:token|secret|passwd|password|passphrase|psk|key|credential|ciphertext|signature)"
    r"(?:=|\\?[\"']\s{0,4}[:=]\s{0,4}\\?[\"']))[^\s&\"'#,;\\]{1,8192}"
    r"|(?P<run>[A-Za-z0-9+/_-]{40,}={0,2})",
    re.DOTALL,
)
_TOKENS_ONLY = re.compile(rf"{_TOKEN}|-----BEGIN .*", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]+\Z")

#: Limits on one entry: characters of a string, items of a list or object, depth.
MAX_STRING = 2048
MAX_TRACEBACK = 8192
MAX_ITEMS = 48
MAX_DEPTH = 4

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class Redactor:
    """Takes secrets out of text and makes any value JSON.

    `secrets` are exact values to look for (shorter than four characters: skipped, they would take out
    ordinary words); their JSON-escaped, `repr` and percent-encoded forms are found as well.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self.look_for(secrets)

    def look_for(self, secrets: Iterable[str]) -> None:
        """Add exact values to take out; earlier ones stay."""
        self._secrets |= {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        forms: set[str] = set()
        for secret in self._secrets:
            forms |= {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
            forms |= {repr(secret)[1:-1], quote(secret, safe=""), quote(secret), quote_plus(secret)}
        self._forms = sorted(forms, key=len, reverse=True)
        self._shortest = min(map(len, forms), default=1 << 62)
        self._remembered = lru_cache(_REMEMBERED)(self.text)

    def text(self, text: str, limit: int = MAX_STRING) -> str:
        """`text` without secrets, at most `limit` characters and a note of what was cut."""
        shown = text
        if len(text) > _SCANNED * limit:  # what is not shown need not be searched
            shown = _beginning(text, _SCANNED * limit)
        left_out = len(text) - len(shown)
        shown = self._without_exact(shown)
        if len(shown) >= 8:
            shown = _SHAPES.sub(_replace, shown)
        left_out += max(0, len(shown) - limit)
        return f"{shown[:limit]}… [{left_out} more characters]" if left_out else shown

    def message(self, text: str) -> str:
        """A message without secrets. Results for short messages are remembered, because most messages are constants."""
        return self._remembered(text) if len(text) <= _REMEMBERED else self.text(text)

    def identifier(self, text: str) -> str:
        """An id that a peer chose, without tokens and secrets; long ids stay readable."""
        if len(text) >= self._shortest:  # asked here too, for each join and leave has a dozen ids
            text = self._without_exact(text)
        if len(text) <= 12:
            return text
        if "ey" in text or "ew" in text or "-----" in text:  # what every token begins with
            text = _TOKENS_ONLY.sub(MARK, text)
        return text if len(text) <= 256 else text[:256] + "…"

    def _string(self, key: str, value: str) -> str:
        if value and is_secret_key(key):
            return MARK
        return self.text(value, MAX_TRACEBACK if key == "traceback" else MAX_STRING)

    def _without_exact(self, text: str) -> str:
        # `in` and `replace` on a few forms are much faster than one regular expression of them all
        if len(text) >= self._shortest:
            for form in self._forms:
                if form in text:
                    text = text.replace(form, MARK)
        return text

    def detail(self, key: str, value: object, depth: int = 0) -> Json:
        """Any value as JSON, without secrets and of bounded size.

        Bytes are shown as their number only and unknown objects as the name of their type, so that nothing
        slips through a `repr`.
        """
        if type(value) is str or (isinstance(value, str) and not isinstance(value, Enum)):
            return self.identifier(value) if key in _READABLE else self._string(key, value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return value.value if isinstance(value.value, str) else value.name
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else "a number beyond 64 bits"
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return f"{len(value)} bytes"
        if isinstance(value, Mapping):
            return self._mapping(key, value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return self._items(key, value, depth)
        if isinstance(value, BaseException):
            return self.exception(value)
        if isinstance(value, PurePath | ipaddress.IPv4Address | ipaddress.IPv6Address):
            return self.text(str(value))
        return type(value).__name__

    def _items(self, key: str, value: Collection[object], depth: int) -> Json:
        if depth >= MAX_DEPTH:
            return f"{len(value)} items"
        items = [self.detail(key, item, depth + 1) for item in islice(value, MAX_ITEMS)]
        return items if len(value) <= MAX_ITEMS else [*items, f"{len(value) - MAX_ITEMS} more"]

    def exception(self, error: BaseException) -> str:
        """Class and text of an exception."""
        try:
            text = str(error)
        except Exception:  # the __str__ of a foreign class may raise anything, and logging must go on
            text = "(no text)"
        return self.text(f"{type(error).__name__}: {text}" if text else type(error).__name__)

    def _mapping(self, key: str, value: Mapping[object, object], depth: int) -> Json:
        if depth >= MAX_DEPTH:
            return f"{len(value)} members"
        shown: dict[str, Json] = {}
        hidden = is_secret_key(key)
        for name, item in islice(value.items(), MAX_ITEMS):
            label = self.text(name, 128) if isinstance(name, str) else type(name).__name__
            shown[label] = self.detail(key if hidden else label, item, depth + 1)
        if len(value) > MAX_ITEMS:
            shown["…"] = f"{len(value) - MAX_ITEMS} more"
        return shown


@lru_cache(maxsize=1024)
def is_secret_key(key: str) -> bool:
    """Whether a member of this name holds something that must not be shown."""
    flat = key.replace("_", "").replace("-", "").lower()
    return _SECRET_KEY.search(flat) is not None and _ABOUT.search(flat) is None


def looks_like_key(run: str) -> bool:
    """Whether a long run of base64 or hex characters is key material rather than a path or an identifier.

    Random base64 changes between capitals, small letters and digits at about two of three characters; words,
    paths and names do so at one of four or fewer. Of random keys of 32 bytes about 1 in 50,000 is missed.
    """
    body = run.rstrip("=")
    if _HEX.match(body):
        return True
    kinds = ["a" if c.islower() else "A" if c.isupper() else "0" if c.isdigit() else c for c in body]
    if "a" not in kinds or "A" not in kinds:
        return False
    changes = sum(one != two for one, two in pairwise(kinds))
    return changes / len(body) >= (0.3 if "0" in kinds else 0.36)


def _replace(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "run":
        return MARK if looks_like_key(match[0]) else match[0]
    if kind == "pem" or kind == "jwt":
        return MARK
    return f"{match[kind or 0]}{MARK}{'@' if kind == 'user' else ''}"


def _beginning(text: str, most: int) -> str:
    """The start of a long text, cut at white space where there is some, so that no secret is cut in two."""
    end = max(text.rfind(" ", most // 2, most), text.rfind("\n", most // 2, most))
    return text[: end if end >= 0 else most // 2]
