"""The arrows of the house: who may import whom, read from the source with `ast`.

tap -> workers -> service -> {wire, admin, backplane} -> {routing, noise, admission} -> {reasons, config, observe, deferredcache}.
`peer`, `devplatform` and `cli` stand beside it and use the front door; nothing in the relay imports them (the tap may
import the dev platform, which is what --dev starts).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "viewport_relay"

LAYERS = [
    {"tap"},
    {"workers"},
    {"service"},
    {"wire", "admin", "backplane"},
    {"routing", "noise", "admission"},
    {
        "reasons",
        "protocol",
        "config",
        "observe",
        "deferredcache",
        "notify",
        "descriptors",
        "signals",
        "collector",
    },
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
BESIDE = {"peer", "devplatform", "cli"}

#: Sideways imports that are meant, each with its reason. Upward ones are never.
SIDEWAYS = {
    ("routing", "admission"): "rates",
    ("routing", "noise"): "profiles",
    ("noise", "admission"): "profiles",
    ("wire", "backplane"): "frames of a client whose daemon is on another relay",
    ("admin", "wire"): "what is connected",
    ("observe", "config"): "which values are secrets",
    ("observe", "reasons"): "levels and texts",
    ("protocol", "reasons"): "a frame's refusal",
}

#: Sans-I/O: values in, decisions out.
PURE = ["routing", "noise", "protocol", "reasons.py"]
NO_IO = ("twisted.internet.reactor", "autobahn", "treq", "twisted.web", "txredisapi", "socket", "ssl")


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports; those under `if TYPE_CHECKING` do not count."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for part in node.body for child in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def modules() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py"
    )


def edges() -> Iterator[tuple[Path, str, str]]:
    for path in modules():
        for name in imports(path):
            if name.startswith("viewport_relay.") and name != "viewport_relay.__version__":
                there = name.split(".")[1]
                if there != room_of(path):
                    yield path, room_of(path), there


def test_every_room_has_its_place() -> None:
    rooms = {room_of(path) for path in modules()}
    assert rooms - set(LEVEL) - BESIDE == set()


def wrong_arrow(here: str, there: str) -> bool:
    if here in BESIDE:
        return False
    if there in BESIDE:
        return (here, there) not in {("tap", "devplatform"), ("service", "devplatform")}  # --dev
    return LEVEL[there] < LEVEL[here] or (LEVEL[there] == LEVEL[here] and (here, there) not in SIDEWAYS)


def test_arrows_point_down() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {there}"
        for path, here, there in edges()
        if wrong_arrow(here, there)
    }
    assert wrong == set()


@pytest.mark.parametrize(
    ("here", "there", "wrong"),
    [
        ("tap", "service", False),
        ("wire", "routing", False),
        ("routing", "wire", True),
        ("admission", "service", True),
        ("backplane", "admin", True),
        ("routing", "protocol", False),
        ("wire", "peer", True),
        ("tap", "devplatform", False),
        ("cli", "admission", False),
    ],
)
def test_the_rule_itself(here: str, there: str, wrong: bool) -> None:
    assert wrong_arrow(here, there) is wrong


def test_peers_know_the_wire_only_from_outside() -> None:
    """The reference peers and the dev platform check the relay; sharing its code would share its mistakes."""
    wrong = {
        f"{path.relative_to(ROOT)} imports {there}"
        for path, here, there in edges()
        if here in {"peer", "devplatform"}
    }
    assert wrong == set()


@pytest.mark.parametrize("where", PURE)
def test_no_io_in_the_core(where: str) -> None:
    target = PACKAGE / where
    paths = [target] if target.is_file() else sorted(target.rglob("*.py"))
    assert paths
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in imports(path)
        if name.startswith(NO_IO) or (name.split(".")[0] in NO_IO)
    ]
    assert wrong == []


def test_nobody_imports_the_global_reactor_but_the_edges() -> None:
    edge = {"tap", "cli", "devplatform"}
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if room_of(path) not in edge
        and path != PACKAGE / "workers" / "worker.py"  # a process begins there
        and any(name.startswith("twisted.internet.reactor") for name in imports(path))
    ]
    assert wrong == []
