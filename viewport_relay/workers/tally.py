"""The counters of several processes as one: written down by workers, added up by the parent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import fields

from viewport_relay.observe.counters import Counters
from viewport_relay.observe.histogram import Histogram, admission_histogram
from viewport_relay.reasons import Reason

_NAMES = tuple(field.name for field in fields(Counters))
_BY_REASON = frozenset({"refusals", "closes", "drops", "handshakes_left"})


def written(counters: Counters) -> dict[str, Any]:
    """As JSON values."""
    return {name: _written(getattr(counters, name)) for name in _NAMES}


def _written(value: Any) -> Any:
    if isinstance(value, Histogram):
        return [list(value.counts), value.sum]
    if isinstance(value, Counter):
        return {key.code if isinstance(key, Reason) else key: number for key, number in value.items()}
    if isinstance(value, dict):
        return {key: _written(histogram) for key, histogram in value.items()}
    return value


def add_up(into: Counters, parts: Iterable[Mapping[str, Any]]) -> None:
    """Let `into` be the sum of what was `written`; the object stays the same one."""
    empty = Counters()
    for name in _NAMES:
        value = getattr(into, name)
        if isinstance(value, Histogram):
            value.counts, value.sum = [0] * len(value.counts), 0.0
        elif isinstance(value, dict):
            value.clear()
        else:
            setattr(into, name, getattr(empty, name))
    for part in parts:
        for name in _NAMES:
            _add(into, name, part.get(name))


def _add(into: Counters, name: str, more: Any) -> None:
    value = getattr(into, name)
    if more is None:
        return
    if isinstance(value, Histogram):
        _add_histogram(value, more)
    elif isinstance(value, Counter):
        for key, number in more.items():
            value[Reason[key] if name in _BY_REASON else key] += number
    elif isinstance(value, dict):
        for key, histogram in more.items():
            _add_histogram(value.setdefault(key, admission_histogram()), histogram)
    else:
        setattr(into, name, value + more)


def _add_histogram(into: Histogram, more: Any) -> None:
    counts, total = more
    into.counts = [have + new for have, new in zip(into.counts, counts, strict=True)]
    into.sum += total
