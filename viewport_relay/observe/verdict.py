"""Can peers connect, and what is wrong: the answer in words, from facts that the relay has anyway.

    Facts (readiness, keys, backplane, problems, counts) -> judge -> Verdict -> status line, `/logs`, `/ready`, dashboard

Pure: nothing is probed, logged or timed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from attrs import Factory, asdict, frozen

from viewport_relay.observe.events import EVENTS
from viewport_relay.observe.problems import SPAN, Problem
from viewport_relay.reasons import Reason

State = Literal["good", "warn", "bad", "off"]

#: Seconds for which a fault counts as going on after it was last seen, if no peer joined since.
FRESH: Final = 600.0

#: Peers that must be refused for their tokens, and none admitted, before the verdict is "bad".
_ALL_REFUSED: Final = 5

#: Attempts that must be refused, more than are admitted, before the verdict is "warn".
_MOST_REFUSED: Final = 3

#: Refusals that any scanner of the internet causes.
_STRANGERS: Final = frozenset(
    {
        Reason.NOT_FOUND, Reason.UPGRADE_REQUIRED, Reason.UPGRADE_MALFORMED, Reason.QUERY_INVALID, Reason.TOKEN_MISSING,
        Reason.RELAY_SHUTTING_DOWN,
    }
)  # fmt: skip

#: Seconds by which clocks may differ before it is said. `Date` headers have a resolution of one second.
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


@frozen
class Verdict:
    """`headline` answers "can daemons connect?", `counts` says what happened lately, `checks` are the grounds."""

    state: State
    headline: str
    checks: tuple[Check, ...]
    counts: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(facts: Facts) -> Verdict:
    """Work out the verdict."""
    checks = (_keys(facts), _platform(facts), _internal_key(facts), _clock(facts), _backplane(facts))
    counted = counts(facts)
    bad = [check for check in checks if check.state == "bad"]
    warned = [check for check in checks if check.state == "warn"]
    everybody = _everybody_refused(facts)
    if not facts.ready:
        keys = checks[0]
        about_keys = "JWKS" in facts.why and facts.why not in Reason.__members__
        why = keys.text if keys.state == "bad" and about_keys else _sentence(facts.why)
        return Verdict("bad", f"Daemons cannot connect: {why}", checks, counted)
    if bad:
        return Verdict("bad", f"Daemons cannot connect: {bad[0].text}", checks, counted)
    if everybody is not None:
        headline = (
            f"No peer gets in: {facts.refused} were refused, mostly {everybody.code} ({everybody.text})."
        )
        return Verdict("bad", headline, checks, counted)
    if warned:
        return Verdict("warn", f"Daemons can connect, but {warned[0].text}", checks, counted)
    worst = next(iter(facts.problems), None)
    if worst is not None and worst.level == "error":
        return Verdict("warn", f"Daemons can connect, but {worst.code}: {worst.text}.", checks, counted)
    most = _most_refused(facts)
    if most is not None:
        headline = f"Daemons can connect, but most attempts are refused: {most.code} ({most.text})."
        return Verdict("warn", headline, checks, counted)
    return Verdict("good", "Daemons can connect.", checks, counted)


def ready_in_words(ready: bool, why: str, *, has_keys: bool) -> str:
    """Which peers can be admitted, and why not. `/ready` is open to all: no address, id or URL is in the text."""
    if not ready:
        reason = Reason.__members__.get(why) or (None if has_keys else Reason.JWKS_UNREACHABLE)
        fix = f" To do: {reason.entry.fix}." if reason is not None else ""
        return f"No peer can be admitted: {_sentence(why)}{fix}"
    return f"Peers with a valid token can be admitted{f', but: {_sentence(why)}' if why else '.'}"


# -- words ---------------------------------------------------------------------------------------------------


def ago(seconds: float) -> str:
    """A time span in words."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    if seconds < 172_800:
        return f"{round(seconds / 3600)} h"
    return f"{round(seconds / 86_400)} days"


def counts(facts: Facts) -> str:
    """Numbers of peers admitted and refused lately, with reasons, and of those connected."""
    refused = [row for row in facts.problems if row.sample.event == "refuse" and row.lately]
    codes = ", ".join(f"{row.code} {row.lately}" for row in refused[:4])
    connected = ", ".join(
        f"{number} {_ROLES.get(role, role)}{'' if number == 1 else 's'}"
        for role, number in facts.connections.items()
    )
    said = f"{facts.admitted} admitted, {facts.refused} refused in {round(SPAN / 60)} min"
    return said + (f" ({codes})" if codes else "") + (f"; connected: {connected}" if connected else "")


def cause_of(problem: Problem) -> str:
    """What causes a problem: the reason's words, else what the event tells."""
    if problem.reason is not None:
        return problem.reason.entry.cause
    event = EVENTS.get(problem.code)
    return event.says if event is not None else ""


def fix_of(problem: Problem) -> str:
    """What to do: what this case calls for, else what the reason or event calls for in general."""
    event = EVENTS.get(problem.code)
    return problem.fix or (event.fix if event is not None else "")


def example_of(problem: Problem) -> str:
    """One event of the problem in words."""
    sample = problem.sample
    peer = " ".join(
        f"{name}={value}"
        for name, value in (
            ("role", sample.role),
            ("workspace", sample.workspace_id),
            ("target", sample.runtime_target_id),
            ("ip", sample.ip),
            ("connection", sample.connection_id),
        )
        if value
    )
    usual = problem.reason is not None and problem.text == problem.reason.text
    what = sample.detail or ("" if usual else problem.text)
    return ": ".join(part for part in (peer, what) if part) or problem.text


_ROLES: Final = {"workspace-daemon": "daemon"}


def _sentence(why: str) -> str:
    reason = Reason.__members__.get(why)
    return f"{reason.text}." if reason is not None else (why.rstrip(".") or "not ready") + "."


# -- checks --------------------------------------------------------------------------------------------------


def _everybody_refused(facts: Facts) -> Problem | None:
    """The main reason when no peer was admitted lately and tokens of several attempts were refused."""
    if facts.admitted:
        return None
    tokens = [
        row for row in facts.problems
        if row.sample.event == "refuse" and row.reason is not None and row.reason.entry.close
    ]  # fmt: skip
    if sum(row.lately for row in tokens) < _ALL_REFUSED:
        return None
    return max(tokens, key=lambda row: row.lately)


def _most_refused(facts: Facts) -> Problem | None:
    """The main reason when lately more attempts were refused than admitted. Strangers' attempts do not count."""
    refused = [row for row in facts.problems if row.sample.event == "refuse" and row.reason not in _STRANGERS]
    number = sum(row.lately for row in refused)
    if number < _MOST_REFUSED or number <= facts.admitted:
        return None
    return max(refused, key=lambda row: row.lately)


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
