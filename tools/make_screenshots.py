"""Screenshots of the dashboard of a real relay with a little traffic: docs/images/dashboard*.png.

Run by `make screenshots`; needs chromium and chromedriver. Relay, peers and refusals are real; the control plane is
the dev platform.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.integration.relayprocess import RelayProcess  # noqa: E402
from tests.integration.webdriver import Browser  # noqa: E402
from viewport_relay.devplatform import DevPlatform  # noqa: E402
from viewport_relay.peer.connection import connect  # noqa: E402
from viewport_relay.peer.upgrade import ClosedEarly, Destination, UpgradeRefused  # noqa: E402

IMAGES = ROOT / "docs" / "images"
ADMIN = secrets.token_urlsafe(24)
SECONDS = 75

WORKSPACES = {
    "acme-backend": ("build-box", 3),
    "acme-web": ("mac-studio", 2),
    "research": ("gpu-01", 4),
    "infra": ("laptop-anna", 1),
}


def frame() -> str:
    return json.dumps(
        {"type": "e2ee", "version": 2, "profile": "noise-ik", "sessionId": f"s-{random.randrange(9)}", "epoch": 1,
         "seq": 1, "iv": "aaaa", "tag": "bbbb", "ciphertext": "cccc"}
    )  # fmt: skip


class Traffic:
    """Peers that connect and send frames, and peers that are refused."""

    def __init__(self, platform: DevPlatform, relay: RelayProcess) -> None:
        self.platform, self.relay = platform, relay
        self.clients: list[Any] = []

    async def join(self, role: str, workspace: str, target: str, **claims: Any) -> Any:
        ttl = claims.pop("ttl", 600)
        token = self.platform.issue(role, workspace, target, ttl=ttl, **claims)
        agent = {"User-Agent": "viewport-daemon/1.8.2" if role == "workspace-daemon" else "viewport-web/3.1"}
        destination = Destination(self.relay.ws, role, workspace, target, headers=agent)
        return await connect(reactor, destination, token, lambda text: None)

    async def fill(self) -> None:
        for workspace, (target, clients) in WORKSPACES.items():
            self.platform.workspaces.add(workspace)
            await self.join("workspace-daemon", workspace, target)
            for n in range(clients):
                claims = {"scope": "runtime", "clientId": f"{workspace}-viewer-{n}"}
                self.clients.append(await self.join("client", workspace, target, **claims))
                await deferLater(reactor, 2, lambda: None)

    def talk(self) -> None:
        for client in self.clients:
            if random.random() < 0.55:
                client.send(frame())

    async def be_refused(self) -> None:
        for _ in range(8):
            await self._refused("workspace-daemon", "acme-web", "old-laptop", ttl=-600)
        await self._refused("client", "dev-missing", "x")
        for _ in range(3):
            peer = await self.join("workspace-daemon", "research", "gpu-01")  # a second daemon
            await peer.closed

    async def _refused(self, role: str, workspace: str, target: str, **claims: Any) -> None:
        with contextlib.suppress(UpgradeRefused, ClosedEarly):
            await self.join(role, workspace, target, **claims)


def take(relay: RelayProcess) -> None:
    """Sign in and take the screenshots."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    browser = Browser(width=1280, height=1000)
    try:
        browser.resize(1280, 1560)
        browser.open(relay.base + "/admin/")
        browser.wait(lambda: browser.text("#gate h2") == "Sign in")
        browser.type("#token", ADMIN + "\ue007")
        browser.wait(lambda: browser.text("#spaces tbody tr") and browser.text("#log li"))
        browser.run("return new Promise((done) => setTimeout(done, 4500))")
        for name, scheme, width, height in (
            ("dashboard.png", "light", 1280, 1560),
            ("dashboard-dark.png", "dark", 1280, 1560),
            ("dashboard-phone.png", "dark", 390, 1500),
        ):
            browser.color_scheme(scheme)
            browser.resize(width, height)
            browser.run("scrollTo(0, 0)")
            browser.run("return new Promise((done) => setTimeout(done, 600))")
            browser.screenshot(IMAGES / name)
            print(IMAGES / name)
    finally:
        browser.close()


async def run() -> None:
    platform = DevPlatform(reactor, internal_key=secrets.token_urlsafe(24))
    platform.listen(reactor)
    settings = {"RELAY_ADMIN_TOKEN": ADMIN, "RELAY_ID": "relay-fra-1", "RELAY_PONG_TIMEOUT_MS": "1000"}
    relay = RelayProcess(platform.relay_environment() | settings)
    try:
        await deferToThread(relay.wait)
        traffic = Traffic(platform, relay)
        talking = LoopingCall(traffic.talk)
        talking.start(0.3)
        await traffic.fill()
        await traffic.be_refused()
        await deferLater(reactor, SECONDS - 30, lambda: None)
        await deferToThread(take, relay)
        talking.stop()
    finally:
        await deferToThread(relay.stop)
        await platform.close()


def main() -> int:
    failed: list[str] = []

    def end(result: object) -> None:
        if result is not None:
            failed.append(str(result))
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()).addBoth(end))
    reactor.run()
    print(*failed, sep="\n", end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
