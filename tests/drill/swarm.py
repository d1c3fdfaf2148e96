"""Load for drills: pairs of daemon and client that exchange messages all the time and reconnect at once, in their own thread.

    with Swarm(platform) as swarm:
        swarm.add(20, daemon=lambda n: ports[n % 5:] + ports[: n % 5], client=lambda n: ports)
        swarm.until_talking()
        swarm.mark()                   # figures count from here on
        …
        swarm.figures()

A peer tries a list of ports in turn: the same port again after a lost connection, the next one after a failed attempt. A
client runs a key exchange, then sends a request every `every` seconds and awaits the daemon's answer. Each request has one
outcome: answered, told (DAEMON_UNAVAILABLE), cut (the connection ended) or silent (no answer for `patience` seconds). After
any other outcome than answered the client runs a new key exchange. With `follow` the client follows RELAY_REDIRECT.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from tests.drill.line import Line
from tests.drill.peer import e2ee, kex_init, kex_response
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import until

#: The ports of pair n, in the order of attempts.
Route = Callable[[int], Sequence[int]]

OUTCOMES = ("answered", "told", "cut", "silent")
_BROKEN = (OSError, asyncio.IncompleteReadError)
_numbers = itertools.count(1)


class Pair:
    """The daemon and client of one workspace, with their figures. Times are of the monotonic clock, in seconds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.workspace = f"swarm-{next(_numbers)}"
        self.daemon_port = self.client_port = 0  # ports of the current connections; 0: not connected
        self.answered_at = 0.0
        self.gap = 0.0  # the longest time without an answer
        self.outcomes: Counter[str] = Counter()
        self.client_line: Line | None = None

    def answered(self, now: float) -> None:
        if self.answered_at:
            self.gap = max(self.gap, now - self.answered_at)
        self.answered_at = now

    def mark(self) -> None:
        self.gap, self.outcomes = 0.0, Counter()


class Swarm:
    """Runs the pairs. `refused` lists failed attempts, `seated` the times at which daemons were admitted (monotonic)."""

    def __init__(
        self,
        platform: FaultyPlatform,
        *,
        every: float = 0.1,
        patience: float = 1.0,
        follow: bool = True,
        pause: float = 0.05,
        size: int = 200,
    ) -> None:
        """`pause` is the time between two attempts of a peer, `size` the bytes of a request's ciphertext."""
        self.platform = platform
        self.every, self.patience, self.follow, self.pause = every, patience, follow, pause
        self.pairs: list[Pair] = []
        self.refused: list[str] = []
        self.seated: list[float] = []
        self.closes: Counter[str] = Counter()
        self.followed = 0  # redirects
        self.disorder = 0  # requests that a daemon received twice or out of order
        self._cipher = "x" * size
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    # -- for tests ---------------------------------------------------------------------------------------------

    def add(self, count: int, daemon: Route, client: Route | None) -> list[Pair]:
        """Add pairs; with `client` None, daemons only."""
        added = [Pair(len(self.pairs) + n) for n in range(count)]
        self.pairs += added
        tokens = [
            (
                self.platform.token("workspace-daemon", pair.workspace, "t"),
                self.platform.token("client", pair.workspace, "t"),
            )
            for pair in added
        ]

        async def begin() -> None:
            for n, pair in enumerate(added):
                self._begin(self._daemon(pair, tokens[n][0], daemon(pair.number)))
                if client is not None:
                    self._begin(self._client(pair, tokens[n][1], client(pair.number)))

        self._call(begin())
        return added

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.refused.append(f"the drill's own error: {error!r}")

    def mark(self) -> None:
        """Reset the figures."""
        for pair in self.pairs:
            pair.mark()
        self.refused.clear()
        self.seated.clear()
        self.closes.clear()

    def reconnect_clients(self) -> None:
        """Close the connection of every client; each reconnects, as after a reload of its page."""

        async def drop() -> None:
            for pair in self.pairs:
                if pair.client_line is not None:
                    pair.client_line.close()

        self._call(drop())

    def until_seated(self, seconds: float = 30.0) -> None:
        until(lambda: all(pair.daemon_port for pair in self.pairs), seconds, "a seat for each daemon")

    def until_talking(self, pairs: Iterable[Pair] = (), seconds: float = 30.0) -> float:
        """Wait until each pair has an answer newer than this call; returns the seconds until the last one."""
        began = time.monotonic()
        wanted = tuple(pairs) or tuple(self.pairs)
        until(
            lambda: all(pair.answered_at > began for pair in wanted),
            seconds,
            "an answer for each pair",
        )
        return max(pair.answered_at for pair in wanted) - began

    def total(self, outcome: str, pairs: Iterable[Pair] = ()) -> int:
        return sum(pair.outcomes[outcome] for pair in tuple(pairs) or self.pairs)

    def figures(self, pairs: Iterable[Pair] = ()) -> dict[str, float]:
        """Outcomes since `mark`, and the longest time of any pair without an answer."""
        wanted = tuple(pairs) or tuple(self.pairs)
        found: dict[str, float] = {outcome: self.total(outcome, wanted) for outcome in OUTCOMES}
        now = time.monotonic()
        return found | {"longest_gap": round(max(max(p.gap, now - p.answered_at) for p in wanted), 2)}

    # -- peers -------------------------------------------------------------------------------------------------

    async def _connect(self, role: str, workspace: str, token: str, ports: list[int]) -> tuple[Line, int]:
        """Connect to the first port that accepts; `ports` is rotated to start with that port."""
        while True:
            try:
                async with asyncio.timeout(10):
                    return await Line.open(ports[0], role, workspace, token), ports[0]
            except (*_BROKEN, TimeoutError) as error:
                self.refused.append(f"{role} at {ports[0]}: {error or type(error).__name__}"[:700])
            ports.append(ports.pop(0))
            await asyncio.sleep(self.pause)

    async def _daemon(self, pair: Pair, token: str, route: Sequence[int]) -> None:
        ports = list(route)
        while True:
            line, pair.daemon_port = await self._connect("workspace-daemon", pair.workspace, token, ports)
            self.seated.append(time.monotonic())
            seen: dict[str, int] = {}
            try:
                while True:
                    text = await line.receive()
                    told = json.loads(text)
                    if told["type"] == "e2ee":
                        session = told["sessionId"]
                        self.disorder += told["seq"] <= seen.get(session, 0)
                        seen[session] = told["seq"]
                        line.send(text)
                    elif told["type"] == "relay_key_exchange_init":
                        line.send(kex_response(told["requestId"], f"s-{told['requestId']}"))
            except _BROKEN as error:
                self.closes[f"daemon: {error}" if isinstance(error, ConnectionError) else "daemon: end"] += 1
            finally:
                pair.daemon_port = 0
                line.close()
            await asyncio.sleep(0)

    async def _client(self, pair: Pair, token: str, route: Sequence[int]) -> None:
        ports = list(route)
        try:
            while True:
                if pair.client_line is None:
                    connecting = self._connect("client", pair.workspace, token, ports)
                    pair.client_line, pair.client_port = await connecting
                line = pair.client_line
                try:
                    elsewhere = urlsplit(await self._talk(pair, line))
                except _BROKEN as error:
                    self.closes[
                        f"client: {error}" if isinstance(error, ConnectionError) else "client: end"
                    ] += 1
                    line.close()
                    pair.client_line, pair.client_port = None, 0
                    await asyncio.sleep(0)
                    continue
                self.followed += 1
                port = elsewhere.port or 80
                try:
                    async with asyncio.timeout(2):
                        moved = await Line.open(port, "client", pair.workspace, token, elsewhere.netloc)
                except (*_BROKEN, TimeoutError):  # the relay of the redirect is not reachable
                    await asyncio.sleep(self.pause)
                    continue
                line.close()
                pair.client_line, pair.client_port = moved, port
        finally:
            if pair.client_line is not None:
                pair.client_line.close()

    async def _talk(self, pair: Pair, line: Line) -> str:
        """Run sessions one after the other; returns the URL of a redirect. Raises the exceptions of `Line.receive`."""
        while True:
            request = f"r-{next(_numbers)}"
            outcome, said = await self._ask(pair, line, kex_init(request), request)
            if outcome == "answered":
                session = json.loads(said)["sessionId"]
                for seq in itertools.count(1):
                    asked = e2ee(session, seq, self._cipher)
                    outcome, said = await self._ask(pair, line, asked, asked)
                    if outcome != "answered":
                        break
                    await line.quiet(self.every)
            if outcome == "redirected":
                return said
            await asyncio.sleep(self.pause)

    async def _ask(self, pair: Pair, line: Line, text: str, wanted: str) -> tuple[str, str]:
        """Send a request; returns its outcome, and the answer or the URL of a redirect."""
        outcome, said = "cut", ""
        try:
            line.send(text)
            async with asyncio.timeout(self.patience):
                outcome, said = await self._answer(line, wanted)
        except TimeoutError:
            outcome = "silent"
        finally:
            if (
                outcome != "redirected"
            ):  # the bus delivers the request, but this client does not await the answer
                pair.outcomes[outcome] += 1
        if outcome == "answered":
            pair.answered(time.monotonic())
        return outcome, said

    async def _answer(self, line: Line, wanted: str) -> tuple[str, str]:
        while True:
            text = await line.receive()
            if text == wanted:
                return "answered", text
            told = json.loads(text)
            if told.get("requestId") == wanted:
                return "answered", text
            if told.get("code") == "DAEMON_UNAVAILABLE":
                return "told", ""
            if told.get("code") == "RELAY_REDIRECT" and self.follow:
                return "redirected", told["relayWsBaseUrl"]


def tenths(times: Iterable[float], began: float) -> list[int]:
    """Number of times in each tenth of a second after `began`."""
    found: Counter[int] = Counter(int((at - began) * 10) for at in times)
    return [found[n] for n in range(max(found, default=-1) + 1)]
