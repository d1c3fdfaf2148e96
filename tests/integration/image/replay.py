"""Executes a Dockerfile in scratch roots, layer by layer, and runs the result, without a container engine.

    with Place(folder) as place:
        image = build(place, ROOT, arguments={"VERSION": "1.2.3"})
        with Container(image, network, {"RELAY_MODE": "dev"}) as container:
            container.execute(["curl", …])

Each stage is an overlay on the base (tests/integration/image/base.py). RUN steps run as root in it, with /proc and
/dev, in the network of this machine; COPY takes files of the context that .dockerignore does not exclude. A container
has a read-only root, its own PID, mount and network namespace, the image's user without capabilities, and no new
privileges: `docker run --read-only --cap-drop ALL --security-opt no-new-privileges`, without cgroups and seccomp.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from attrs import Factory, define

from tests.integration.image import base
from tests.integration.image.context import copy_context
from tests.integration.image.dockerfile import Copy, Folder, Run, Stage, Step, read
from tests.integration.image.namespaces import Network, Place, program

DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}  # minor numbers


# -- building --------------------------------------------------------------------------------------------------------


def shell_or_words(command: str | tuple[str, ...] | None) -> list[str]:
    """Words of a command of RUN, CMD or HEALTHCHECK, in either form."""
    assert command, "no command"
    return ["/bin/sh", "-c", command] if isinstance(command, str) else [*command]


@define
class Image:
    """The last stage, its metadata, and its layers from the top down (all paths are within the place)."""

    place: Place
    stage: Stage
    layers: list[Path]
    python: Path | None  # mounted at /usr/local; None: the base has the release's own
    times: list[tuple[str, float]] = Factory(list)

    @property
    def layer(self) -> Path:
        """Path, for this process, of what the last stage added to its base."""
        return self.place.outside(self.layers[0])

    def mount(self, root: Path, *above: Path, upper: Path | None = None) -> None:
        """Mount the file system at `root` with `above` on top: read-only, or with changes stored in `upper`."""
        mount_overlay(self.place, root, [*above, *self.layers], upper)
        mount_python(self.place, root, self.python)


def mount_overlay(place: Place, root: Path, lower: list[Path], upper: Path | None) -> None:
    options = "lowerdir=" + ":".join(map(str, lower))
    made = [root]
    if upper is not None:
        work = upper.with_name(upper.name + "-work")
        options += f",upperdir={upper},workdir={work}"
        made += [upper, work]
    place.run("mkdir", "-p", "-m", "755", *made)
    if upper is None and len(lower) == 1:
        place.run("mount", "--bind", "-o", "ro", lower[0], root)
    else:
        place.run("mount", "-t", "overlay", "-o", options, "overlay", root)


def mount_python(place: Place, root: Path, prefix: Path | None) -> None:
    if prefix is not None:
        place.run("mount", "--bind", "-o", "ro", prefix, root / "usr/local")


class Build:
    """State of one build."""

    def __init__(self, place: Place, context: Path, stages: list[Stage]) -> None:
        self.place = place
        self.context = context
        self.stages = stages
        self.carried = base.carried()
        self.python: Path | None = None
        self.times: list[tuple[str, float]] = []

    def _path(self, name: str) -> Path:
        return self.place.folder / name

    def _timed(self, what: str, began: float) -> None:
        self.times.append((what, time.monotonic() - began))

    def make_base(self) -> None:
        images = {stage.base for stage in self.stages if isinstance(stage.base, str)}
        assert len(images) == 1, f"one base image is wanted, not {images}"
        match = re.search(r"\bpython:(\d+\.\d+)", images.pop())
        assert match, "no base image with a Python"
        began = time.monotonic()
        self.python = base.built_python(match[1])
        packages = base.packages_of(self.python, match[1]) if self.python else ["python3", "python3-venv"]
        base.make_debian(self.place, self._path("base"), packages)
        if self.python is not None:
            # This Python may be linked with its own libpython, which ldconfig's cache must list.
            mount_python(self.place, self._path("base"), self.python)
            self.place.run("chroot", self._path("base"), "/sbin/ldconfig")
            self.place.run("umount", self._path("base") / "usr/local")
        else:
            (self.place.outside(self._path("base")) / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        self._timed("base", began)

    def make_mount_points(self) -> None:
        """Make mount points in a layer of their own, which no image keeps."""
        points = self.place.outside(self._path("carried"))
        points.mkdir(mode=0o755)
        for name in self.carried.files:
            (points / name.strip("/")).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            (points / name.strip("/")).touch()
        for folder in self.carried.folders:
            (points / str(folder).strip("/")).mkdir(mode=0o755, parents=True, exist_ok=True)

    def layers(self, number: int) -> list[Path]:
        stage = self.stages[number]
        below = self.layers(stage.base) if isinstance(stage.base, int) else [self._path("base")]
        return [self._path(f"stage-{number}"), *below]

    def carry_out(self, number: int) -> None:
        root = self._path(f"root-{number}")
        upper, *lower = self.layers(number)
        mount_overlay(self.place, root, [self._path("carried"), *lower], upper)
        mount_python(self.place, root, self.python)
        self.place.run("mount", "-t", "proc", "proc", root / "proc")
        self.place.run("mount", "--bind", "/dev", root / "dev")
        for name, file in self.carried.files.items():
            self.place.run("mount", "--bind", "-o", "ro", file, f"{root}{name}")
        for folder in self.carried.folders:
            self.place.run("mount", "--bind", "-o", "ro", folder, f"{root}{folder}")
        for step in self.stages[number].steps:
            began = time.monotonic()
            self._step(step, root)
            self._timed(f"stage {number}, line {step.line}: {type(step).__name__}", began)
        self.place.run("umount", "--recursive", root)

    def _step(self, step: Step, root: Path) -> None:
        match step:
            case Folder():
                self.place.run("mkdir", "-p", f"{root}{step.path}")
            case Copy(origin=None):
                copy_context(self.context, step, self.place.outside(root))
            case Copy():
                self._copy_from(step, root)
            case Run():
                self.place.run(
                    "chroot", f"--userspec={step.user}", root, "/bin/sh", "-c", 'cd "$0" && exec "$@"', step.folder,
                    *shell_or_words(step.command), environment=self.carried.environment | {"HOME": "/root"} | step.environment,
                )  # fmt: skip

    def _copy_from(self, step: Copy, root: Path) -> None:
        assert step.origin is not None
        source = self._path(f"from-{step.origin}")
        mount_overlay(self.place, source, self.layers(step.origin), None)
        for name in step.sources:
            path = f"{source}/{name.strip('/')}"
            if self.place.outside(path).is_dir():
                self.place.run("mkdir", "-p", f"{root}{step.target}")
                path += "/."
            self.place.run("cp", "-a", path, f"{root}{step.target}")
        self.place.run("umount", source)


def build(place: Place, context: Path, arguments: Mapping[str, str]) -> Image:
    """`docker build` of the context's Dockerfile. Raises Unreadable, or Failed with a step's output."""
    stages = read((context / "Dockerfile").read_text("utf-8"), arguments, base.ENVIRONMENT)
    building = Build(place, context, stages)
    building.make_base()
    building.make_mount_points()
    for number in range(len(stages)):
        building.carry_out(number)
    return Image(place, stages[-1], building.layers(len(stages) - 1), building.python, building.times)


# -- running ---------------------------------------------------------------------------------------------------------


class Container:
    """`docker run` of an image, started at once; `files` adds files to the image's own: path -> content.

    `read_only=False` shows which paths the user could write to if the root were writable.
    """

    def __init__(
        self,
        image: Image,
        network: Network,
        environment: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        *,
        read_only: bool = True,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self.image, self.network = image, network
        self.environment = image.stage.environment | dict(environment)
        self._exits = ExitStack()
        stage, place = image.stage, image.place
        folder = place.folder / f"container-{time.monotonic_ns()}"
        given = place.outside(folder / "files")
        given.mkdir(parents=True)
        for name, text in (files or {}).items():
            file = given / name.strip("/")
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o444)
        self.root = folder / "root"
        image.mount(self.root, folder / "files", upper=None if read_only else folder / "upper")
        self._make_devices(self.root / "dev")
        words = shell_or_words(command or stage.command)
        self._stdout = self._exits.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._stderr = self._exits.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        with self.network.inside():
            self.process = subprocess.Popen(
                place.words("unshare", "--pid", "--fork", "--kill-child", f"--root={self.root}", "--mount-proc",
                            f"--wd={stage.folder}", *self._as_user(words)),
                env=self.environment, stdin=subprocess.DEVNULL, stdout=self._stdout,
                stderr=self._stderr,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait(10)
        self._exits.close()
        self.image.place.run("umount", "--recursive", self.root)

    def _make_devices(self, folder: Path) -> None:
        """Make the device files without which programs do not run, in a read-only folder."""
        place = self.image.place
        place.run("mount", "-t", "tmpfs", "-o", "mode=755,nosuid,noexec", "none", folder)
        for name, minor in DEVICES.items():
            place.run("mknod", "-m", "666", folder / name, "c", "1", str(minor))
        place.run("mount", "-o", "remount,ro", folder)

    def _as_user(self, words: list[str]) -> list[str]:
        uid, _, gid = self.image.stage.user.partition(":")
        return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups", "--inh-caps=-all",
                "--bounding-set=-all", "--no-new-privs", *words]  # fmt: skip

    @property
    def pid(self) -> int:
        """PID of the command outside of the container; in the container it is 1."""
        found = self.process.pid
        deadline = time.monotonic() + 10
        for _ in range(2):  # nsenter, unshare
            while not (children := Path(f"/proc/{found}/task/{found}/children").read_text().split()):
                assert time.monotonic() < deadline and self.process.poll() is None, self.stderr()
                time.sleep(0.01)
            found = int(children[0])
        return found

    def execute(self, words: str | tuple[str, ...], **more: str) -> subprocess.CompletedProcess[str]:
        """`docker exec`: run the command in the container as its user; a string is passed to the shell."""
        with self.network.inside():
            return subprocess.run(
                [program("nsenter"), f"--target={self.pid}", "--mount", "--pid", "--root", "--wd",
                 *self._as_user(shell_or_words(words))],
                env=self.environment | more, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip

    def stop(self, seconds: float = 10.0) -> int:
        """`docker stop`: send the image's stop signal; returns the exit status."""
        os.kill(self.pid, signal.Signals[self.image.stage.stop_signal])
        return self.process.wait(seconds)

    def stdout(self) -> str:
        return _all_of(self._stdout.fileno())

    def stderr(self) -> str:
        return _all_of(self._stderr.fileno())


def _all_of(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode("utf-8", "replace")
