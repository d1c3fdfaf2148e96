"""A headless Chromium for tests, controlled by chromedriver's HTTP interface (W3C WebDriver).

It has only the functions of the dashboard's tests. All calls block: an asynchronous test makes them in a thread.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--force-color-profile=srgb", "--lang=en-US",
]  # fmt: skip

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def _driver(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A chromedriver with `folder` for temporary files, and its port: one that is free on IPv4 may be taken on IPv6."""
    command = shutil.which("chromedriver")
    assert command
    said: list[str] = []
    for _ in range(4):
        driver = subprocess.Popen(
            [command, "--port=0"], env=os.environ | {"TMPDIR": str(folder)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert driver.stdout is not None
        for line in driver.stdout:
            said.append(line)
            if "successfully on port" in line:
                return driver, int(line.rsplit("port", 1)[1].strip(" .\n"))
        driver.wait(10)
        driver.stdout.close()
    raise AssertionError(f"chromedriver did not start: {''.join(said)}")


class Browser:
    """One Chromium with an empty profile."""

    def __init__(self, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        # The profile, and what Chromium leaves of its temporary files: chromedriver kills it.
        self.folder = Path(tempfile.mkdtemp(prefix="chromium-"))
        chromium = shutil.which("chromium")
        assert chromium
        self.driver, port = _driver(self.folder)
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            *ARGUMENTS,
            f"--user-data-dir={self.folder / 'profile'}",
            f"--window-size={width},{height}",
        ]
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        options = {
            "binary": chromium,
            "args": arguments,
            "perfLoggingPrefs": {"enableNetwork": True},
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}, 60)
        except BaseException:
            self._end()
            raise
        self.session = f"/session/{answer['sessionId']}"

    def close(self) -> None:
        try:
            self._ask("DELETE", self.session)
        finally:
            self._end()

    def _end(self) -> None:
        self.driver.terminate()
        self.driver.wait(10)
        assert self.driver.stdout is not None
        self.driver.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, method: str, path: str, body: object = None, timeout: float = 30) -> Any:
        data = None if method in {"GET", "DELETE"} else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    # -- pages -------------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self._ask("POST", f"{self.session}/url", {"url": url})

    def reload(self) -> None:
        self._ask("POST", f"{self.session}/refresh")

    @property
    def url(self) -> str:
        return str(self._ask("GET", f"{self.session}/url"))

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, and return its result."""
        return self._ask("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def cookies(self) -> list[dict[str, Any]]:
        return list(self._ask("GET", f"{self.session}/cookie"))

    def console(self) -> list[str]:
        """Messages of the console since the last call: errors, refused loads, broken policies."""
        entries = self._ask("POST", f"{self.session}/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def requested(self) -> list[str]:
        """Every URL that the pages requested since the last call."""
        entries = self._ask("POST", f"{self.session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def devtools(self, command: str, **parameters: object) -> Any:
        return self._ask("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def color_scheme(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self.session}/screenshot")))

    # -- elements ------------------------------------------------------------------------------------------------

    def find(self, css: str) -> str:
        found = self._ask("POST", f"{self.session}/element", {"using": "css selector", "value": css})
        return str(found[_ELEMENT])

    def type(self, css: str, text: str) -> None:
        """Type as a keyboard does; "\\ue007" is Enter."""
        self._ask("POST", f"{self.session}/element/{self.find(css)}/value", {"text": text})

    def keys(self, text: str) -> None:
        """Press keys on the focused element."""
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._ask(
            "POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        )

    def click(self, css: str) -> None:
        self._ask("POST", f"{self.session}/element/{self.find(css)}/click")

    def text(self, css: str) -> str:
        """The visible text of the first match, empty if there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def wait(self, what: Callable[[], Any], seconds: float = 10) -> Any:
        """Poll `what`; returns its first true result."""
        deadline = time.monotonic() + seconds
        while True:
            got = what()
            if got:
                return got
            assert time.monotonic() < deadline, f"not within {seconds} s; console: {self.console()}"
            time.sleep(0.1)
