"""Checks of what admission depends on: keys, platform, internal key, clock, backplane; each with its state in words.

Pure functions of facts that the relay has anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from attrs import Factory, frozen

from viewport_relay.observe.problems import Problem
from viewport_relay.reasons import Reason

State = Literal["good", "warn", "bad", "off"]

#: Seconds for which a fault counts as going on after it was last seen, if no peer joined since.
FRESH: Final = 600.0

#: Seconds by which clocks may differ without a warning. `Date` headers have a resolution of one second.
CLOCK_TOLERANCE: Final = 5.0

#: Seconds since the last success after which the platform counts as untested.
UNTESTED: Final = 60.0

_PLATFORM_FAULTS: Final = (
    Reason.PLATFORM_UNREACHABLE,
    Reason.VALIDATION_RESPONSE_INVALID,
    Reason.ADMISSION_RESPONSE_TOO_LARGE,
)


@frozen
class Check:
    """One thing that admission depends on. `when` changes all the time, `text` only with the state."""

    name: str
    state: State
    text: str
    fix: str = ""
    when: str = ""


@frozen
class Facts:
    """What a verdict is worked out from. Times are seconds since the epoch, ages and offsets seconds.

    `problems` are the open ones, the worst first. `admitted` and `refused` count the last SPAN seconds. `clock_offset` is
    the relay's clock minus the platform's; `platform_age` is that of the platform's last answer. None: unknown.
    """

    now: float
    ready: bool
    why: str
    jwks_age: float | None
    jwks_ttl: float
    backplane: Mapping[str, Any]
    last_seen: Mapping[tuple[str, Reason | None], float]
    has_internal_key: bool
    problems: Sequence[Problem] = ()
    connections: Mapping[str, int] = Factory(dict)
    admitted: int = 0
    refused: int = 0
    clock_offset: float | None = None
    platform_age: float | None = None


def checks(facts: Facts) -> tuple[Check, ...]:
    """Every check; the one of the keys is the first."""
    return _keys(facts), _platform(facts), _internal_key(facts), _clock(facts), _backplane(facts)


def ago(seconds: float) -> str:
    """A time span in words."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    if seconds < 172_800:
        return f"{round(seconds / 3600)} h"
    return f"{round(seconds / 86_400)} days"


def _age(facts: Facts, event: str, reason: Reason | None = None) -> float | None:
    """How long ago an event was logged, None when never."""
    at = facts.last_seen.get((event, reason))
    return None if at is None else max(0.0, facts.now - at)


def _refused(facts: Facts, reason: Reason) -> float | None:
    """How long ago a peer was refused for the reason, None when not within FRESH."""
    age = _age(facts, "refuse", reason)
    return None if age is None or age > FRESH else age


def _joined_since(facts: Facts, seconds: float) -> bool:
    joined = _age(facts, "join")
    return joined is not None and joined < seconds


def _fix(facts: Facts, reason: Reason) -> str:
    """The fix of the open problem with this reason, which may know more than the reason."""
    return next((row.fix for row in facts.problems if row.reason is reason), reason.entry.fix)


def _detail(facts: Facts, reason: Reason) -> str:
    detail = next((row.sample.detail for row in facts.problems if row.reason is reason), "")
    return f" ({detail})" if detail else ""


def _keys(facts: Facts) -> Check:
    name, reason = "Token keys (JWKS)", Reason.JWKS_UNREACHABLE
    failed = [
        age
        for event, why in (("jwks_fetch_failed", reason), ("jwks_refetch_failed", None))
        if (age := _age(facts, event, why)) is not None
    ]
    fix = _fix(facts, reason)
    if facts.jwks_age is None:
        return Check(name, "bad", f"no key set was fetched yet{_detail(facts, reason)}.", fix)
    when = f"{ago(facts.jwks_age)} old"
    if failed and min(failed) < facts.jwks_age:
        text = "the key set cannot be fetched again; the old one still serves."
        return Check(name, "warn", text, fix, when)
    if facts.jwks_age > 2 * facts.jwks_ttl:
        return Check(name, "warn", "the key set was not fetched again in time.", fix, when)
    return Check(name, "good", "A key set is there.", when=when)


def _platform(facts: Facts) -> Check:
    name = "Platform"
    for reason in _PLATFORM_FAULTS:
        seen = _refused(facts, reason)
        if seen is None:
            continue
        when = f"last {ago(seen)} ago"
        if _joined_since(facts, seen):
            text = f"some admissions failed: {reason.text}{_detail(facts, reason)}."
            return Check(name, "warn", text, _fix(facts, reason), when)
        return Check(name, "bad", f"{reason.text}{_detail(facts, reason)}.", _fix(facts, reason), when)
    ages = [age for age in (_age(facts, "join"), facts.platform_age) if age is not None]
    if not ages:
        return Check(name, "off", "It was not asked yet: untested.")
    when = f"last success {ago(min(ages))} ago"
    if min(ages) > UNTESTED:
        return Check(name, "off", "It was not asked lately.", when=f"{when}, untested since")
    return Check(name, "good", "It answers.", when=when)


def _internal_key(facts: Facts) -> Check:
    name, reason = "Internal key", Reason.INTERNAL_KEY_MISMATCH
    seen = _refused(facts, reason)
    if seen is not None:
        state: State = "warn" if _joined_since(facts, seen) else "bad"
        text = "the platform does not accept this relay's internal key."
        return Check(name, state, text, _fix(facts, reason), f"last {ago(seen)} ago")
    if not facts.has_internal_key:
        return Check(name, "off", "None is set.")
    return Check(name, "good", "The platform does not complain.")


def _clock(facts: Facts) -> Check:
    name, offset = "Clock", facts.clock_offset
    if offset is None:
        return Check(name, "off", "Not compared with the platform's yet.")
    if abs(offset) < CLOCK_TOLERANCE:
        return Check(name, "good", "It agrees with the platform's.")
    way = "ahead of" if offset > 0 else "behind"
    text = f"this machine's clock is {ago(abs(offset))} {way} the platform's."
    return Check(name, "warn", text, "synchronise the clocks of relay and platform (chrony, NTP)")


def _backplane(facts: Facts) -> Check:
    mode = str(facts.backplane.get("mode", "single"))
    if mode == "single":
        return Check("Backplane", "off", "One relay, none needed.")
    if facts.backplane.get("up") is False:
        said = facts.backplane.get("reason")
        reason = Reason[said] if isinstance(said, str) else Reason.BACKPLANE_UNREACHABLE
        does = "refuses what the relay needs" if reason is Reason.BACKPLANE_REFUSED else "does not answer"
        text = f"the backplane ({mode}) {does}: peers here go on, other relays cannot reach them."
        return Check("Backplane", "warn", text, _fix(facts, reason))
    return Check("Backplane", "good", f"The backplane ({mode}) answers.")
