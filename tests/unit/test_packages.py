"""The lists of packages: setup.cfg names each Python package of the tree, .ci/run installs each program of the tests."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from tests.programs import PROGRAMS

ROOT = Path(__file__).parents[2]


def test_setup_cfg_names_every_package() -> None:
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    named = set(cfg["options"]["packages"].split())
    in_tree = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "viewport_relay").rglob("__init__.py")
    }
    assert named == in_tree | {"twisted.plugins"}


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "viewport_relay").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_init_file_hides_twisteds_plugins() -> None:
    assert list((ROOT / "twisted").rglob("__init__.py")) == []


def test_ci_installs_every_program_that_tests_need() -> None:
    script = (ROOT / ".ci/run").read_text()
    function = script[script.index("programs() {") : script.index("vectors() {")]
    packages = set(re.findall(r"[\w-]+", " ".join(re.findall(r"packages\+?=\(([^)]*)\)", function))))
    needed = {
        command.removeprefix("apt-get install ")
        for _, command in PROGRAMS.values()
        if command.startswith("apt-get install ")
    }
    assert needed <= packages
