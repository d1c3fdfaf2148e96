"""The limit of open files, tested in child processes because a lowered limit cannot be raised again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from viewport_relay import descriptors


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "holds"),
    [(256, 1024, 512, 512), (256, 400, 512, 400), (300, 300, 512, 300), (900, 1024, 512, 900)],
)
def test_the_soft_limit_is_raised(soft: int, hard: int, wanted: int, holds: int) -> None:
    code = (
        "import resource\nfrom viewport_relay.descriptors import raise_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"print(raise_limit({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(holds), str(holds), str(hard)]


def test_room_for_peers_and_for_the_rest() -> None:
    assert descriptors.wanted(2000) == 4064
    assert descriptors.wanted(0) == 65_536
    assert descriptors.for_connections(1024) == 944
    assert descriptors.for_connections(10) == 16
    assert descriptors.for_http(1024, 0) == 960
    assert (
        descriptors.for_http(1024, 944)
        == descriptors.for_http(1024, 960)
        == descriptors.for_http(10, 0)
        == 16
    )
