"""Counters of worker processes: serialised by the worker, added up by the parent for the admin endpoints."""

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


def set_to_sum(total: Counters, parts: Iterable[Mapping[str, Any]]) -> None:
    """Set `total`, which stays the same object, to the sum of serialised counters."""
    empty = Counters()
    for field in fields(Counters):
        setattr(total, field.name, getattr(empty, field.name))
    for part in parts:
        add(total, part)


def add(total: Counters, part: Mapping[str, Any]) -> None:
    """Add serialised counters to `total`."""
    for name in _NAMES:
        value, more = getattr(total, name), part[name]
        if isinstance(value, Counter):
            value.update({Reason.__members__.get(key, key): number for key, number in more.items()})
        else:
            setattr(total, name, value + more)
    for (name, labels), number in part[_HISTOGRAMS]:
        key = name, tuple((label, text) for label, text in labels)
        total.elsewhere[key] = total.elsewhere.get(key, 0.0) + number
