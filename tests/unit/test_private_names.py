"""The table of private names in docs/topics/architecture.md: complete, and equal to the installed dependencies."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping

import pytest
from attrs import frozen

from tests.pages import ROOT, section
from tools import private_names

PAGE = "docs/topics/architecture.md"


@frozen
class Row:
    name: str
    of: str
    users: frozenset[str]
    why: str
    test: str


def rows() -> list[Row]:
    found = []
    for line in section(PAGE, "## Private names of dependencies").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| `"):
            name, of, users, why, test = cells
            found.append(
                Row(
                    name.strip("`"),
                    of.strip("`"),
                    frozenset(re.findall(r"`([^`]+)`", users)),
                    why,
                    test.strip("`"),
                )
            )
    return found


@pytest.fixture(scope="module")
def used() -> Mapping[str, frozenset[str]]:
    return private_names.used()


def test_the_table_is_complete_and_exact(used: Mapping[str, frozenset[str]]) -> None:
    assert {row.name: row.users for row in rows()} == dict(used)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_the_dependency_still_has_the_name(row: Row) -> None:
    if row.name.startswith(row.of):  # a module, or a name in a module
        module, _, name = row.name.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    elif row.of == "autobahn":  # a top-level module that autobahn installs
        importlib.import_module(row.name)
    else:
        source = inspect.getsource(importlib.import_module(row.of))
        assert re.search(rf"(\bself\.|\bcls\.|\bdef |^    ){row.name}\b", source, re.MULTILINE)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_the_row_has_a_reason_and_a_test(row: Row) -> None:
    assert len(row.why) > 10
    assert (ROOT / row.test).is_file()


def test_all_forms_of_use_are_found(used: Mapping[str, frozenset[str]]) -> None:
    assert "wire.reactor" in used["_poller"]  # self._poller of a base class
    assert "workers.passing" in used["_tempDataBuffer"]  # an attribute of another object
    assert "wire.tlstransport" in used["_tlsShutdownFinished"]  # an overridden method
    assert "wire.masking" in used["_nvx_xormasker"]  # a module
