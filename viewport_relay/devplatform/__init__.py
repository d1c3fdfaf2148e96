"""An embedded control plane for development and tests.

It stands in for the platform that the relay talks to: it publishes a JWKS, issues relay tokens,
answers `validate`, keeps presence and the bus of server mode, and echoes the worker API. It listens
on loopback only, keeps everything in memory and is no model of how a real platform decides:
one shared development credential gives access to every workspace.

Nothing here imports the relay, and the relay imports nothing of this except in development mode.
"""

from viewport_relay.devplatform.platform import DevPlatform
from viewport_relay.devplatform.rules import Rule
from viewport_relay.devplatform.tokens import KeyRing, SigningKey
from viewport_relay.devplatform.workspaces import Workspace

__all__ = ["DevPlatform", "KeyRing", "Rule", "SigningKey", "Workspace"]
