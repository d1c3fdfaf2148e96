"""A reload: the settings are read again, and what can change while the relay runs is taken up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from attrs import Factory, frozen

from viewport_relay.config.loader import load
from viewport_relay.config.settings import VARIABLES, Config
from viewport_relay.config.settingsfile import merged


@frozen
class Reloaded:
    """What a reload brings.

    `config` is in force from now on. `taken` are the variables whose change it has, `left` those whose change needs a
    restart. `texts` are those of `taken` that are no secrets, as an environment has them (empty: unset).
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
    texts = merged(environ)
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
            variable.name: next(
                filter(None, (texts.get(n, "") for n in (variable.name, *variable.older))), ""
            )
            for variable in taken
            if not variable.secret
        },
    )
