"""Draws the handshake machine: `docs/topics/noise-machine.dot` and `.md` are made here and kept equal by a test.

    python -m viewport_relay.noise.diagram docs/topics     writes both again

Nothing in a running relay imports this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path

from attrs import frozen

from viewport_relay.noise.machine import LINK_MACHINE, LinkInputs

STATES = ("awaiting", "answered", "established", "closed")
INPUTS = tuple(name for name in vars(LinkInputs) if not name.startswith("_"))  # in the order of the source

_INTRODUCTION = """\
# The handshake machine

Made from the machine in `viewport_relay/noise/machine.py` by `python -m viewport_relay.noise.diagram docs/topics`;
edits here are lost. The same drawing for Graphviz: `noise-machine.dot` (`dot -Tsvg noise-machine.dot`).

One such machine stands beside every connection that offered the link. `closed` ignores whatever still comes. A pair of state and input
that is in no row cannot happen; the tests try each one.
"""


@frozen(order=True)
class Transition:
    """One arrow. `does` names what is done on the way, empty for nothing."""

    state: str
    input: str
    to: str
    does: str


def transitions() -> list[Transition]:
    """Every transition of the built machine, in the order of states and inputs."""
    found = []
    for old, symbol, new, outputs in LINK_MACHINE.__automat_automaton__.allTransitions():
        does = ", ".join(output.name for output in outputs if not output.name.startswith("returns("))
        found.append(Transition(old.name, symbol, new.name, does))
    return sorted(found, key=lambda t: (STATES.index(t.state), INPUTS.index(t.input)))


def _arrows() -> Iterator[tuple[str, str, list[str]]]:
    """Arrows with everything that takes them; what `closed` ignores is left out."""
    labels: dict[tuple[str, str], list[str]] = {}
    for transition in transitions():
        if transition.state != "closed":
            labels.setdefault((transition.state, transition.to), []).append(transition.input)
    for (state, to), inputs in labels.items():
        yield state, to, inputs


def dot() -> str:
    """The drawing for Graphviz."""
    lines = [
        "// Made by python -m viewport_relay.noise.diagram; edits here are lost.",
        "digraph noise_machine {",
        "  rankdir=TB;",
        '  node [shape=box, style=rounded, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=10];',
        "  start [shape=point];",
        f"  start -> {STATES[0]};",
        "  closed [peripheries=2];",
    ]
    for state, to, inputs in _arrows():
        label = "\\n".join(inputs)
        lines.append(f'  {state} -> {to} [label="{label}"];')
    return "\n".join([*lines, "}", ""])


def markdown() -> str:
    """The page: a Mermaid drawing, what each input means, and the whole table."""
    lines = [_INTRODUCTION, "```mermaid", "stateDiagram-v2", f"  [*] --> {STATES[0]}"]
    lines += [f"  {state} --> {to}: {' / '.join(inputs)}" for state, to, inputs in _arrows()]
    lines += ["  closed --> [*]", "```", "", "## Inputs", "", "| input | meaning |", "| --- | --- |"]
    for name in INPUTS:
        meaning = " ".join((getdoc(getattr(LinkInputs, name)) or "").split())
        lines.append(f"| `{name}` | {meaning} |")
    lines += ["", "## Transitions", "", "| state | input | to | does |", "| --- | --- | --- | --- |"]
    for t in transitions():
        lines.append(f"| {t.state} | {t.input} | {t.to} | {t.does.replace('_', ' ') or '-'} |")
    return "\n".join([*lines, ""])


def pages() -> dict[str, str]:
    """File names below `docs/topics` and what they hold."""
    return {"noise-machine.dot": dot(), "noise-machine.md": markdown()}


if __name__ == "__main__":
    for page, text in pages().items():
        (Path(sys.argv[1]) / page).write_text(text, "utf-8")
