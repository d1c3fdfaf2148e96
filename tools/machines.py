"""Diagrams of the state machines by Automat's visualiser, for `docs/topics/*.dot`. `make docs` writes the files.

    dot -Tsvg docs/topics/noise-machine.dot        makes an image; only this needs Graphviz

The visualiser needs the package `graphviz`, a development dependency. Automat numbers transitions in the order of a
set, which differs between processes; here they are sorted, so that a test can compare.
"""

from __future__ import annotations

import re
from typing import Any

_NUMBERED = re.compile(r"\bt(\d+)(?= \[|:tableport)")
_UNNUMBERED = re.compile(r"\bt\?(?= \[|:tableport)")


def drawing(machine: Any) -> str:
    """A machine of `automat.TypeMachineBuilder` in the DOT language."""
    digraph = machine.asDigraph()
    states: list[str] = []
    transitions: dict[str, str] = {}
    for line in digraph.body:
        found = _NUMBERED.search(line)
        if found is None:
            states.append(line)
        else:
            transitions[found[1]] = transitions.get(found[1], "") + _NUMBERED.sub("t?", line)
    ordered = [_UNNUMBERED.sub(f"t{n}", text) for n, text in enumerate(sorted(transitions.values()))]
    digraph.body[:] = [*sorted(states), *ordered]
    return str(digraph.source)
