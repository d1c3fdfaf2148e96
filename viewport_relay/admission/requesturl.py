"""The URL of an outgoing request: checked and encoded once, in the form that treq takes. No I/O."""

from __future__ import annotations

import re

from hyperlink import EncodedURL


class RequestUrl(EncodedURL):
    """An absolute http or https URL without user info, checked and encoded once.

    treq takes an EncodedURL and encodes it again for each request, which costs much of a request's time, encodes characters
    of the path that were sent as they stand, and fails for IPv6 addresses: here `to_uri` and `to_text` are what was checked.
    """

    encoded: str
    host_header: str

    @classmethod
    def of(cls, text: str) -> RequestUrl:
        """Check a URL. Raises ValueError whose text says what is taken, without the URL: it may hold a password."""
        try:
            url = EncodedURL.from_text(text)
            ascii_text = text if text.isascii() else url.to_uri().to_text()
        except (ValueError, TypeError):
            raise ValueError("takes an absolute http or https URL") from None
        scheme = url.scheme.lower()
        if scheme not in ("http", "https") or not url.host:
            raise ValueError("takes an absolute http or https URL")
        if url.userinfo:
            raise ValueError("takes a URL without user and password")
        if url.port is not None and not 0 < url.port < 65536:
            raise ValueError("takes a port from 1 to 65535")
        authority, target = _split(ascii_text)
        if "\\" in authority or any(not "!" <= character <= "~" for character in ascii_text):
            raise ValueError("takes a URL without spaces and control characters")
        made = cls(scheme, url.host)
        made.encoded = f"{scheme}://{authority.lower()}{target}"
        made.host_header = authority.lower().removesuffix(":443" if scheme == "https" else ":80")
        return made

    @property
    def shown(self) -> str:
        """The URL for logs: without query, which may hold a secret."""
        return self.encoded.partition("?")[0]

    def to_uri(self) -> RequestUrl:
        """Called by treq."""
        return self

    def to_text(self, with_password: bool = False) -> str:
        """Called by treq."""
        return self.encoded


def _split(url: str) -> tuple[str, str]:
    """The authority of an absolute URL, and its target in origin-form (RFC 9112 section 3.2.1)."""
    found = re.fullmatch(r"[^:]*://([^/?#]*)([^#]*)(?:#.*)?", url, re.DOTALL)
    assert found is not None
    return found[1], found[2] if found[2].startswith("/") else "/" + found[2]
