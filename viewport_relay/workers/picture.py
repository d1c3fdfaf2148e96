"""The report that a worker answers a poll with."""

from __future__ import annotations

from viewport_relay.observe.counters import Counters
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.relay import RelayState
from viewport_relay.workers.messages import Picture
from viewport_relay.workers.tally import written


def picture(
    number: int, state: RelayState, counters: Counters, log: EventLog, lost: int, now: float
) -> Picture:
    """The answer to poll `number`. `lost`: log entries that were not sent. `now`: seconds since the epoch."""
    ready, why = state.readiness()
    return Picture(
        number=number,
        ready=ready,
        why=why,
        jwks_age=state.jwks_age(),
        backplane=dict(state.backplane()),
        connections=dict(state.connections()),
        targets=list(state.targets()),
        counters=written(counters),
        folds=list(log.folds()),
        last_seen=[
            (event, None if reason is None else reason.code, at)
            for (event, reason), at in log.last_seen.items()
        ],
        log_entries_lost=lost,
        problems=log.problems.rows(now),
        recent=log.problems.recent(now),
        clock_offset=state.clock_offset(),
        platform_age=state.platform_age(),
        folded=log.folded.report(),
    )
