"""A relay that a demo started ends with the demo, whatever ends the demo.

Occurs when a terminal with `make run` is closed, the kernel kills the demo for lack of memory, or an IDE ends its
terminal.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.drill.relay import ROOT, until

ENVIRON = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
DEMO = [sys.executable, "-m", "viewport_relay.cli.main", "demo", "--port", "0", "--turns", "5"]


def children(pid: int) -> set[int]:
    """PIDs of the child processes of `pid`, at any depth."""
    found = set[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= {int(child)} | children(int(child))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def gone_in_any_case(pids: set[int]) -> Iterator[None]:
    """Kill the processes, which a failed test would leave behind."""
    try:
        yield
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def on_a_terminal(command: list[str]) -> Iterator[tuple[int, int]]:
    """(pid, terminal) of a command in its own session; closing the terminal sends SIGHUP."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(command[0], command, ENVIRON)
    try:
        yield pid, terminal
    finally:
        for left in children(pid) | {pid}:
            if alive(left):
                os.kill(left, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait_until_it_serves(terminal: int) -> None:
    seen = b""
    deadline = time.monotonic() + 90
    while b"serves on until Ctrl-C" not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 65_536)
    assert re.search(rb"EXCHANGE OK", seen)


ENDS: list[tuple[str, Callable[[int, int], object]]] = [
    ("the terminal is closed", lambda pid, terminal: os.close(terminal)),
    ("SIGKILL to the demo", lambda pid, terminal: os.kill(pid, signal.SIGKILL)),
    ("SIGTERM to the demo", lambda pid, terminal: os.kill(pid, signal.SIGTERM)),
    ("Ctrl-C at the terminal", lambda pid, terminal: os.write(terminal, b"\x03")),
]


@pytest.mark.parametrize(("how", "end"), ENDS, ids=[case[0] for case in ENDS])
def test_the_relay_ends_with_its_demo(how: str, end: Callable[[int, int], object]) -> None:
    with on_a_terminal(DEMO) as (pid, terminal):
        wait_until_it_serves(terminal)
        below = children(pid)
        assert below
        with gone_in_any_case(below):
            end(pid, terminal)
            until(lambda: not any(alive(one) for one in below | {pid}), 20, "the end of demo and relay")


def test_a_starting_relay_ends_with_its_demo() -> None:
    process = subprocess.Popen(
        DEMO, env=ENVIRON, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: bool(children(process.pid)), 30, "the relay's process")
        below = children(process.pid)
    finally:
        process.kill()
        process.wait()
    with gone_in_any_case(below):
        until(lambda: not any(alive(one) for one in below), 20, "the end of the relay")
