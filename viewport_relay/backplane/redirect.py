"""The rule for redirects: which relays a client may be sent to (wire protocol, section 12, Redirect). No I/O."""

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
    """The hosts that are allowed, with or without a port. None: every host is."""

    hosts: frozenset[str] | None
    only_wss: bool = False

    @classmethod
    def from_config(cls, config: Config) -> RedirectRule:
        """The hosts of the settings; without them in prod the relay's own host over wss, in dev every host."""
        if config.redirect_allowed_hosts:
            return cls(frozenset(config.redirect_allowed_hosts))
        if config.mode == "prod":
            return cls(frozenset({urlsplit(config.public_ws_base_url).hostname or ""}), only_wss=True)
        return cls(None)

    def allows(self, url: str) -> bool:
        """Whether clients may be sent to this URL. Hosts are compared without regard to case."""
        if len(url) > LONGEST_URL or not _VISIBLE.fullmatch(url) or set(url) & set("?#\\"):
            return False
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            return False
        if parts.scheme not in ("ws", "wss") or not host or port == 0 or "@" in parts.netloc:
            return False
        if self.only_wss and parts.scheme != "wss":
            return False
        return self.hosts is None or host in self.hosts or parts.netloc.lower() in self.hosts
