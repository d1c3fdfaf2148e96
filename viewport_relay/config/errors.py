"""Settings that cannot work."""

from __future__ import annotations

from typing import Final

#: Exit status for a configuration that cannot work (EX_CONFIG of sysexits.h).
EX_CONFIG: Final = 78


class ConfigError(Exception):
    """The settings cannot work.

    `problems` has one sentence for each, naming variable, value and remedy; `warnings` are those of the settings that
    could be read.
    """

    def __init__(self, problems: list[str], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = warnings
