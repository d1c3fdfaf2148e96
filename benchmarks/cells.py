"""Table of the cells to measure, and of the goals for their figures. This module runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

SIZES: Final = {"128 B": 128, "1 KB": 1024, "16 KB": 16_384, "256 KB": 262_144, "900 KB": 921_600}
PAIRS: Final = (1, 50)
WINDOWS: Final = (1, 16)
CONNECTIONS: Final = (10, 100, 1000, 5000)
#: Numbers of daemons and of clients for each; always 1,000 connections.
WORKSPACES: Final = ((1, 999), (10, 99), (100, 9), (500, 1))
#: Frames in flight where the number of connections or workspaces varies.
SPREAD: Final = 5
#: Connections of a crowd that send frames; the others only answer pings.
TALKING: Final = 10
#: Tokens that cached upgrades use in turn.
CACHED_TOKENS: Final = 50


@frozen
class Cell:
    """One measurement. `cost` names the figure that the goal limits."""

    name: str
    group: str  # frames | tls | links | upgrades | handshakes | idle | connections | crowd | workspaces
    mode: str  # of the load generator
    options: Mapping[str, int | str]
    cost: str
    quick: bool = False
    cold: bool = False  # upgrades: every token is new to the relay
    environment: Mapping[str, str] = field(factory=dict)
    base: str = ""  # an earlier cell; this cell's figures are divided by that cell's
    tls: str = ""  # TLS to the relay: "resumed" (session resumption) or "full" (full handshakes)


def _frames() -> list[Cell]:
    quick = {(50, "128 B", 1), (50, "1 KB", 1), (50, "16 KB", 1), (50, "256 KB", 1), (50, "900 KB", 1),
             (1, "128 B", 1), (1, "1 KB", 1), (1, "1 KB", 16)}  # fmt: skip
    return [
        Cell(
            f"frames, {pairs} {'pair' if pairs == 1 else 'pairs'}, {label}, {window} in flight",
            "frames",
            "throughput",
            {"daemons": pairs, "clients": 1, "size": size, "window": window},
            "cpu_s_per_100k",
            (pairs, label, window) in quick,
        )
        for pairs in PAIRS
        for label, size in SIZES.items()
        for window in WINDOWS
    ]


def _upgrades() -> list[Cell]:
    cells = []
    for at_once in (1, 32):
        how = "one by one" if at_once == 1 else f"{at_once} at a time"
        cached = {"at-once": at_once, "span": CACHED_TOKENS, "prime": ""}
        remember = {"RELAY_VALIDATE_CACHE_TTL": "3600"}
        cells += [
            Cell(
                f"upgrades, cached, {how}",
                "upgrades",
                "connect",
                cached,
                "cpu_ms_per_upgrade",
                True,
                False,
                remember,
            ),
            Cell(
                f"upgrades, cold, {how}",
                "upgrades",
                "connect",
                {"at-once": at_once},
                "cpu_ms_per_upgrade",
                True,
                True,
            ),
        ]
    return cells


#: Frames over TLS: pairs, size, in flight, and the goal as a multiple of the Node peer's CPU per frame.
TLS_FRAMES: Final = (
    (1, "1 KB", 1, 0.9),
    (50, "1 KB", 1, 0.7),
    (50, "1 KB", 16, 0.35),
    (50, "16 KB", 1, 0.5),
    (50, "256 KB", 1, 0.3),
)


def _tls_name(pairs: int, label: str, window: int) -> str:
    return f"tls, {pairs} {'pair' if pairs == 1 else 'pairs'}, {label}, {window} in flight"


def _tls() -> list[Cell]:
    frames = [
        Cell(
            _tls_name(pairs, label, window),
            "tls",
            "throughput",
            {"daemons": pairs, "clients": 1, "size": SIZES[label], "window": window},
            "cpu_s_per_100k",
            (pairs, label, window) == (50, "1 KB", 1),
            tls="resumed",
        )
        for pairs, label, window, _ in TLS_FRAMES
    ]
    handshakes = [
        Cell(
            f"handshakes, {kind}, 32 at a time",
            "handshakes",
            "connect",
            {"at-once": 32, "span": CACHED_TOKENS, "prime": ""},
            "cpu_ms_per_upgrade",
            environment={"RELAY_VALIDATE_CACHE_TTL": "3600"},
            tls=kind,
        )
        for kind in ("full", "resumed")
    ]
    return frames + handshakes


#: Frames over two Noise links: size of a frame, and the goal as a multiple of this relay's CPU per frame without
#: links.
LINK_FRAMES: Final = (("1 KB", 1024, 2.0), ("64 KB", 65_536, 1.8))


def _links() -> list[Cell]:
    cells = []
    for tls in ("", "resumed"):
        for label, size, _ in LINK_FRAMES:
            for window in WINDOWS:
                name = f"links, {'tls, ' if tls else ''}{label}, {window} in flight"
                for links, what in (("none", "without links"), ("both", "over two links")):
                    cells.append(
                        Cell(
                            f"{name}, {what}",
                            "links",
                            "links",
                            {"size": size, "window": window, "links": links},
                            "cpu_s_per_100k",
                            window == 16 and not tls,
                            base="" if links == "none" else f"{name}, without links",
                            tls=tls,
                        )
                    )
    return cells


def _idle() -> list[Cell]:
    # A short ping interval, so that the measurement covers several rounds.
    environment = {"RELAY_PING_INTERVAL_MS": "3000"}
    return [
        Cell(
            "idle, 1000 connections",
            "idle",
            "idle",
            {"steps": 1000},
            "kb_per_connection",
            True,
            False,
            environment,
        ),
        Cell(
            "idle, 5000 connections",
            "idle",
            "idle",
            {"steps": 5000},
            "kb_per_connection",
            False,
            False,
            environment,
        ),
    ]


def _scale() -> list[Cell]:
    some = {"size": 1024, "window": 1, "spread": SPREAD}
    by_connections = [
        Cell(
            f"{n} connections",
            "connections",
            "throughput",
            {"daemons": n // 2, "clients": 1, **some},
            "cpu_s_per_100k",
            n in (10, 1000),
        )
        for n in CONNECTIONS
    ]
    crowd = [
        Cell(
            f"{TALKING} of {n} connections talk",
            "crowd",
            "throughput",
            {"daemons": n // 2, "clients": 1, **some, "active": TALKING // 2},
            "cpu_s_per_100k",
        )
        for n in CONNECTIONS
    ]
    by_workspaces = [
        Cell(
            f"{daemons} {'workspace' if daemons == 1 else 'workspaces'}",
            "workspaces",
            "throughput",
            {"daemons": daemons, "clients": clients, **some},
            "cpu_s_per_100k",
        )
        for daemons, clients in WORKSPACES
    ]
    return by_connections + crowd + by_workspaces


CELLS: Final = (*_frames(), *_tls(), *_links(), *_upgrades(), *_idle(), *_scale())

#: Groups whose cells are compared with one another: each repetition measures all of them.
TOGETHER: Final = frozenset({"connections", "crowd", "workspaces"})


@frozen
class Goal:
    """Upper limit `most` for `figure` of this relay, divided by that of the base (or of the group's first cell).

    `absolute` limits the figure itself.
    """

    cell: str
    figure: str
    most: float
    what: str
    absolute: bool = False


def _cost_goal(cell: Cell) -> float:
    """Limit as a multiple of the Node peer's CPU per frame."""
    size, window, pairs = (int(cell.options[name]) for name in ("size", "window", "daemons"))
    if size >= SIZES["256 KB"]:
        return 0.12
    if size >= SIZES["16 KB"]:
        return 0.25
    if pairs == 1 and window == 1:
        return 0.9
    return 0.4 if size == SIZES["1 KB"] and window == 16 else 0.5


def goals(cell: Cell) -> list[Goal]:
    """Goals of a cell; empty for a cell that is only reported."""
    if cell.group == "frames":
        return [
            Goal(cell.name, cell.cost, _cost_goal(cell), "CPU per frame, of Node's"),
            Goal(cell.name, "p99_us", 1.0, "p99 round trip, of Node's"),
        ]
    if cell.group == "tls":
        most = {_tls_name(*what): goal for *what, goal in TLS_FRAMES}[cell.name]
        return [Goal(cell.name, cell.cost, most, "CPU per frame, of Node's with TLS")]
    if cell.group == "links":
        most = {size: goal for _, size, goal in LINK_FRAMES}[int(cell.options["size"])]
        return (
            [Goal(cell.name, cell.cost, most, "CPU per frame, of the same relay's without links")]
            if cell.base
            else []
        )
    if cell.group == "handshakes":
        return [Goal(cell.name, cell.cost, 1.0, "CPU per upgrade with its TLS handshake, of Node's")]
    if cell.group == "upgrades":
        if cell.cold:  # only libraries parse unauthenticated bytes and the platform's, which may cost more
            return [Goal(cell.name, cell.cost, 1.0, "CPU ms per upgrade", absolute=True)]
        most = 1.0 if cell.options["at-once"] == 1 else 0.8
        return [Goal(cell.name, cell.cost, most, "CPU per upgrade, of Node's")]
    if cell.group == "idle":
        return [Goal(cell.name, cell.cost, 0.7, "memory per idle connection, of Node's")]
    return [Goal(cell.name, cell.cost, 1.2, "CPU per frame, of the same relay's in the group's first cell")]
