"""Loads the settings at start, and again at a reload. It opens no socket and starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
from attrs import Factory, frozen

from viewport_relay.config.reading import Reading
from viewport_relay.config.rules import apply_rules
from viewport_relay.config.settings import VARIABLES, Config
from viewport_relay.config.table import as_text

#: Exit status for a configuration that cannot work (EX_CONFIG of sysexits.h).
EX_CONFIG: Final = 78


class ConfigError(Exception):
    """The settings cannot work.

    `errors` has one sentence for each, naming variable, value and remedy; `warnings` are those of the settings that
    could be read.
    """

    def __init__(self, errors: list[str], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors
        self.warnings = warnings


def load(
    environ: Mapping[str, str], overrides: Mapping[str, str] | None = None, *, dev_platform: bool = False
) -> Config:
    """Read the settings.

    `environ` is an environment; an empty value counts as unset. `overrides` maps attributes of `Config` to texts
    (command line options) and wins. Raises ConfigError with every error found, not only the first.
    """
    reading = Reading(environ, overrides or {})
    for variable in VARIABLES:
        reading.read(variable)
    reading.names()
    apply_rules(reading, dev_platform=dev_platform)
    if reading.errors:
        raise ConfigError(reading.errors, tuple(reading.warnings))
    return Config(
        **reading.values,
        dev_platform=dev_platform,
        sources=reading.sources,
        warnings=tuple(reading.warnings),
        notes=tuple(reading.notes),
    )


@frozen
class Reloaded:
    """The result of a reload.

    `config` is in force from now on. `taken` names the variables whose change is in it, `left` those whose change needs a
    restart. `texts` maps the variables of `taken` that are no secrets to the text of their value, for worker processes.
    """

    config: Config
    taken: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    texts: Mapping[str, str] = Factory(dict)


#: Reads the settings again for a Config that is in force. Raises ConfigError, and then nothing changes.
Reread = Callable[[Config], Reloaded]


def reread(
    current: Config, environ: Mapping[str, str], overrides: Mapping[str, str] | None = None
) -> Reloaded:
    """Read the settings again: the environment, its settings file and secret files, and the options of the start.

    Raises ConfigError when they cannot work.
    """
    new = load(environ, overrides, dev_platform=current.dev_platform)
    changed = [
        variable
        for variable in VARIABLES
        if getattr(new, variable.attribute) != getattr(current, variable.attribute)
        # A default that was worked out at start (a random id) is no change.
        and {new.sources[variable.attribute], current.sources[variable.attribute]} != {"default"}
    ]
    taken = [variable for variable in changed if variable.reload]
    return Reloaded(
        attrs.evolve(
            current,
            **{variable.attribute: getattr(new, variable.attribute) for variable in taken},
            sources={**current.sources, **{v.attribute: new.sources[v.attribute] for v in taken}},
            warnings=new.warnings,
        ),
        tuple(variable.name for variable in taken),
        tuple(variable.name for variable in changed if not variable.reload),
        {
            variable.name: as_text(value) if (value := getattr(new, variable.attribute)) != () else ""
            for variable in taken
            if not variable.secret
        },
    )
