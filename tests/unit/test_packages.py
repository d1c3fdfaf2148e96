"""setup.cfg lists each package by name; the list equals the tree."""

from __future__ import annotations

import configparser
from pathlib import Path

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
