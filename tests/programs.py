"""External programs that tests start, by the marker of the tests.

`make proxies` installs from PyPI into .proxies the proxies that Debian lacks or has in an older version.
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
    """True if the program of a marker is installed."""
    return shutil.which(PROGRAMS[marker][0]) is not None
