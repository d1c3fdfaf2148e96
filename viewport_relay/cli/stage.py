"""One scene's part of the demonstration that is set up and released together: tokens, link keys, connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from viewport_relay.peer.connection import Connection, connect
from viewport_relay.peer.link import LinkSettings, generate_static
from viewport_relay.peer.platform_api import JsonHttp, PlatformApi, PlatformError, fetch_link_key
from viewport_relay.peer.transcript import LARGE_FRAME_BYTES
from viewport_relay.peer.upgrade import Destination

DAEMON = "workspace-daemon"
CLIENT = "client"


class DemoFailed(Exception):
    """The demonstration failed; the text says what an operator should check."""


@dataclass(frozen=True, slots=True, repr=False)
class Where:
    """URLs and credentials for a demonstration. No repr: it holds a credential.

    `ws_url` is the relay's base (`ws://host:port`), `platform_url` the control plane's. `trust_root` is for
    https and wss. `turns` >= 2 messages go each way; the relay's default of 240 a minute is the ceiling for
    one client. `pairing_secret` is that of the paired workspace, for platforms that do not put it into the
    token's claims.
    """

    ws_url: str
    platform_url: str
    credential: str
    target_id: str = "dev-machine"
    trust_root: Any = None
    turns: int = 200
    large_frame_bytes: int = LARGE_FRAME_BYTES
    pairing_secret: bytes | None = None
    timeout: float = 60.0


class Stage:
    """Tokens, keys and connections of one scene, released together."""

    def __init__(self, reactor: Any, where: Where, workspace_id: str) -> None:
        self._reactor = reactor
        self._where = where
        self._workspace = workspace_id
        self._http = JsonHttp(reactor, where.trust_root)
        self._platform = PlatformApi(self._http, where.platform_url)
        self._open: list[Connection] = []

    async def join(
        self, role: str, on_frame: Callable[[str], None], *, link: bool, with_secret: bool
    ) -> Connection:
        """Get a token for `role` and connect.

        Over the link when asked, and then with IKpsk2 `with_secret`.
        """
        where = self._where
        if role == DAEMON:
            credential = await self._platform.daemon_issue_token(
                self._workspace, runtimeTargetId=where.target_id, credential=where.credential
            )
        else:
            credential = where.credential
        token = await self._platform.relay_token(role, self._workspace, where.target_id, credential)
        destination = Destination(
            where.ws_url, role, self._workspace, where.target_id, trust_root=where.trust_root
        )
        if link:
            try:
                relay_key = await fetch_link_key(self._http, where.ws_url)
            except PlatformError as error:
                raise DemoFailed(f"the relay ({where.ws_url}) does not tell its link key: {error}") from error
            if relay_key is None:
                raise DemoFailed("the relay offers no link: is RELAY_NOISE_LINK off?")
            secret = token.pairing_secret or where.pairing_secret
            if with_secret and secret is None:
                raise DemoFailed(f"no pairing secret is known for workspace {self._workspace}")
            settings = LinkSettings(
                relay_key,
                generate_static(),
                role,
                self._workspace,
                where.target_id,
                secret if with_secret else None,
            )
            destination = replace(destination, link=settings)
        connection = await connect(self._reactor, destination, token.token, on_frame)
        self._open.append(connection)
        return connection

    async def leave(self) -> None:
        """Close all connections and wait until they are closed."""
        for connection in self._open:
            connection.close(1000, "done")
        for connection in self._open:
            await connection.closed
