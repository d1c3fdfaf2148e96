"""The built sdist and wheel: content, and installation for twistd and pip.

The wheel is built from the sdist. Dependencies come from the test environment by a .pth file, because the test is
about the relay's own wheel.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.pages import version

ROOT = Path(__file__).parents[2]
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shipped() -> set[str]:
    """Files for operators, besides the code."""
    files = {"CHANGELOG.md", "SECURITY.md", *(path.name for path in ROOT.glob("requirements*.lock"))}
    for folder in ("docs", "deploy"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "secrets" not in path.parts:
                files.add(str(path.relative_to(ROOT)))
    return files


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a copy, so that the source tree gets no build folder."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    ignore = shutil.ignore_patterns(
        ".[!d]*", "__pycache__", "dropin.cache", "dist", "build", "*.egg-info", "node_modules"
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    (source / "deploy/secrets").mkdir(exist_ok=True)
    (source / "deploy/secrets/admin-token").write_text("of the release builder")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    (built,) = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, sdist, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin/python")
    run(*pip, "install", "--quiet", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    # Last in the path and as a plain folder: its .pth files (an editable install of the source) have no effect.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_wheel_holds_every_package_and_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "twisted/plugins/viewport_relay_plugin.py" in names
    assert "twisted/plugins/__init__.py" not in names  # this file would hide Twisted's own plugins
    assert "twisted/__init__.py" not in names
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "viewport_relay").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert wanted - names == set()
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def test_sdist_and_wheel_carry_documents_and_deployments(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    # The image can also be built from an unpacked sdist.
    assert (shipped() | {"Dockerfile", ".dockerignore", "Makefile", "tools/setup-venv"}) - inside == set()
    data = {name.partition("/share/doc/viewport-relay/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    assert shipped() - data == set()
    assert not [name for name in inside | data if "secrets" in name]


def test_documents_are_installed_below_the_environment(installed: Path) -> None:
    folder = installed / "share/doc/viewport-relay"
    assert (folder / "docs/how-to/troubleshooting.md").is_file()
    assert (folder / "deploy/viewport-relay.service").is_file()


def test_the_version_is_in_the_changelog_and_the_image() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0]
    assert newest == version()
    assert re.findall(r"VERSION=(\S+)", (ROOT / "Dockerfile").read_text("utf-8")) == [version()] * 2


def test_provenance_names_the_artifacts(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "provenance.json"
    run(sys.executable, ROOT / "tools/make_provenance.py", target, wheel, cwd=tmp_path)
    said = json.loads(target.read_text())
    digest = run("sha256sum", wheel, cwd=tmp_path).split()[0]
    assert said["subject"] == [{"name": wheel.name, "digest": {"sha256": digest}}]
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    dependencies = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [one.get("name") for one in dependencies[1:]] == ["requirements.lock", "requirements-build.lock"]


def test_wheel_names_its_licence_and_commands(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text or "License: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert b"viewport-relay = viewport_relay.cli.main:main" in archive.read(entry_points)


def test_twistd_lists_the_relay(installed: Path) -> None:
    listing = run(installed / "bin/python", *TWISTD, "--help", cwd=installed)
    assert "viewport-relay" in listing
    where = run(
        installed / "bin/python", "-c", "import viewport_relay; print(viewport_relay.__file__)", cwd=installed
    )
    assert where.startswith(str(installed)), "the source tree was imported, not the wheel"


def test_twistd_plugin_loads(installed: Path) -> None:
    help_text = run(installed / "bin/python", *TWISTD, "viewport-relay", "--help", cwd=installed)
    assert "RELAY_LISTEN_PORT" in help_text


def test_command_is_installed(installed: Path) -> None:
    assert "doctor" in run(installed / "bin/viewport-relay", "--help", cwd=installed)
