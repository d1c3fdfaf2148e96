"""The built wheel, installed where nothing of the source tree is on the path: twistd and pip know the relay.

Dependencies come from the environment that runs the tests, by a .pth file: what is tested is our own wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the source tree keeps no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in ("viewport_relay", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin/python")
    run(*pip, "install", "--quiet", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    # Last in the path and as bare folder: .pth files in it (an editable install of the source) do not count.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_wheel_holds_every_package_and_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "twisted/plugins/viewport_relay_plugin.py" in names
    assert "twisted/plugins/__init__.py" not in names  # it would hide Twisted's own plugins
    assert "twisted/__init__.py" not in names
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "viewport_relay").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert wanted - names == set()
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


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
