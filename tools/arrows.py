"""Import rules of `viewport_relay`: which room may import which, checked module by module.

    python tools/arrows.py            prints the imports that break a rule, and an import circle

A room is a package or a top-level module of `viewport_relay`. Every import counts: at the top of a module, inside a
function, under `if TYPE_CHECKING`. `tests/unit/test_arrows.py` keeps the rules; `make docs` draws the diagram of
docs/topics/architecture.md.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "viewport_relay"

#: Small modules that import no other module of the relay; every room but `protocol` may use them.
TOOLS = frozenset(
    {"deferredcache", "timelimit", "notify", "descriptors", "signals", "collector", "hugepages", "windows"}
)

_BASE = frozenset({"reasons"})
_LOW = _BASE | {"protocol", "config", "observe", "deferredcache", "timelimit", "windows"}
_WIRE = _LOW | {"admission"}
_SESSIONS = _WIRE | {"wire", "routing", "noise", "backplane.interface"}
_SERVICE = _SESSIONS | {"sessions", "backplane", "admin"} | TOOLS

#: room -> what its modules may import: rooms, or single modules as `room.module`. A room may always import itself.
ALLOWED: Mapping[str, frozenset[str]] = {
    "reasons": frozenset(),
    **dict.fromkeys(sorted(TOOLS), frozenset[str]()),
    "protocol": _BASE,
    "config": _BASE,
    "observe": _BASE,
    "admission": _LOW,
    "noise": _LOW,
    "routing": _BASE | {"protocol", "windows"},
    "wire": _WIRE,
    "sessions": _SESSIONS,
    "backplane": _LOW | {"admission.http", "admission.httpcall", "admission.httpwords", "admission.tls"},
    "admin": _BASE | {"routing.views", "observe", "config"},
    "service": _SERVICE,
    "workers": _SERVICE | {"service"},
    "tap": _SERVICE | {"service", "workers", "devplatform"},  # --dev starts the dev platform
    # Not part of the relay. The reference peers and the dev platform share none of its code, so that they cannot
    # share a bug of the protocol. `descriptors` knows nothing of it.
    "peer": frozenset(),
    "devplatform": frozenset({"descriptors"}),
    "cli": _SERVICE | {"peer", "devplatform"},
}


def name_of(path: Path) -> str:
    """Dotted name of a module below `viewport_relay`, as `wire.upgrade`; of a package, the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> Mapping[str, Path]:
    """name -> file of every module of the relay, except the package's own `__init__`."""
    return {name: path for path in sorted(PACKAGE.rglob("*.py")) if (name := name_of(path))}


def imported(path: Path) -> set[str]:
    """Full dotted names that a module imports, at any place."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: relative import")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _module(name: str) -> str | None:
    """The relay's module that a dotted name belongs to; None for other packages and the version."""
    head, _, rest = name.partition(".")
    if head != "viewport_relay" or not rest:
        return None
    while rest and rest not in modules():
        rest = rest.rpartition(".")[0]
    return rest or None


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """module -> the modules of the relay that it imports."""
    return {
        name: frozenset(there for full in imported(path) if (there := _module(full)) and there != name)
        for name, path in modules().items()
    }


def room(module: str) -> str:
    return module.partition(".")[0]


def may_import(here: str, there: str) -> bool:
    """Whether the rules let module `here` import module `there`."""
    allowed = ALLOWED.get(room(here), frozenset())
    return room(here) == room(there) or room(there) in allowed or there in allowed


def violations() -> set[str]:
    """`here -> there` for each import that breaks a rule."""
    return {
        f"{here} -> {there}"
        for here, targets in graph().items()
        for there in targets
        if not may_import(here, there)
    }


def circle() -> list[str]:
    """Modules of an import circle, the first one repeated at the end; empty if there is no circle."""
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


# -- the diagram -------------------------------------------------------------------------------------------

#: Rooms that the diagram omits: small modules, and rooms that are not part of the relay.
_NOT_DRAWN = TOOLS | {"cli", "peer", "devplatform", "config", "reasons"}


def _reduced(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The edges without those that a longer path implies."""

    def reach(start: str, seen: set[str]) -> set[str]:
        for there in edges[start] - seen:
            seen.add(there)
            reach(there, seen)
        return seen

    return {
        here: {t for t in there if not any(t in reach(other, set()) for other in there - {t})}
        for here, there in edges.items()
    }


def diagram() -> str:
    """A Mermaid flow chart of the rooms and their imports, without imports that a longer path implies."""
    drawn = sorted({room(module) for module in modules()} - _NOT_DRAWN)
    edges: dict[str, set[str]] = {name: set() for name in drawn}
    for here, targets in graph().items():
        for there in targets:
            if room(here) != room(there) and room(here) in edges and room(there) in edges:
                edges[room(here)].add(room(there))
    lines = [
        f"    {here} --> {there}" for here, targets in _reduced(edges).items() for there in sorted(targets)
    ]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"]) + "\n"


if __name__ == "__main__":
    print(*sorted(violations()), " -> ".join(circle()), sep="\n")
