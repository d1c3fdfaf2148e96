"""Description of a measurement's environment: the machine, and the versions of the measured programs."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from relays import HERE, NODE_RELAY


def machine() -> dict[str, object]:
    """CPU, cores, memory and kernel, without a host name."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        # Major and minor only: builders append their own names.
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "architecture": platform.machine(),
    }


def versions() -> dict[str, str]:
    """Versions of all programs and libraries that influence the figures."""
    found = {
        name: version(name) for name in ("Twisted", "autobahn", "msgspec", "treq", "PyJWT", "cryptography")
    }
    found |= {"python": platform.python_version(), "viewport-relay": version("viewport-relay")}
    found["commit"] = _said("git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*")
    found["cc"] = _said("cc", "--version").partition("\n")[0]
    found["node"] = _said("node", "--version").removeprefix("v")
    for name in ("ws", "bufferutil"):
        package = NODE_RELAY / "node_modules" / name / "package.json"
        if package.exists():
            found[name] = json.loads(package.read_text())["version"]
    return found


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
