"""The verdict: whether peers can connect, and what is wrong, in words.

    Facts (readiness, keys, backplane, problems, counts) -> checks -> Verdict -> status line, `/logs`, `/ready`, dashboard

Pure: nothing is probed, logged or timed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from attrs import Factory, asdict, frozen
from msgspec import Struct

from viewport_relay.observe.problems import Problem
from viewport_relay.observe.recent import SPAN
from viewport_relay.reasons import Reason

State = Literal["good", "warn", "bad", "off"]

#: Seconds for which a fault counts as going on after it was last seen, if no peer joined since.
FRESH: Final = 600.0

#: Seconds by which clocks may differ without a warning. `Date` headers have a resolution of one second.
CLOCK_TOLERANCE: Final = 5.0

#: Seconds by which clocks may differ before tokens are refused for it: the tolerance of the token check, by default.
CLOCK_SKEW: Final = 30.0

#: Refusals that a wrong clock causes.
_BY_CLOCK: Final = (Reason.JWT_EXPIRED, Reason.JWT_NOT_YET_VALID)

#: Seconds since the last success after which the platform counts as untested.
UNTESTED: Final = 60.0

_PLATFORM_FAULTS: Final = (
    Reason.PLATFORM_UNREACHABLE,
    Reason.VALIDATION_RESPONSE_INVALID,
    Reason.ADMISSION_RESPONSE_TOO_LARGE,
)

#: Peers that must be refused for their tokens, and none admitted, before the verdict is "bad".
_ALL_REFUSED: Final = 5

#: Attempts that must be refused, more than are admitted, before the verdict is "warn".
_MOST_REFUSED: Final = 3

#: Refusals that any scanner of the internet causes.
_SCANNERS: Final = frozenset(
    {
        Reason.NOT_FOUND, Reason.UPGRADE_REQUIRED, Reason.UPGRADE_MALFORMED, Reason.QUERY_INVALID, Reason.TOKEN_MISSING,
        Reason.RELAY_SHUTTING_DOWN,
    }
)  # fmt: skip


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


@frozen
class Verdict:
    """`headline` answers "can daemons connect?", `counts` says what happened lately, `checks` explain it."""

    state: State
    headline: str
    counts: str
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def verdict_of(facts: Facts) -> Verdict:
    """The verdict that these facts give."""
    found = _keys(facts), _platform(facts), _internal_key(facts), _clock(facts), _backplane(facts)
    return Verdict(*_headline(facts, found), counts(facts), found)


def _headline(facts: Facts, found: tuple[Check, ...]) -> tuple[State, str]:
    """The state, and the first sentence that fits."""
    bad = next((check for check in found if check.state == "bad"), None)
    warned = next((check for check in found if check.state == "warn"), None)
    refused = [row for row in facts.problems if row.event == "refuse"]
    for_tokens = [row for row in refused if row.reason is not None and row.reason.entry.close]
    no_scanners = [row for row in refused if row.reason not in _SCANNERS]
    main = None if facts.admitted else _mostly(for_tokens, _ALL_REFUSED)
    most = _mostly(no_scanners, max(_MOST_REFUSED, facts.admitted + 1))
    worst = next(iter(facts.problems), None)
    condition = facts.condition
    if not condition.ready:
        keys = found[0]
        about_keys = "JWKS" in condition.why and condition.why not in Reason.__members__
        why = keys.text if keys.state == "bad" and about_keys else _sentence(condition.why)
        return "bad", f"Daemons cannot connect: {why}"
    if bad is not None:
        return "bad", f"Daemons cannot connect: {bad.text}"
    if main is not None:
        by_clock = main.reason in _BY_CLOCK and abs(condition.clock_offset or 0.0) > CLOCK_SKEW
        why = found[3].text.rstrip(".") if by_clock else main.text
        return "bad", f"No peer gets in: {facts.refused} were refused, mostly {main.code} ({why})."
    if warned is not None:
        return "warn", f"Daemons can connect, but {warned.text}"
    if worst is not None and worst.level == "error":
        return "warn", f"Daemons can connect, but {worst.code}: {worst.text}."
    if most is not None:
        return "warn", f"Daemons can connect, but most attempts are refused: {most.code} ({most.text})."
    return "good", "Daemons can connect."


def ready_in_words(condition: Condition) -> str:
    """The text of `/ready`, which is open to all: which peers can be admitted, and why not. No address, id or URL is in it."""
    ready, why = condition.ready, condition.why
    no_keys = not ready and condition.jwks_age is None
    reason = Reason.__members__.get(why) or (Reason.JWKS_UNREACHABLE if no_keys else None)
    if not ready or (reason is not None and reason.entry.status):  # one that upgrades are refused for
        newest = "Tokens can be checked, but the newest one was not admitted"
        fix = f" To do: {reason.entry.fix}." if reason is not None else ""
        return f"{newest if ready else 'No peer can be admitted'}: {_sentence(why)}{fix}"
    return f"Peers with a valid token can be admitted{f', but: {_sentence(why)}' if why else '.'}"


# -- words ---------------------------------------------------------------------------------------------------


def counts(facts: Facts) -> str:
    """Numbers of peers admitted and refused lately, with reasons, and of those connected."""
    refused = [row for row in facts.problems if row.event == "refuse" and row.lately]
    codes = ", ".join(f"{row.code} {row.lately}" for row in refused[:4])
    connected = ", ".join(
        f"{number} {role.removeprefix('workspace-')}{'' if number == 1 else 's'}"
        for role, number in facts.connections.items()
    )
    said = f"{facts.admitted} admitted, {facts.refused} refused in {round(SPAN / 60)} min"
    return said + (f" ({codes})" if codes else "") + (f"; connected: {connected}" if connected else "")


def _sentence(why: str) -> str:
    reason = Reason.__members__.get(why)
    return f"{reason.text}." if reason is not None else (why.rstrip(".") or "not ready") + "."


def _mostly(refused: list[Problem], least: int) -> Problem | None:
    """The main reason of refusals, when there were at least `least` lately."""
    if sum(row.lately for row in refused) < least:
        return None
    return max(refused, key=lambda row: row.lately)


# -- checks --------------------------------------------------------------------------------------------------


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


def _keys(facts: Facts) -> Check:
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


def _platform(facts: Facts) -> Check:
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


def _internal_key(facts: Facts) -> Check:
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


def _clock(facts: Facts) -> Check:
    name, offset = "Clock", facts.condition.clock_offset
    if offset is None:
        return Check(name, "off", "Not compared with the platform's yet.")
    if abs(offset) < CLOCK_TOLERANCE:
        return Check(name, "good", "It agrees with the platform's.")
    way = "ahead of" if offset > 0 else "behind"
    text = f"this machine's clock is {ago(abs(offset))} {way} the platform's."
    return Check(name, "warn", text, "synchronise the clocks of relay and platform (chrony, NTP)")


def _backplane(facts: Facts) -> Check:
    backplane = facts.condition.backplane
    mode = str(backplane.get("mode", "single"))
    if mode == "single":
        return Check("Backplane", "off", "One relay, none needed.")
    if backplane.get("up") is False:
        code = backplane.get("reason")
        reason = Reason[code] if isinstance(code, str) else Reason.BACKPLANE_UNREACHABLE
        does = "refuses what the relay needs" if reason is Reason.BACKPLANE_REFUSED else "does not answer"
        said = f"the backplane ({mode}) {does}{_detail(facts, reason)}"
        text = f"{said}: peers here go on, other relays cannot reach them."
        return Check("Backplane", "warn", text, _fix(facts, reason))
    return Check("Backplane", "good", f"The backplane ({mode}) answers.")
