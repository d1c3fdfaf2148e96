"""Can peers connect, and what is wrong: the answer in words, from facts that the relay has anyway.

    Facts (readiness, keys, backplane, problems, counts) -> judge -> Verdict -> status line, `/logs`, `/ready`, dashboard

Pure: nothing is probed, logged or timed here.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import asdict, frozen

from viewport_relay.observe.checks import Check, Facts, State, checks
from viewport_relay.observe.problems import SPAN, Problem
from viewport_relay.reasons import Reason

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
    """`headline` answers "can daemons connect?", `counts` says what happened lately, `checks` are the grounds."""

    state: State
    headline: str
    counts: str
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(facts: Facts) -> Verdict:
    """Work out the verdict."""
    found = checks(facts)
    return Verdict(*_headline(facts, found), counts(facts), found)


def _headline(facts: Facts, found: tuple[Check, ...]) -> tuple[State, str]:
    """The state, and the first sentence that fits."""
    bad = next((check for check in found if check.state == "bad"), None)
    warned = next((check for check in found if check.state == "warn"), None)
    main, most, worst = _all_refused_for(facts), _most_refused(facts), next(iter(facts.problems), None)
    if not facts.ready:
        keys = found[0]
        about_keys = "JWKS" in facts.why and facts.why not in Reason.__members__
        why = keys.text if keys.state == "bad" and about_keys else _sentence(facts.why)
        return "bad", f"Daemons cannot connect: {why}"
    if bad is not None:
        return "bad", f"Daemons cannot connect: {bad.text}"
    if main is not None:
        return "bad", f"No peer gets in: {facts.refused} were refused, mostly {main.code} ({main.text})."
    if warned is not None:
        return "warn", f"Daemons can connect, but {warned.text}"
    if worst is not None and worst.level == "error":
        return "warn", f"Daemons can connect, but {worst.code}: {worst.text}."
    if most is not None:
        return "warn", f"Daemons can connect, but most attempts are refused: {most.code} ({most.text})."
    return "good", "Daemons can connect."


def ready_in_words(ready: bool, why: str, *, has_keys: bool) -> str:
    """Which peers can be admitted, and why not. `/ready` is open to all: no address, id or URL is in the text."""
    if not ready:
        reason = Reason.__members__.get(why) or (None if has_keys else Reason.JWKS_UNREACHABLE)
        fix = f" To do: {reason.entry.fix}." if reason is not None else ""
        return f"No peer can be admitted: {_sentence(why)}{fix}"
    return f"Peers with a valid token can be admitted{f', but: {_sentence(why)}' if why else '.'}"


# -- words ---------------------------------------------------------------------------------------------------


def counts(facts: Facts) -> str:
    """Numbers of peers admitted and refused lately, with reasons, and of those connected."""
    refused = [row for row in facts.problems if row.sample.event == "refuse" and row.lately]
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


# -- refusals ------------------------------------------------------------------------------------------------


def _all_refused_for(facts: Facts) -> Problem | None:
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
    """The main reason when lately more attempts were refused than admitted. Refusals that scanners cause do not count."""
    refused = [row for row in facts.problems if row.sample.event == "refuse" and row.reason not in _SCANNERS]
    number = sum(row.lately for row in refused)
    if number < _MOST_REFUSED or number <= facts.admitted:
        return None
    return max(refused, key=lambda row: row.lately)
