"""The verdict: whether peers can connect, and what is wrong, in words.

    Facts (readiness, keys, backplane, problems, counts) -> checks -> Verdict -> status line, `/logs`, `/ready`, dashboard

Pure: nothing is probed, logged or timed here.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import asdict, frozen

from viewport_relay.observe import checks
from viewport_relay.observe.checks import Check, Condition, Facts, State
from viewport_relay.observe.problems import Problem
from viewport_relay.observe.recent import SPAN
from viewport_relay.reasons import Reason

#: Seconds by which clocks may differ before tokens are refused for it: the tolerance of the token check, by default.
CLOCK_SKEW: Final = 30.0

#: Refusals that a wrong clock causes.
_BY_CLOCK: Final = (Reason.JWT_EXPIRED, Reason.JWT_NOT_YET_VALID)

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
    found = (
        checks.keys(facts),
        checks.platform(facts),
        checks.internal_key(facts),
        checks.clock(facts),
        checks.backplane(facts),
    )
    return Verdict(*_headline(facts, found), counts(facts), found)


def _headline(facts: Facts, found: tuple[Check, ...]) -> tuple[State, str]:
    """The state, and the first sentence that fits."""
    keys, _, _, clock, _ = found
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
        about_keys = "JWKS" in condition.why and condition.why not in Reason.__members__
        why = keys.text if keys.state == "bad" and about_keys else _sentence(condition.why)
        return "bad", f"Daemons cannot connect: {why}"
    if bad is not None:
        return "bad", f"Daemons cannot connect: {bad.text}"
    if main is not None:
        by_clock = main.reason in _BY_CLOCK and abs(condition.clock_offset or 0.0) > CLOCK_SKEW
        why = clock.text.rstrip(".") if by_clock else main.text
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
