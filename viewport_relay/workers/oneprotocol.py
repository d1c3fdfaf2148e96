"""The factory of a single connection, for `adoptStreamConnection`."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory


class OneProtocol(Factory):
    """A protocol factory that gives the one protocol that it was made with."""

    noisy = False

    def __init__(self, protocol: Any) -> None:
        self._one = protocol

    def buildProtocol(self, address: IAddress | None) -> Any:
        return self._one
