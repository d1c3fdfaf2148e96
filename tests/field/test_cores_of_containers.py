"""RELAY_WORKERS=auto: the cores and memory that a machine, container or service allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from viewport_relay.config.cores import choose

#: (place, control group, files below sys/fs/cgroup, workers on 16 cores, words of the reason)
PLACES: list[tuple[str, str, dict[str, str], int, str]] = [
    ("a machine without limits", "0::/user.slice", {"cpu.max": "max 100000", "memory.max": "max"}, 16, "16 cores"),
    ("no control groups", "", {}, 16, "16 cores"),
    ("docker run --cpus 0.5", "0::/", {"cpu.max": "50000 100000"}, 1, "a CPU quota of 0.5 of 16 cores"),
    ("docker run --cpus 2.5", "0::/", {"cpu.max": "250000 100000"}, 2, "a CPU quota of 2.5 of 16 cores"),
    ("a Kubernetes limit of 4 CPUs", "0::/", {"cpu.max": "400000 100000"}, 4, "a CPU quota of 4 of 16 cores"),
    ("docker run --memory 256m", "0::/", {"memory.max": str(256 << 20)}, 2, "a memory limit of 256 MiB"),
    ("a container of 64 MiB", "0::/", {"memory.max": str(64 << 20)}, 1, "a memory limit of 64 MiB"),
    ("MemoryHigh= of a unit", "0::/system.slice/relay.service",
     {"system.slice/relay.service/memory.high": str(512 << 20)}, 4, "a memory limit of 512 MiB"),
    ("CPUQuota=150% of a unit", "0::/system.slice/relay.service",
     {"system.slice/relay.service/cpu.max": "150000 100000"}, 1, "a CPU quota of 1.5 of 16 cores"),
    ("a limit on the slice above", "0::/relays.slice/relay.service",
     {"relays.slice/relay.service/cpu.max": "max 100000", "relays.slice/cpu.max": "300000 100000"}, 3, "a CPU quota of 3"),
    ("both limits: the tighter counts", "0::/", {"cpu.max": "400000 100000", "memory.max": str(256 << 20)}, 2,
     "a memory limit of 256 MiB"),
    ("cgroup v1, docker on an older kernel", "4:cpu,cpuacct:/docker/ab12\n7:memory:/docker/ab12",
     {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2, "a CPU quota of 2"),
    ("cgroup v1, memory", "7:memory:/docker/ab12", {"memory/memory.limit_in_bytes": str(384 << 20)}, 3,
     "a memory limit of 384 MiB"),
    ("cgroup v1 without limits", "4:cpu,cpuacct:/\n7:memory:/",
     {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000",
      "memory/memory.limit_in_bytes": "9223372036854771712"}, 16, "16 cores"),
    ("cgroup v1 with a link for one controller", "4:cpu,cpuacct:/",
     {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3, "a CPU quota of 3"),
    ("invalid files", "0::/", {"cpu.max": "0 0", "memory.max": "-"}, 16, "16 cores"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "group", "files", "workers", "why"), PLACES, ids=[place[0] for place in PLACES]
)
def test_workers_by_place(
    where: str, group: str, files: dict[str, str], workers: int, why: str, tmp_path: Path
) -> None:
    for name, content in {
        "proc/self/cgroup": group,
        **{f"sys/fs/cgroup/{n}": c for n, c in files.items()},
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    choice = choose(tmp_path, cores=16)
    assert choice.workers == workers
    assert choice.why.startswith(f"RELAY_WORKERS=auto is {workers}: {why}")


def test_workers_of_this_machine() -> None:
    assert choose().workers >= 1
