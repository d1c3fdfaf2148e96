"""RELAY_WORKERS=auto: the number of worker processes that fit this machine or container.

Cores come from the CPU affinity and from the CPU quota of the control group (cgroup v1 and v2), memory from its limit. A
limit of any group above counts too, since the tightest one applies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

#: Memory that one worker needs, bytes: the process at rest, and room for its peers.
WORKER_BYTES: Final = 128 << 20

#: cgroup v1 writes "no limit" as a number near 2^63.
_NO_LIMIT: Final = 1 << 60


@frozen
class Choice:
    """A number of workers and the sentence that says why."""

    workers: int
    why: str


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(root: Path = Path("/"), cores: int | None = None) -> Choice:
    """The number of workers for the machine whose files lie under `root`."""
    cores = available_cores() if cores is None else cores
    workers, why = cores, f"{cores} cores"
    quota = cpu_quota(root)
    if quota is not None and quota < workers:
        workers, why = max(1, int(quota)), f"a CPU quota of {quota:g} of {cores} cores"
    memory = memory_limit(root)
    if memory is not None and (fitting := max(1, memory // WORKER_BYTES)) < workers:
        workers, why = fitting, f"a memory limit of {memory >> 20} MiB, {WORKER_BYTES >> 20} MiB a worker"
    return Choice(workers, f"RELAY_WORKERS=auto is {workers}: {why}")


def cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota in cores; None if there is none."""
    quotas = []
    for folder in _groups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quotas.append(_ratio(quota, period))
    for folder in _groups(root, "cpu"):
        quotas.append(_ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(root: Path) -> int | None:
    """The tightest memory limit in bytes; None if there is none."""
    texts = [_text(folder / name) for folder in _groups(root, "") for name in ("memory.max", "memory.high")]
    texts += [_text(folder / "memory.limit_in_bytes") for folder in _groups(root, "memory")]
    return min((int(text) for text in texts if text.isdigit() and 0 < int(text) < _NO_LIMIT), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above, for a v1 `controller` or "" for v2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controllers if controller else "")
        if controller and not mount.is_dir():
            mount = root / "sys/fs/cgroup" / controller
        # In a container the path may be the host's, which is not visible: its own group is then the mount itself.
        here = mount / path.lstrip("/")
        while here != mount:
            yield here
            here = here.parent
        yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _ratio(quota: str, period: str) -> float | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)
