"""A reload: the settings are read again, and what can change while the relay runs is taken up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from attrs import frozen

from viewport_relay.config.loader import load
from viewport_relay.config.settings import VARIABLES, Config


@frozen
class Reloaded:
    """What a reload brings.

    `config` is in force from now on. `taken` are the variables whose change it has, `left` those whose change needs a
    restart.
    """

    config: Config
    taken: tuple[str, ...]
    left: tuple[str, ...]


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
    )
