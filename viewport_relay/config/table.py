"""A setting as a row: `setting(…)` makes a field of a settings class that carries its `Variable`.

The classes of `groups` are the table. Each field is one environment
variable: mypy checks that the field's type is what the row's kind of value makes.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import attrs
from attrs import field, frozen

from viewport_relay.config.values import Kind

T = TypeVar("T")

_KEY: Final = "variable"


@frozen
class Variable:
    """One environment variable.

    `name` is the documented name, `attribute` the field of `Config`. `default` is what applies when it is unset (None:
    none, or worked out as `default_text` says). `older` are names that are still read. A `secret` is masked wherever
    it is shown and may come from the file that `NAME_FILE` names. `reload`: a change is applied on SIGHUP. `listed`:
    the reference lists the variable. The others are still read, with one warning at start.
    """

    name: str
    parse: Kind[Any]
    default: Any
    help: str
    older: tuple[str, ...] = ()
    secret: bool = False
    default_text: str = ""
    option: str = ""  # long option of twistd, for the most used
    reload: bool = False
    attribute: str = ""
    group: str = ""
    listed: bool = True

    @property
    def takes(self) -> str:
        """The values that the variable takes, in words."""
        return self.parse.takes

    @property
    def shown_default(self) -> str:
        """The default as the documentation writes it."""
        return self.default_text or as_text(self.default)

    def in_words(self, value: object) -> str:
        """A value in force beside the default, for log lines: `RELAY_RATE_LIMIT_PER_IP=60 (default 120)`."""
        default = "the default" if value == self.default else f"default {self.shown_default}"
        return f"{self.name}={value} ({default})"


def as_text(value: object) -> str:
    """A value as a setting is written."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(str(item) for item in value) if type(value) is tuple else str(value)


def setting(
    name: str,
    parse: Kind[T],
    default: T | None,
    help: str,
    *,
    older: tuple[str, ...] = (),
    secret: bool = False,
    default_text: str = "",
    option: str = "",
    reload: bool = False,
) -> T:
    """A field of a settings class, and its row; see `Variable` for the arguments.

    The value is always given by the loader, so the field has no default of its own.
    """
    row = Variable(name, parse, default, help, older, secret, default_text, option, reload)
    made: T = field(kw_only=True, repr=not secret, metadata={_KEY: row})
    return made


def rows(group: type, heading: str, *, listed: bool = True) -> tuple[Variable, ...]:
    """The variables of one settings class, in the order of its fields."""
    return tuple(
        attrs.evolve(found.metadata[_KEY], attribute=found.name, group=heading, listed=listed)
        for found in attrs.fields(group)
    )
