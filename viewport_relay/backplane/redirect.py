"""Which relays a client may be sent to (wire protocol, section 12, Redirect). Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from attrs import frozen

from viewport_relay.config import Config

#: Longest URL that is looked at, as for the claim `relayWsBaseUrl`.
LONGEST_URL = 512

_VISIBLE = re.compile(r"[\x21-\x7e]+")


@frozen
class RedirectRule:
    """Allowed hosts. `hosts` empty: any, unless `only_own` says that just wss to `own_host` is."""

    hosts: frozenset[str] = frozenset()
    only_own: bool = False
    own_host: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> RedirectRule:
        return cls(
            frozenset(config.redirect_allowed_hosts),
            config.mode == "prod" and not config.redirect_allowed_hosts,
            urlsplit(config.public_ws_base_url).hostname,
        )

    def allows(self, url: str) -> bool:
        """Whether clients may be sent to this URL. Hosts are compared in any case, with or without a port."""
        if len(url) > LONGEST_URL or not _VISIBLE.fullmatch(url) or set(url) & set("?#\\"):
            return False
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            return False
        if parts.scheme not in ("ws", "wss") or not host or port == 0 or "@" in parts.netloc:
            return False
        if self.only_own:
            return parts.scheme == "wss" and host == self.own_host
        return not self.hosts or host in self.hosts or parts.netloc.lower() in self.hosts
