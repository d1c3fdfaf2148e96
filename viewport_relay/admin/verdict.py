"""Can daemons connect right now? The answer in words, for the dashboard's banner.

It is worked out from what the relay knows anyway: its readiness, the age of its keys, when each platform fault
was last seen and when somebody last joined. Nothing is probed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import asdict, frozen

from viewport_relay.reasons import Reason

State = Literal["good", "warn", "bad", "off"]

#: A fault counts as going on for this long after it was last seen, if nobody joined since; seconds.
FRESH = 600.0

_PLATFORM_FAULTS = (
    Reason.PLATFORM_UNREACHABLE,
    Reason.VALIDATION_RESPONSE_INVALID,
    Reason.ADMISSION_RESPONSE_TOO_LARGE,
)


@frozen
class Check:
    """One thing that admission hangs on. `when` changes all the time, `text` only with the matter."""

    name: str
    state: State
    text: str
    fix: str = ""
    when: str = ""


@frozen
class Verdict:
    """The banner: a headline and what it rests on."""

    state: State
    headline: str
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@frozen
class Facts:
    """What the verdict is worked out from. Times are seconds since the epoch, ages seconds."""

    now: float
    ready: bool
    why: str
    jwks_age: float | None
    jwks_ttl: float
    backplane: Mapping[str, Any]
    last_seen: Mapping[tuple[str, Reason | None], float]
    has_internal_key: bool


def judge(facts: Facts) -> Verdict:
    """Work out the banner."""
    checks = (_keys(facts), _platform(facts), _internal_key(facts), _backplane(facts))
    bad = [check for check in checks if check.state == "bad"]
    warned = [check for check in checks if check.state == "warn"]
    if not facts.ready:
        return Verdict("bad", f"Daemons cannot connect: {_sentence(facts.why)}", checks)
    if bad:
        return Verdict("bad", f"Daemons cannot connect: {bad[0].text}", checks)
    if warned:
        return Verdict("warn", f"Daemons can connect, but {warned[0].text}", checks)
    return Verdict("good", "Daemons can connect.", checks)


def ago(seconds: float) -> str:
    """A time span in words."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"


def _sentence(why: str) -> str:
    reason = Reason.__members__.get(why)
    return f"{reason.text}." if reason is not None else (why.rstrip(".") or "not ready") + "."


def _age(facts: Facts, event: str, reason: Reason | None = None) -> float | None:
    """How long ago an event was logged, None when never."""
    at = facts.last_seen.get((event, reason))
    return None if at is None else max(0.0, facts.now - at)


def _refused(facts: Facts, reason: Reason) -> float | None:
    """How long ago somebody was refused for it, None when not lately."""
    age = _age(facts, "refuse", reason)
    return None if age is None or age > FRESH else age


def _joined_since(facts: Facts, seconds: float) -> bool:
    joined = _age(facts, "join")
    return joined is not None and joined < seconds


def _keys(facts: Facts) -> Check:
    name, reason = "Token keys (JWKS)", Reason.JWKS_UNREACHABLE
    failed = [
        age
        for event, why in (("jwks_fetch_failed", reason), ("jwks_refetch_failed", None))
        if (age := _age(facts, event, why)) is not None
    ]
    if facts.jwks_age is None:
        return Check(name, "bad", "no key set was fetched yet.", reason.entry.fix)
    when = f"{ago(facts.jwks_age)} old"
    if failed and min(failed) < facts.jwks_age:
        text = "the key set cannot be fetched again; the old one still serves."
        return Check(name, "warn", text, reason.entry.fix, when)
    if facts.jwks_age > 2 * facts.jwks_ttl:
        return Check(name, "warn", "the key set was not fetched again in time.", reason.entry.fix, when)
    return Check(name, "good", "A key set is there.", when=when)


def _platform(facts: Facts) -> Check:
    name = "Platform"
    for reason in _PLATFORM_FAULTS:
        seen = _refused(facts, reason)
        if seen is None:
            continue
        when = f"last {ago(seen)} ago"
        if _joined_since(facts, seen):
            return Check(name, "warn", f"some admissions failed: {reason.text}.", reason.entry.fix, when)
        return Check(name, "bad", f"{reason.text}.", reason.entry.fix, when)
    joined = _age(facts, "join")
    if joined is None:
        return Check(name, "off", "Nobody was admitted yet.")
    return Check(name, "good", "It admits peers.", when=f"last {ago(joined)} ago")


def _internal_key(facts: Facts) -> Check:
    name, reason = "Internal key", Reason.INTERNAL_KEY_MISMATCH
    seen = _refused(facts, reason)
    if seen is not None:
        state: State = "warn" if _joined_since(facts, seen) else "bad"
        text = "the platform does not accept this relay's internal key."
        return Check(name, state, text, reason.entry.fix, f"last {ago(seen)} ago")
    if not facts.has_internal_key:
        return Check(name, "off", "None is set.")
    return Check(name, "good", "The platform does not complain.")


def _backplane(facts: Facts) -> Check:
    mode = str(facts.backplane.get("mode", "single"))
    if mode == "single":
        return Check("Backplane", "off", "One relay, none needed.")
    if facts.backplane.get("up") is False:
        text = f"the backplane ({mode}) does not answer: peers here go on, other relays cannot reach them."
        return Check("Backplane", "warn", text, Reason.BACKPLANE_UNREACHABLE.entry.fix)
    return Check("Backplane", "good", f"The backplane ({mode}) answers.")
