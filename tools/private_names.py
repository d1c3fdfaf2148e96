"""Private names of dependencies that the relay uses: attributes, overridden methods, modules.

    python tools/private_names.py        prints one name a line, with the modules that use it

A name is private if it begins with an underscore and is none of Python's own. The table of docs/topics/architecture.md gives each name a reason
and the test that fails when the dependency changes it; `tests/unit/test_private_names.py` keeps the table complete.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import arrows

OURS = "viewport_relay"

#: Packages whose classes the relay extends.
DEPENDENCIES = {"twisted", "autobahn", "prometheus_client", "treq", "jwt"}


#: Public methods of named tuples.
PUBLIC = {"_replace", "_asdict", "_fields"}


def _private(name: str) -> bool:
    if name.startswith("__"):
        return name.startswith("__automat_")  # the others are Python's
    return name.startswith("_") and name not in PUBLIC


def _defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a module of the relay defines: functions, classes, variables, attributes, slots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value  # a name in __slots__


def _accessed() -> Iterator[tuple[str, str]]:
    """(module, name) of each private attribute of another object that the module does not define itself."""
    for module, path in arrows.modules().items():
        tree = ast.parse(path.read_text("utf-8"))
        ours = set(_defined(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not _private(node.attr) or node.attr in ours:
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                yield module, node.attr


def _inherited() -> Iterator[tuple[str, str]]:
    """(module, name) of each private member that a class of the relay shares with a foreign base: used, set or
    redefined."""
    for name in arrows.modules():
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(f"{OURS}.{name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ != module.__name__:
                continue
            bases = [base for base in kind.__mro__[1:] if base.__module__.split(".")[0] in DEPENDENCIES]
            theirs = "".join(map(inspect.getsource, bases))
            for member in set(re.findall(r"\b(?:self|cls)\.(_[a-z]\w*)", inspect.getsource(kind))) | set(
                vars(kind)
            ):
                if _private(member) and re.search(rf"\bself\.{member}\b|def {member}\(", theirs):
                    yield name, member


def _modules() -> Iterator[tuple[str, str]]:
    """(module, name) of each private module or name imported from a dependency."""
    for name, path in arrows.modules().items():
        for full in arrows.imported(path):
            parts = full.split(".")
            if parts[0] not in {OURS, "__future__", "_typeshed"} and any(map(_private, parts)):
                yield name, parts[0] if _private(parts[0]) else full


def used() -> Mapping[str, frozenset[str]]:
    """private name -> the modules of the relay that use it."""
    found = defaultdict(set)
    for source in (_accessed(), _inherited(), _modules()):
        for module, name in source:
            found[name].add(module)
    return {name: frozenset(modules) for name, modules in sorted(found.items())}


if __name__ == "__main__":
    for name, where in used().items():
        print(f"{name}: {', '.join(sorted(where))}")
