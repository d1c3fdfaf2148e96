"""Clock and keys for the tests of the development platform."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from viewport_relay.devplatform.tokens import KeyRing, SigningKey

NOW = 1_700_000_000.0


@pytest.fixture
def clock() -> Clock:
    made = Clock()
    made.advance(NOW)
    return made


@pytest.fixture(scope="session")
def rsa_key() -> SigningKey:
    """Session-scoped: generating an RSA key takes a tenth of a second."""
    return SigningKey.generate("RS256")


@pytest.fixture
def keys(rsa_key: SigningKey) -> KeyRing:
    return KeyRing(rsa_key)
