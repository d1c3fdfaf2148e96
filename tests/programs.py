"""The programs that tests start beside the relay, by the marker of the tests that need them.

`make proxies` installs the proxies that Debian does not have, or has in an older version, from PyPI into .proxies.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

FROM_PYPI: Final = Path(__file__).parents[1] / ".proxies"

#: marker -> the program, and the command that installs it
PROGRAMS: Final = {
    "redis": ("redis-server", "apt-get install redis-server"),
    "chromium": ("chromium", "apt-get install chromium"),
    "chromedriver": ("chromedriver", "apt-get install chromium-driver"),
    "promtool": ("promtool", "apt-get install prometheus"),
    "node": ("node", "apt-get install nodejs"),
    "systemd": ("systemd-analyze", "apt-get install systemd"),
    "image": ("mmdebstrap", "apt-get install mmdebstrap"),
    "nspawn": ("systemd-nspawn", "apt-get install systemd-container"),
    "nginx": ("nginx", "apt-get install nginx-light"),
    "caddy": ("caddy", "apt-get install caddy"),
    "haproxy": ("haproxy", "apt-get install haproxy"),
    "kubectl": ("kubectl", "apt-get install kubernetes-client"),
    "caddy_new": (str(FROM_PYPI / "bin/caddy"), "make proxies"),
    "traefik": (str(FROM_PYPI / "bin/traefik"), "make proxies"),
    "envoy": (str(FROM_PYPI / "envoy/_bin/envoy"), "make proxies"),
}


def installed(marker: str) -> bool:
    """Whether the program of a marker is there."""
    return shutil.which(PROGRAMS[marker][0]) is not None
