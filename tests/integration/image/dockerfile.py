"""Parser for the part of the Dockerfile language that this project's Dockerfile uses.

    stages = read(text, arguments={"VERSION": "1.2.3"}, environment={"PATH": "/usr/local/bin:/usr/bin:/bin"})

Variables are substituted as Docker does it (in every instruction but RUN, CMD and HEALTHCHECK, where the shell does
it), so that the result can be executed step by step. This module executes nothing. Unsupported syntax (heredocs,
mounts, ADD, wildcards, quoting with apostrophes or backslashes …) raises Unreadable with the line's number; the
parser never guesses.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping

from attrs import Factory, define, frozen

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^{}]*))?\})")
HEALTH_OPTIONS = {"interval", "timeout", "start-period", "start-interval", "retries"}


class Unreadable(ValueError):
    """A line with unsupported syntax, or one that Docker would refuse."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


@frozen
class Run:
    """RUN: a command line for /bin/sh with its environment, or the words of the exec form."""

    line: int
    command: str | tuple[str, ...]
    environment: dict[str, str]
    folder: str
    user: str


@frozen
class Copy:
    """COPY: sources in the context or in stage `origin`; absolute target, with a final "/" as written."""

    line: int
    sources: tuple[str, ...]
    target: str
    origin: int | None


@frozen
class Folder:
    """WORKDIR: a folder, made if it is missing."""

    line: int
    path: str


Step = Run | Copy | Folder


@define
class Stage:
    """One FROM and its steps in order, and the metadata of the image at the end."""

    base: str | int  # an image, or the number of an earlier stage
    name: str | None
    environment: dict[str, str]
    steps: list[Step] = Factory(list)
    labels: dict[str, str] = Factory(dict)
    exposed: list[int] = Factory(list)
    folder: str = "/"
    user: str = "root"
    stop_signal: str = "SIGTERM"
    command: str | tuple[str, ...] | None = None
    health: str | tuple[str, ...] | None = None
    health_options: dict[str, str] = Factory(dict)


def instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, word, rest) of each instruction: continuation lines joined, comments and empty lines removed."""
    joined, began, head = "", 0, True
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("#"):
            if head and re.match(r"#\s*escape\s*=", stripped):
                raise Unreadable(number, "another escape character")
            continue
        head = False
        if not stripped:
            continue
        began = began or number
        if stripped.endswith("\\"):
            joined += line.rstrip()[:-1]
            continue
        word, _, rest = (joined + line).strip().partition(" ")
        yield began, word.upper(), rest.strip()
        joined, began = "", 0
    if joined:
        raise Unreadable(began, "the last line goes on")


def put_in(text: str, values: Mapping[str, str], line: int) -> str:
    """Substitute $NAME, ${NAME}, ${NAME:-otherwise} and ${NAME:+instead}; an unknown variable is empty."""

    def value(match: re.Match[str]) -> str:
        given = values.get(match[1] or match[2], "")
        if match[3] == "-":
            return given or match[4]
        if match[3] == "+":
            return match[4] if given else ""
        return given

    if "$" in VARIABLE.sub("", text):
        raise Unreadable(line, f"a $ that starts no variable: {text}")
    return VARIABLE.sub(value, text)


def words(text: str, values: Mapping[str, str], line: int) -> list[str]:
    """Split at blanks outside of quotation marks, then substitute variables."""
    if "'" in text or "\\" in text or text.startswith("["):
        raise Unreadable(line, f"apostrophes, backslashes and lists are not read here: {text}")
    return [put_in(word, values, line) for word in shlex.split(text)]


def pairs(text: str, values: Mapping[str, str], line: int) -> dict[str, str]:
    found = {}
    for word in words(text, values, line):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Unreadable(line, f"NAME=value is wanted, not {word}")
        found[name] = value
    return found


def command_of(text: str, line: int) -> str | tuple[str, ...]:
    """A command line (shell form) or words (exec form)."""
    if not text:
        raise Unreadable(line, "no command")
    if not text.startswith("["):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        raise Unreadable(line, f"no list of strings: {text}") from None
    if not found or not all(isinstance(word, str) for word in found):
        raise Unreadable(line, f"no list of strings: {text}")
    return tuple(found)


class _Reader:
    """Parser state: the stages so far, and the variables in scope at this line."""

    def __init__(self, arguments: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.given = arguments
        self.base_environment = environment
        self.stages: list[Stage] = []
        self.outer: dict[str, str] = {}  # ARGs before the first FROM: for FROM lines alone
        self.args: dict[str, str] = {}

    @property
    def stage(self) -> Stage:
        return self.stages[-1]

    @property
    def values(self) -> dict[str, str]:
        return self.args | self.stage.environment

    def read(self, line: int, word: str, rest: str) -> None:
        take = getattr(self, "_" + word.lower(), None)
        if not re.fullmatch("[A-Z]+", word) or take is None:
            raise Unreadable(line, f"{word} is not read here")
        if not self.stages and word not in {"ARG", "FROM"}:
            raise Unreadable(line, f"{word} before FROM")
        take(line, rest)

    def _arg(self, line: int, rest: str) -> None:
        values = self.values if self.stages else self.outer
        for word in words(rest, values, line):
            name, equals, default = word.partition("=")
            if not self.stages:
                self.outer[name] = self.given.get(name, default)
            elif name in self.given or equals:
                self.args[name] = self.given.get(name, default)
            elif name in self.outer:
                self.args[name] = self.outer[name]

    def _from(self, line: int, rest: str) -> None:
        found = words(rest, self.outer, line)
        if len(found) not in {1, 3} or found[0].startswith("-") or (found[1:] and found[1].upper() != "AS"):
            raise Unreadable(line, f"FROM image [AS name] is wanted, not {rest}")
        if not found[0]:
            raise Unreadable(line, f"no image: {rest}")
        base = self._number(found[0])
        before = self.stages[base] if isinstance(base, int) else None
        stage = Stage(base, found[2] if found[1:] else None, dict(self.base_environment))
        if before is not None:
            stage.environment = dict(before.environment)
            stage.folder, stage.user = before.folder, before.user
        self.stages.append(stage)
        self.args = {}

    def _number(self, name: str) -> str | int:
        for number, stage in enumerate(self.stages):
            if stage.name == name:
                return number
        return name

    def _env(self, line: int, rest: str) -> None:
        # All assignments of one line see the values from before the line.
        self.stage.environment |= pairs(rest, self.values, line)

    def _label(self, line: int, rest: str) -> None:
        self.stage.labels |= pairs(rest, self.values, line)

    def _one(self, line: int, rest: str) -> str:
        found = words(rest, self.values, line)
        if len(found) != 1 or not found[0]:
            raise Unreadable(line, f"one word is wanted, not {rest!r}")
        return found[0]

    def _workdir(self, line: int, rest: str) -> None:
        self.stage.folder = posixpath.normpath(posixpath.join(self.stage.folder, self._one(line, rest)))
        self.stage.steps.append(Folder(line, self.stage.folder))

    def _user(self, line: int, rest: str) -> None:
        self.stage.user = self._one(line, rest)

    def _stopsignal(self, line: int, rest: str) -> None:
        self.stage.stop_signal = self._one(line, rest)

    def _expose(self, line: int, rest: str) -> None:
        for word in words(rest, self.values, line):
            port, _, protocol = word.partition("/")
            if not port.isdigit() or protocol not in {"", "tcp"}:
                raise Unreadable(line, f"a TCP port is wanted, not {word}")
            self.stage.exposed.append(int(port))

    def _run(self, line: int, rest: str) -> None:
        if rest.startswith("-") or "<<" in rest:
            raise Unreadable(line, "options and heredocs of RUN are not read here")
        stage = self.stage
        command = command_of(rest, line)
        stage.steps.append(Run(line, command, self.values, stage.folder, stage.user))

    def _copy(self, line: int, rest: str) -> None:
        found = words(rest, self.values, line)
        origin: int | None = None
        if found and (match := re.fullmatch(r"--from=(.+)", found[0])):
            number = self._number(match[1])
            if not isinstance(number, int):
                raise Unreadable(line, f"no stage {match[1]}")
            origin, found = number, found[1:]
        if len(found) < 2 or any(word.startswith(("-", "<<")) or set(word) & set("*?[") for word in found):
            raise Unreadable(line, f"COPY [--from=stage] source… target is wanted, not {rest}")
        *sources, target = found
        if len(sources) > 1 and not target.endswith("/"):
            raise Unreadable(line, "several sources need a target that ends with /")
        slash = "/" if target.endswith("/") else ""
        whole = posixpath.normpath(posixpath.join(self.stage.folder, target)).rstrip("/") + slash
        self.stage.steps.append(Copy(line, tuple(sources), whole, origin))

    def _cmd(self, line: int, rest: str) -> None:
        self.stage.command = command_of(rest, line)

    def _healthcheck(self, line: int, rest: str) -> None:
        options: dict[str, str] = {}
        while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            if match[1] not in HEALTH_OPTIONS:
                raise Unreadable(line, f"no such option: {match[0]}")
            options[match[1]] = match[2]
            rest = rest[match.end() :]
        word, _, command = rest.partition(" ")
        if word != "CMD":
            raise Unreadable(line, f"HEALTHCHECK [options] CMD command is wanted, not {rest}")
        self.stage.health = command_of(command.strip(), line)
        self.stage.health_options = options


def read(text: str, arguments: Mapping[str, str], environment: Mapping[str, str]) -> list[Stage]:
    """Parse a Dockerfile for a build with `arguments` (--build-arg); base images start with `environment`.

    Raises Unreadable.
    """
    reader = _Reader(arguments, environment)
    for line, word, rest in instructions(text):
        reader.read(line, word, rest)
    if not reader.stages:
        raise Unreadable(1, "no FROM")
    return reader.stages
