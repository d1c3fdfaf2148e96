"""A worker's snapshot: made by the worker as the answer to a poll, added up by the parent for the admin endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import fields
from prometheus_client import Histogram

from viewport_relay.observe.counters import Counters, sample_key
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason
from viewport_relay.service.relay import RelayState
from viewport_relay.workers.messages import Snapshot

#: Key of all histograms' values in the serialised counters.
_HISTOGRAMS = "elsewhere"
_NAMES = tuple(
    field.name
    for field in fields(Counters)
    if field.name != _HISTOGRAMS and field.type not in (Histogram, "Histogram")
)


def snapshot(state: RelayState, counters: Counters, log: EventLog, lost: int) -> Snapshot:
    """The answer to a poll. `lost`: log entries that were not sent."""
    now = log.now()
    return Snapshot(
        condition=state.condition(),
        connections=dict(state.connections()),
        targets=list(state.targets()),
        counters=serialised(counters),
        folds=list(log.folds()),
        last_seen=[
            (event, None if reason is None else reason.code, at)
            for (event, reason), at in log.last_seen.items()
        ],
        log_entries_lost=lost,
        problems=log.problems.rows(now),
        recent=log.problems.recent(now),
        folded=log.folded.report(),
    )


def serialised(counters: Counters) -> dict[str, Any]:
    """Serialise counters as JSON values."""
    made = {name: _serialised(getattr(counters, name)) for name in _NAMES}
    samples = [sample for metric in counters.latencies() for sample in metric.samples if sample.value]
    made[_HISTOGRAMS] = [[sample_key(sample), sample.value] for sample in samples]
    return made


def _serialised(value: Any) -> Any:
    if isinstance(value, Counter):
        return {key.code if isinstance(key, Reason) else key: number for key, number in value.items()}
    return value


def add_up(into: Counters, parts: Iterable[Mapping[str, Any]]) -> None:
    """Set `into` to the sum of `parts` (results of `serialised`). `into` stays the same object."""
    empty = Counters()
    for field in fields(Counters):
        setattr(into, field.name, getattr(empty, field.name))
    for part in parts:
        for name in _NAMES:
            _add(into, name, part.get(name))
        for (name, labels), value in part.get(_HISTOGRAMS, ()):
            key = name, tuple((label, text) for label, text in labels)
            into.elsewhere[key] = into.elsewhere.get(key, 0.0) + value


def _add(into: Counters, name: str, more: Any) -> None:
    value = getattr(into, name)
    if more is None:
        return
    if isinstance(value, Counter):
        for key, number in more.items():
            value[Reason.__members__.get(key, key)] += number
    else:
        setattr(into, name, value + more)


def bring_up_to_date(
    shown: Counters,
    own: Counters,
    retired: list[Mapping[str, Any]],
    snapshots: Sequence[Snapshot],
    log: EventLog,
) -> None:
    """Update `shown` and the log from the workers' last snapshots.

    `own` are the parent's counters, `retired` the serialised counters of worker processes that have ended.
    """
    # One sum for all ended processes, however many there were.
    if len(retired) > 1:
        together = Counters()
        add_up(together, retired)
        retired[:] = [serialised(together)]
    add_up(shown, [serialised(own), *retired, *(snapshot.counters for snapshot in snapshots)])
    log.lost_elsewhere = sum(snapshot.log_entries_lost for snapshot in snapshots)
    log.folds_elsewhere = [fold for snapshot in snapshots for fold in snapshot.folds]
    for snapshot in snapshots:
        log.folded.take_over(snapshot.folded)
    log.problems.elsewhere = [row for snapshot in snapshots for row in snapshot.problems]
    admitted, refused = zip((0, 0), *(snapshot.recent for snapshot in snapshots), strict=True)
    log.problems.recent_elsewhere = sum(admitted), sum(refused)
    now = log.now()
    for snapshot in snapshots:
        for event, code, at in snapshot.last_seen:
            key = event, Reason.__members__.get(code or "")
            # A snapshot from before the wall clock was set back holds times of the future.
            log.last_seen[key] = max(min(at, now), log.last_seen.get(key, at))
