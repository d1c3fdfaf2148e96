"""Counters of several processes as one: serialised by workers, added up by the parent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import fields
from prometheus_client import Histogram

from viewport_relay.observe.counters import Counters, sample_key
from viewport_relay.reasons import Reason

#: Key of all histograms' values in the serialised counters.
_HISTOGRAMS = "elsewhere"
_NAMES = tuple(
    field.name
    for field in fields(Counters)
    if field.name != _HISTOGRAMS and field.type not in (Histogram, "Histogram")
)
_BY_REASON = frozenset({"refusals", "closes", "drops", "handshakes_left"})


def written(counters: Counters) -> dict[str, Any]:
    """Serialise counters as JSON values."""
    made = {name: _written(getattr(counters, name)) for name in _NAMES}
    samples = [sample for metric in counters.latencies() for sample in metric.samples if sample.value]
    made[_HISTOGRAMS] = [[sample_key(sample), sample.value] for sample in samples]
    return made


def _written(value: Any) -> Any:
    if isinstance(value, Counter):
        return {key.code if isinstance(key, Reason) else key: number for key, number in value.items()}
    return value


def add_up(into: Counters, parts: Iterable[Mapping[str, Any]]) -> None:
    """Set `into` to the sum of `parts` (results of `written`). `into` stays the same object."""
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
            value[Reason[key] if name in _BY_REASON else key] += number
    else:
        setattr(into, name, value + more)
