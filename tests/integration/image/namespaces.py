"""Mount, PID and network namespaces for scratch roots; the kernel ends them with the test run.

    with Place(tmp_path) as place:
        place.run("mount", "-t", "overlay", …)          # not visible outside
        (place.outside("/etc/hosts")).read_text()       # a path of the place, for this process

All mounts are in a private mount namespace, on a tmpfs in it; all processes are in its PID namespace. A test run that
fails or is killed therefore leaves nothing behind. Needs root. This module is independent of images.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

#: Environment for commands of this machine that work on the place.
PLAIN = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


class Failed(AssertionError):
    """A command ended with a status other than 0."""


def program(name: str) -> str:
    """Path of a program of this machine."""
    found = shutil.which(name, path=PLAIN["PATH"])
    assert found, f"{name} is not installed"
    return found


def why_not() -> str | None:
    """The reason why this process may not create namespaces, or None."""
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts and chroot"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"may not mount here, root or not: {done.stderr.strip()}" if done.returncode else None


class Place:
    """A mount and a PID namespace, with an empty tmpfs at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # cat is the first process of the PID namespace. It ends when this process ends, because no other process
        # holds the other end of the pipe; the kernel then ends the rest.
        self._holder = subprocess.Popen(
            [
                program("unshare"),
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                program("cat"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.read(1) == b"\n"  # the namespace is ready
        self._pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())
        try:
            self.run("mount", "-t", "tmpfs", "-o", "mode=755", "none", folder)
        except Failed:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(30)
        self._holder.stdout.close()

    def outside(self, path: str | Path) -> Path:
        """Path by which this process reaches a file of the place, its mounts included."""
        return Path(f"/proc/{self._pid}/root{path}")

    def words(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` in the place; the first word is a program of this machine."""
        head, *rest = (str(word) for word in command)
        return [
            program("nsenter"),
            "--target",
            str(self._pid),
            "--mount",
            "--pid",
            "--",
            program(head),
            *rest,
        ]

    def run(
        self,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        feed: str = "",
        seconds: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, standard error with standard output. Raises Failed with the output, unless `check` is False."""
        done = subprocess.run(
            self.words(*command),
            env=dict(PLAIN if environment is None else environment),
            input=feed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode != 0:
            said = " ".join(str(word) for word in command)
            raise Failed(f"status {done.returncode}: {said}\n{done.stdout[-8000:]}")
        return done


class Network:
    """A network namespace with a loopback interface only. It exists as long as this object or a process in it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        before = self._current()
        try:
            self._call("unshare", CLONE_NEWNET)
            self._fd = self._current()
            with socket.socket() as sock:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        finally:
            self._call("setns", before, CLONE_NEWNET)
            os.close(before)

    def _current(self) -> int:
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Move this thread into the network: its new sockets, threads and processes belong to it, and stay in it."""
        before = self._current()
        self._call("setns", self._fd, CLONE_NEWNET)
        try:
            yield
        finally:
            self._call("setns", before, CLONE_NEWNET)
            os.close(before)

    def close(self) -> None:
        os.close(self._fd)
