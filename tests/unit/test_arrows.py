"""Import rules between packages (`tools/arrows.py`), and rules for I/O and the global reactor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import arrows

PURE = ("routing", "noise", "protocol", "reasons")
IO = ("twisted.internet.reactor", "twisted.web", "autobahn", "treq", "hiredis", "socket", "ssl")

#: Entry points of processes, and the twistd plugin's options, which may install a reactor.
EDGES = {"tap", "cli", "devplatform", "workers.worker"}


def test_every_room_has_a_rule() -> None:
    assert {arrows.room(name) for name in arrows.modules()} - set(arrows.ALLOWED) == set()


def test_no_import_breaks_a_rule() -> None:
    assert arrows.violations() == set()


def test_no_import_cycles() -> None:
    assert arrows.circle() == []


@pytest.mark.parametrize(
    ("here", "there", "allowed"),
    [
        ("service", "wire.upgrade", True),
        ("tap", "service", True),
        ("sessions.client", "wire.connection", True),
        ("wire.connection", "sessions.client", False),
        ("wire.connection", "routing.router", False),
        ("wire.upgrade", "admission.gate", True),
        ("routing.router", "protocol.frames", True),
        ("routing.router", "admission.limits", False),
        ("sessions.remote", "backplane.interface", True),
        ("sessions.remote", "backplane.redis", False),
        ("backplane.platform", "admission.http", True),
        ("backplane.platform", "admission.gate", False),
        ("protocol.frames", "config", False),
        ("observe.logs", "config", False),
        ("wire.site", "peer.client", False),
        ("peer.client", "protocol.frames", False),
        ("tap", "devplatform.platform", True),
        ("cli.doctor", "admission.gate", True),
        ("wire.turn", "wire.outbox", True),
    ],
)
def test_which_room_may_import_which(here: str, there: str, allowed: bool) -> None:
    assert arrows.may_import(here, there) is allowed


@pytest.fixture
def relay_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `viewport_relay` package that `arrows` reads in place of the real one."""
    monkeypatch.setattr(arrows, "PACKAGE", tmp_path)
    for cached in (arrows.modules, arrows.graph):
        cached.cache_clear()
        monkeypatch.setattr(arrows, cached.__name__, cached.__wrapped__)
    return tmp_path


def test_every_form_of_import_is_checked(relay_of: Path) -> None:
    for name in ("wire", "sessions", "routing"):
        (relay_of / name).mkdir()
        (relay_of / name / "__init__.py").touch()
    (relay_of / "wire/codec.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "import viewport_relay.routing.router\n"
        "if TYPE_CHECKING:\n    from viewport_relay.sessions.client import Client\n"
        "def late():\n    from viewport_relay.sessions import remote\n"
    )
    for module in ("routing/router", "sessions/client", "sessions/remote"):
        (relay_of / f"{module}.py").touch()
    assert arrows.violations() == {
        "wire.codec -> routing.router",
        "wire.codec -> sessions.client",
        "wire.codec -> sessions.remote",
    }


def test_a_cycle_over_several_modules_is_found(relay_of: Path) -> None:
    (relay_of / "wire").mkdir()
    for here, there in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        (relay_of / f"wire/{here}.py").write_text(f"from viewport_relay.wire import {there}\n")
    (relay_of / "wire/__init__.py").touch()
    assert set(arrows.circle()) == {"wire.a", "wire.b", "wire.c"}


def test_pure_rooms_do_no_io() -> None:
    wrong = [
        f"{name} imports {full}"
        for name, path in arrows.modules().items()
        if arrows.room(name) in PURE
        for full in arrows.imported(path)
        if any(full == io or full.startswith(f"{io}.") for io in IO)
    ]
    assert wrong == []


def test_only_entry_points_import_the_global_reactor() -> None:
    wrong = [
        name
        for name, path in arrows.modules().items()
        if not {name, arrows.room(name)} & EDGES
        and any(full.startswith("twisted.internet.reactor") for full in arrows.imported(path))
    ]
    assert wrong == []
