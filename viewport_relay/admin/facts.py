"""The facts behind the verdict, read from the running relay."""

from __future__ import annotations

from collections.abc import Callable

from viewport_relay.admin.state import StateSource
from viewport_relay.config import Config
from viewport_relay.observe.checks import Facts
from viewport_relay.observe.logs import EventLog

#: Reads the facts of this moment.
ReadFacts = Callable[[], Facts]


def facts_reader(config: Config, log: EventLog, state: StateSource, now: Callable[[], float]) -> ReadFacts:
    """A function that reads the facts of the moment; `now` gives seconds since the epoch."""

    def read() -> Facts:
        at = now()
        ready, why = state.readiness()
        admitted, refused = log.problems.recent(at)
        return Facts(
            now=at,
            ready=ready,
            why=why,
            jwks_age=state.jwks_age(),
            jwks_ttl=config.jwks_cache_ttl,
            backplane=state.backplane(),
            last_seen=log.last_seen,
            has_internal_key=config.internal_key is not None,
            problems=log.problems.open(at),
            connections=state.connections(),
            admitted=admitted,
            refused=refused,
            clock_offset=state.clock_offset(),
            platform_age=state.platform_age(),
        )

    return read
