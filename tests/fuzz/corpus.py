"""The corpus in the repository: a text file for each target, one input a line, in base64.

Each input covers code that no earlier input covers. `python -m tests.fuzz` reads the files and writes them again after
a run with new inputs.
"""

from __future__ import annotations

import base64
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"

#: Longest input that is kept, bytes: longer ones cover little more and make the files large.
LONGEST = 2_048

#: Most inputs of one target.
MOST = 300


def read(target: str) -> list[bytes]:
    """The inputs of a target."""
    path = FOLDER / f"{target}.txt"
    return [base64.b64decode(line) for line in path.read_text("ascii").split()] if path.exists() else []


def write(target: str, inputs: list[bytes]) -> int:
    """Write the inputs, shortest first; returns their number after the limits."""
    kept = sorted({data for data in inputs if len(data) <= LONGEST}, key=lambda data: (len(data), data))[
        :MOST
    ]
    FOLDER.mkdir(exist_ok=True)
    lines = "".join(base64.b64encode(data).decode() + "\n" for data in kept if data)
    (FOLDER / f"{target}.txt").write_text(lines, "ascii")
    return len(kept)
