"""Tests of the parsers of Dockerfile and .dockerignore: what they accept, and that they refuse the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.image.context import Ignore, copy_context
from tests.integration.image.dockerfile import Copy, Folder, Run, Stage, Unreadable, read

PATH = {"PATH": "/usr/bin:/bin"}


def one(text: str, **arguments: str) -> Stage:
    return read(text, arguments, PATH)[-1]


def test_stages_arguments_and_variables() -> None:
    first, second = read(
        "# syntax=docker/dockerfile:1\n"
        "ARG BASE=debian:12\n"
        "FROM ${BASE} AS build\n"
        "ARG BASE\n"
        "ARG VERSION=0.1\n"
        "ENV A=1 B=$VERSION PATH=/opt/bin:$PATH\n"
        "WORKDIR /src\n"
        "RUN make \\\n"
        "    # not this one\n"
        "\n"
        '    && echo "${A}" \\\n'
        "    && true\n"
        "COPY one two ./\n"
        "from debian:12\n"
        "ARG VERSION\n"
        'LABEL a.b="x $VERSION" \\\n'
        "      c=${NOTHING:-d}${VERSION:+e}\n"
        "COPY --from=build /opt/x /opt/x\n"
        "EXPOSE 80 81/tcp\n"
        "USER 1:2\n"
        'CMD ["a", "b c"]\n',
        {"VERSION": "9"},
        PATH,
    )
    assert (first.base, first.name, second.base) == ("debian:12", "build", "debian:12")
    assert first.environment == {"PATH": "/opt/bin:/usr/bin:/bin", "A": "1", "B": "9"}
    folder, run, copy = first.steps
    assert folder == Folder(7, "/src")
    assert isinstance(run, Run)
    assert isinstance(run.command, str)
    assert run.command.split() == 'make && echo "${A}" && true'.split()
    assert run.environment == first.environment | {"BASE": "debian:12", "VERSION": "9"}
    assert (run.folder, run.user) == ("/src", "root")
    assert copy == Copy(13, ("one", "two"), "/src/", None)
    assert second.labels == {"a.b": "x 9", "c": "de"}
    assert second.steps == [Copy(18, ("/opt/x",), "/opt/x", 0)]
    assert (second.exposed, second.user, second.command) == ([80, 81], "1:2", ("a", "b c"))
    assert second.environment == PATH


def test_a_stage_on_a_stage_has_its_environment() -> None:
    assert one("FROM a AS b\nENV X=1\nWORKDIR /w\nFROM b\nWORKDIR v\n").folder == "/w/v"
    assert read("FROM a AS b\nENV X=1\nFROM b\n", {}, {})[1].environment == {"X": "1"}
    assert read("FROM a AS b\nFROM b\n", {}, {})[1].base == 0


def test_health_and_stop_signal() -> None:
    stage = one(
        'FROM a\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s --retries=2 \\\n  CMD curl "$X" || false\n'
    )
    assert (stage.stop_signal, stage.health_options) == ("SIGINT", {"interval": "5s", "retries": "2"})
    assert stage.health == 'curl "$X" || false'
    assert one('FROM a\nHEALTHCHECK CMD ["true"]\n').health == ("true",)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("RUN x\n", 1),
        ("FROM\n", 1),
        ("FROM --platform=linux/arm64 a\n", 1),
        ("FROM $NOTHING\n", 1),
        ("FROM a\nADD x /\n", 2),
        ("FROM a\nVOLUME /x\n", 2),
        ("FROM a\nSHELL ['x']\n", 2),
        ("FROM a\nONBUILD RUN x\n", 2),
        ("FROM a\nread x\n", 2),
        ("FROM a\n_READ x\n", 2),
        ("FROM a\nRUN --mount=type=cache,target=/x y\n", 2),
        ("FROM a\nRUN <<EOF\nx\nEOF\n", 2),
        ("FROM a\nRUN\n", 2),
        ('FROM a\nRUN ["x", 1]\n', 2),
        ("FROM a\nRUN x \\\n", 2),
        ("FROM a\n\n# b\nENV A\n", 4),
        ("FROM a\nENV A='$B'\n", 2),
        ("FROM a\nENV A=\\$B\n", 2),
        ("FROM a\nENV A=${B?c}\n", 2),
        ("FROM a\nCOPY x\n", 2),
        ("FROM a\nCOPY x y /z\n", 2),
        ("FROM a\nCOPY *.py /z/\n", 2),
        ("FROM a\nCOPY --chown=1 x /z\n", 2),
        ("FROM a\nCOPY --from=b x /z\n", 2),
        ('FROM a\nCOPY ["x", "/z"]\n', 2),
        ("FROM a\nHEALTHCHECK NONE\n", 2),
        ("FROM a\nHEALTHCHECK --often=1s CMD x\n", 2),
        ("FROM a\nEXPOSE 53/udp\n", 2),
        ("FROM a\nUSER a b\n", 2),
        ("# escape=`\nFROM a\n", 1),
    ],
)
def test_unsupported_syntax_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(Unreadable) as caught:
        read(text, {}, PATH)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("src/a.py", False),
        ("src/deep/b.py", False),
        ("src/__pycache__/a.pyc", True),
        ("src/deep/__pycache__/a.pyc", True),
        ("src.py", True),
        ("other/src/a.py", True),
        (".env", True),
    ],
)
def test_a_path_is_ignored_by_the_last_pattern_that_fits(path: str, ignored: bool) -> None:
    assert Ignore("*\n# all but\n!src\n**/__pycache__\n")(Path(path)) is ignored


def test_copy_as_docker_does_it(tmp_path: Path) -> None:
    context, root = tmp_path / "context", tmp_path / "root"
    for name in ("src/deep/b.py", "src/__pycache__/a.pyc", "x", "secret"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("*\n!src\n!x\n**/__pycache__\n")
    root.mkdir()
    for step in (
        Copy(1, ("src",), "/w/src", None),
        Copy(2, ("x", "src"), "/v/", None),
        Copy(3, ("x",), "/y", None),
    ):
        copy_context(context, step, root)
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        "w/src/deep/b.py", "v/x", "v/deep/b.py", "y",
    }  # fmt: skip
    for hidden in ("secret", "missing"):
        with pytest.raises(FileNotFoundError):
            copy_context(context, Copy(4, (hidden,), "/z", None), root)
