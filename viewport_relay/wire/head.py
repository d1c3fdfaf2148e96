"""The head of an upgrade request: method, target, version and headers, however it was read.

Nearly every upgrade comes as one read that holds a whole head of the usual form. `read_upgrade` takes that apart in one
pass; it knows nothing else, and what it does not know Twisted's parser reads, byte for byte as before. A property test
holds the two together: a head that both can read says the same.
"""

from __future__ import annotations

import re
from typing import Final

from twisted.web.http import Request

#: Longest head that is read here, bytes, and most headers.
MAX_HEAD: Final = 16_384
MAX_HEADERS: Final = 64

#: RFC 9112 sections 3 and 5: the request line, then `name: value` lines without folding.
_HEAD: Final = re.compile(
    rb"GET (/ws\?[!-~]*+) HTTP/1\.1\r\n((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00\r\n]*+\r\n)++)\r\n"
)
#: Headers that say something about a body, or want an answer before it: not for us.
_BODY: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))


class Head:
    """What a peer asked. Names are in small letters, values stripped of blanks at both ends, in order."""

    __slots__ = ("headers", "method", "target", "version")

    def __init__(
        self, method: bytes, target: bytes, version: bytes, headers: dict[bytes, list[bytes]]
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers

    @classmethod
    def of(cls, request: Request) -> Head:
        """That of a request that Twisted has read."""
        headers = {name.lower(): list(values) for name, values in request.requestHeaders.getAllRawHeaders()}
        return cls(request.method, request.uri, request.clientproto, headers)

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    def values(self, name: bytes) -> list[str]:
        """All values of a header, each byte a character (Latin-1)."""
        return [value.decode("latin-1") for value in self.headers.get(name, ())]

    def first(self, name: bytes) -> str:
        """The first value of a header, or nothing."""
        values = self.headers.get(name)
        return values[0].decode("latin-1").strip() if values else ""

    def words(self, name: bytes) -> list[str]:
        """The members of a comma list, also over repeated headers (RFC 9110 section 5.6.1)."""
        return [word.strip() for value in self.values(name) for word in value.split(",") if word.strip()]

    def has(self, name: bytes, word: bytes) -> bool:
        """Whether a comma list has this word (in small letters), however it is written there."""
        values = self.headers.get(name, ())
        if len(values) == 1 and values[0].lower() == word:
            return True
        return word.decode("latin-1") in (member.lower() for member in self.words(name))

    def written(self) -> bytes:
        """Request line and headers, for another process to read again."""
        lines = [b"%b %b %b" % (self.method, self.target, self.version)]
        for name, values in self.headers.items():
            lines += [name + b":" + value for value in values]
        return b"\r\n".join(lines) + b"\r\n\r\n"


def read_upgrade(data: bytes) -> tuple[Head, int] | None:
    """The head that `data` begins with and its length, if it is whole and of the usual form; else None."""
    found = _HEAD.match(data)
    if found is None or found.end() > MAX_HEAD:
        return None
    headers: dict[bytes, list[bytes]] = {}
    lines = found[2].split(b"\r\n")
    del lines[-1]
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in headers:
            headers[name].append(value.strip(b" \t"))
        else:
            headers[name] = [value.strip(b" \t")]
    if len(lines) > MAX_HEADERS or not _BODY.isdisjoint(headers):
        return None
    return Head(b"GET", found[1], b"HTTP/1.1", headers), found.end()
