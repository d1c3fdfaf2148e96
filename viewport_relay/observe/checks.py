"""The checks of what admission depends on: key set, platform, internal key, clock, backplane.

Pure: a check reads facts that the relay has anyway; nothing is probed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from attrs import Factory, frozen
from msgspec import Struct

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
    """The check of one part that admission depends on. `when` changes all the time, `text` only with the state."""

    name: str
    state: State
    text: str
    fix: str = ""
    when: str = ""


class Condition(Struct, frozen=True):
    """The state of what admission depends on. Ages and offsets are in seconds; None: unknown.

    `ready`: whether peers can be admitted now. `why`: why not, or what else is amiss, as a reason code or a sentence.
    `jwks_age` is that of the key set in use (None: there is none). `clock_offset` is the relay's clock minus the platform's,
    `platform_age` the age of the platform's last answer that was understood. `backplane` has `mode`, and if there are several
    relays `up` (a boolean) and what else is worth knowing.
    """

    ready: bool
    why: str
    jwks_age: float | None
    backplane: dict[str, Any]
    clock_offset: float | None = None
    platform_age: float | None = None


@frozen
class Facts:
    """The facts of which a verdict is made; the relay has them anyway. Times are seconds since the epoch.

    `problems` are the open ones, the worst first. `admitted` and `refused` count the last SPAN seconds.
    """

    now: float
    condition: Condition
    jwks_ttl: float
    last_seen: Mapping[tuple[str, Reason | None], float]
    has_internal_key: bool
    problems: Sequence[Problem] = ()
    connections: Mapping[str, int] = Factory(dict)
    admitted: int = 0
    refused: int = 0


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
    """Seconds since an event was logged, None when never."""
    at = facts.last_seen.get((event, reason))
    return None if at is None else max(0.0, facts.now - at)


def _fault(facts: Facts, name: str, reason: Reason, text: str, partly: str) -> Check | None:
    """A check that fails while peers are refused for the reason; None when no peer was refused for it within FRESH.

    It only warns, with `partly`, once a peer has joined since.
    """
    age, joined = _age(facts, "refuse", reason), _age(facts, "join")
    if age is None or age > FRESH:
        return None
    when, fix = f"last {ago(age)} ago", _fix(facts, reason)
    if joined is not None and joined < age:
        return Check(name, "warn", partly, fix, when)
    return Check(name, "bad", text, fix, when)


def _fix(facts: Facts, reason: Reason) -> str:
    """The fix of the open problem with this reason, which may know more than the reason."""
    return next((row.fix for row in facts.problems if row.reason is reason), reason.entry.fix)


def _detail(facts: Facts, reason: Reason) -> str:
    detail = next((row.detail for row in facts.problems if row.reason is reason), "")
    return f" ({detail})" if detail else ""


def keys(facts: Facts) -> Check:
    """Whether there is a key set, and whether it is fetched again."""
    name, reason = "Token keys (JWKS)", Reason.JWKS_UNREACHABLE
    fix, jwks_age = _fix(facts, reason), facts.condition.jwks_age
    if jwks_age is None:
        return Check(name, "bad", f"no key set was fetched yet{_detail(facts, reason)}.", fix)
    when = f"{ago(jwks_age)} old"
    failed = (_age(facts, "jwks_fetch_failed", reason), _age(facts, "jwks_refetch_failed"))
    if any(age is not None and age < jwks_age for age in failed):
        text = "the key set cannot be fetched again; the old one still serves."
        return Check(name, "warn", text, fix, when)
    if jwks_age > 2 * facts.jwks_ttl:
        return Check(name, "warn", "the key set was not fetched again in time.", fix, when)
    return Check(name, "good", "A key set is there.", when=when)


def platform(facts: Facts) -> Check:
    """Whether the platform answers."""
    name = "Platform"
    for reason in _PLATFORM_FAULTS:
        text = f"{reason.text}{_detail(facts, reason)}."
        fault = _fault(facts, name, reason, text, f"some admissions failed: {text}")
        if fault is not None:
            return fault
    ages = [age for age in (_age(facts, "join"), facts.condition.platform_age) if age is not None]
    if not ages:
        return Check(name, "off", "It was not asked yet: untested.")
    when = f"last success {ago(min(ages))} ago"
    if min(ages) > UNTESTED:
        return Check(name, "off", "It was not asked lately.", when=f"{when}, untested since")
    return Check(name, "good", "It answers.", when=when)


def internal_key(facts: Facts) -> Check:
    """Whether the platform accepts the internal key."""
    name, reason = "Internal key", Reason.INTERNAL_KEY_MISMATCH
    text = f"the platform does not accept this relay's internal key{_detail(facts, reason)}."
    fault = _fault(facts, name, reason, text, text)
    if fault is not None:
        return fault
    if not facts.has_internal_key:
        return Check(name, "off", "None is set.")
    age = _age(facts, "join")
    if age is None or age > UNTESTED:
        return Check(name, "off", f"No peer was admitted {'yet' if age is None else 'lately'}: untested.")
    return Check(name, "good", "The platform accepts it.")


def clock(facts: Facts) -> Check:
    """Whether this machine's clock agrees with the platform's."""
    name, offset = "Clock", facts.condition.clock_offset
    if offset is None:
        return Check(name, "off", "Not compared with the platform's yet.")
    if abs(offset) < CLOCK_TOLERANCE:
        return Check(name, "good", "It agrees with the platform's.")
    way = "ahead of" if offset > 0 else "behind"
    text = f"this machine's clock is {ago(abs(offset))} {way} the platform's."
    return Check(name, "warn", text, "synchronise the clocks of relay and platform (chrony, NTP)")


def backplane(facts: Facts) -> Check:
    """Whether the backplane answers."""
    condition = facts.condition.backplane
    mode = str(condition.get("mode", "single"))
    if mode == "single":
        return Check("Backplane", "off", "One relay, none needed.")
    if condition.get("up") is False:
        code = condition.get("reason")
        reason = Reason[code] if isinstance(code, str) else Reason.BACKPLANE_UNREACHABLE
        does = "refuses what the relay needs" if reason is Reason.BACKPLANE_REFUSED else "does not answer"
        said = f"the backplane ({mode}) {does}{_detail(facts, reason)}"
        text = f"{said}: peers here go on, other relays cannot reach them."
        return Check("Backplane", "warn", text, _fix(facts, reason))
    return Check("Backplane", "good", f"The backplane ({mode}) answers.")
