"""base64url without padding (RFC 4648, sections 3.2 and 5), as keys and signatures are written."""

from __future__ import annotations

import base64


def base64url(data: bytes) -> str:
    """The text form of `data`."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
