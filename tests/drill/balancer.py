"""A load balancer in front of a fleet, with the configuration of docs/how-to/load-balancers.md.

    with balanced("haproxy", folder, platform, redis.url) as (balancer, fleet, swarm):
        swarm.add(20, daemon=lambda n: [balancer.port], client=lambda n: [balancer.port])

Only addresses and long intervals of the page's text are replaced.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.drill.fleet import DrillFleet
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import until
from tests.drill.swarm import Swarm
from tests.integration.proxies import nginx_main, put_in
from tests.pages import blocks
from tests.ports import free_port
from tests.programs import PROGRAMS

PAGE = "docs/how-to/load-balancers.md"
LANGUAGES = {"haproxy": "haproxy", "nginx": "nginx", "envoy": "yaml"}
#: Host names of the relays on the page, in the order of `ports`.
NAMES = ("relay-a.example", "relay-b.example", "relay-c.example")
#: Seconds between two health checks of HAProxy and Envoy in tests; nginx has none.
CHECK = 0.5


class Balancer:
    """The process of a balancer. `program` is haproxy, nginx or envoy; `ports` are those of the page's three relays."""

    def __init__(self, program: str, folder: Path, ports: Sequence[int]) -> None:
        self.port = free_port()
        folder.mkdir(exist_ok=True)
        [block] = blocks(PAGE, LANGUAGES[program])
        configuration = folder / f"{program}.yaml"
        configuration.write_text(getattr(self, f"_{program}")(block.text, folder, ports))
        path = str(configuration)
        command = {
            "nginx": ["nginx", "-c", path, "-p", str(folder), "-e", "stderr"],
            "haproxy": ["haproxy", "-db", "-f", path],
            "envoy": [
                PROGRAMS["envoy"][0],
                "-c",
                path,
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "-l",
                "error",
            ],
        }[program]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def _haproxy(self, text: str, folder: Path, ports: Sequence[int]) -> str:
        pieces = {f"10.0.0.{n}:7781": f"127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
        times = {"check inter 2s": f"check inter {int(CHECK * 1000)}ms"}
        # The page's maximum needs more descriptors than a test may open.
        return "global\n    maxconn 4000\n" + put_in(
            text, pieces | times | {"bind :8080": f"bind 127.0.0.1:{self.port}"}
        )

    def _nginx(self, text: str, folder: Path, ports: Sequence[int]) -> str:
        pieces = {f"10.0.0.{n}:7781": f"127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
        text = put_in(text, pieces | {"listen 8080": f"listen 127.0.0.1:{self.port}"})
        return nginx_main(folder, text).replace("events {}", "events { worker_connections 4000; }")

    def _envoy(self, text: str, folder: Path, ports: Sequence[int]) -> str:
        pieces = {
            f"address: 10.0.0.{n}, port_value: 7781": f"address: 127.0.0.1, port_value: {port}"
            for n, port in enumerate(ports, 1)
        }
        times = {"interval: 2s": f"interval: {CHECK}s"}
        own = {"address: 0.0.0.0, port_value: 8080": f"address: 127.0.0.1, port_value: {self.port}"}
        return put_in(text, pieces | times | own)

    def __enter__(self) -> Self:
        until(self._listens, 20, "the balancer")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._log.close()

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.output()
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def output(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def settings(self, number: int) -> dict[str, str]:
        """Settings that relay `number` needs behind this balancer."""
        return {"RELAY_PUBLIC_WS_BASE_URL": f"ws://{NAMES[number]}:{self.port}"}


@contextmanager
def balanced(
    program: str, folder: Path, platform: FaultyPlatform, redis_url: str, pause: float = 0.05
) -> Iterator[tuple[Balancer, DrillFleet, Swarm]]:
    """The page's three relays behind a balancer whose health checks have passed, and a swarm; `pause` as for Swarm."""
    ports = [free_port() for _ in NAMES]
    with (
        Balancer(program, folder / program, ports) as balancer,
        DrillFleet(
            platform, redis_url, len(ports), {"RELAY_TRUSTED_PROXIES": "127.0.0.1"},
            {n: balancer.settings(n) for n in range(len(ports))}, ports,
        ) as fleet,
        Swarm(platform, pause=pause) as swarm,
    ):  # fmt: skip
        time.sleep(3 * CHECK)
        yield balancer, fleet, swarm
