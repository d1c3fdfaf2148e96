"""What an operator is told to do about an error of connecting or TLS."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionRefusedError, DNSLookupError, TCPTimedOutError

from viewport_relay.admission.httpwords import hint
from viewport_relay.admission.requesturl import RequestUrl


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ConnectionRefusedError(), "nothing listens at platform.example:7790: check that the platform runs"),
        (DNSLookupError(), "platform.example is not known to this machine's resolver"),
        (
            SSL.Error([("SSL routines", "", "wrong version number")]),
            "platform.example:7790 does not speak TLS",
        ),
        (SSL.Error([("SSL routines", "", "sslv3 alert handshake failure")]), ""),
        (TCPTimedOutError(), ""),
    ],
)
def test_the_hint(error: Exception, advice: str) -> None:
    told = hint(error, RequestUrl.of("https://platform.example:7790/keys"))
    assert told.startswith(advice) and bool(told) is bool(advice)
