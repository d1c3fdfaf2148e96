"""Reads each variable from options, environment and files into values, errors and warnings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

from viewport_relay.config.files import (
    KEY_FIX,
    SETTINGS_FILE,
    exposure,
    merged,
    octal_mode,
    read_secret,
    unquoted,
)
from viewport_relay.config.settings import VARIABLES
from viewport_relay.config.table import Variable
from viewport_relay.config.values import Unsuitable

#: Names that hosting platforms set for every program: older names that are no reason for a warning.
_GIVEN_BY_HOSTS: Final = frozenset({"HOST", "PORT"})

#: Variables that Kubernetes sets for a Service whose name begins with `relay`.
_SERVICE_LINK: Final = re.compile(
    r"RELAY(_\w+)?_(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
)
#: Characters that no setting can hold: NUL, which file names and the operating system do not take, and bytes of the environment
#: that are not UTF-8 (PEP 383).
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")

#: User and password, in a URL or before HOST:PORT.
_USER_INFO: Final = re.compile(r"(//|(?:^|(?<=[,\s'\"]))(?=[^/?#,\s@]*:))[^/?#,\s]*@")

_SERVICE_VALUE: Final = re.compile(r"(tcp|udp|sctp)://[^/]+:[0-9]+")

#: Attributes whose secret file is a private key.
_PRIVATE_KEYS: Final = frozenset({"noise_private_key", "noise_previous_key"})


class Reading:
    """Collects values, errors, warnings and notes from one environment; `rules` fills in and judges the values."""

    def __init__(self, environ: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self.environ: Mapping[str, str] = environ
        self.overrides = overrides
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.error, self.warn = self.errors.append, self.warnings.append
        try:
            self.environ = merged(environ)
        except Unsuitable as wrong:
            self.error(f"{SETTINGS_FILE}: {wrong}")

    def given(self, attribute: str) -> bool:
        """Whether a setting was given, rather than left to its default."""
        return self.sources[attribute] != "default"

    def read(self, variable: Variable) -> None:
        """Read one variable into `values` and `sources`."""
        source, text = self._raw(variable)
        self.sources[variable.attribute] = source
        self.values[variable.attribute] = variable.default
        if text is None:
            return
        text = self._unquoted(variable, source, text)
        got = "a value that is kept secret" if variable.secret else repr(without_user_info(text)[:200])
        try:
            if _NO_TEXT.search(text):
                raise ValueError("UTF-8 text without NUL")
            self.values[variable.attribute] = variable.parse(text)
        except Unsuitable as wrong:
            self.error(f"{source}: got {got}: {without_user_info(str(wrong))}")
        except ValueError as takes:
            hint = (
                ": Kubernetes sets it for a Service (enableServiceLinks: false)"
                if _SERVICE_VALUE.match(text)
                else ""
            )
            self.error(f"{source}: got {got}, takes {takes}{hint}")

    def _unquoted(self, variable: Variable, source: str, text: str) -> str:
        """The text without quotes around it. A secret keeps them, with a warning."""
        plain = unquoted(text)
        if plain == text or not variable.secret:
            return plain.strip()
        self.warn(
            f"{source} begins and ends with a quotation mark, which is taken as a part of the secret: remove both if "
            "they are none"
        )
        return text

    def _text(self, name: str) -> str:
        """The text of a variable; empty when it is not set, or when there is nothing between its quotes."""
        text = self.environ.get(name, "").strip()
        return text if unquoted(text) else ""

    def _raw(self, variable: Variable) -> tuple[str, str | None]:
        if variable.attribute in self.overrides:
            return f"option --{variable.option}", self.overrides[variable.attribute]
        text = self._text(variable.name)
        path = unquoted(self._text(variable.name + "_FILE")) if variable.secret else ""
        if text and path:
            self.error(f"{variable.name} and {variable.name}_FILE are both set: keep one")
        if text:
            return variable.name, text
        if path:
            return variable.name + "_FILE", self._secret_file(variable, path)
        for older in variable.older:
            text = self._text(older)
            if text:
                if older not in _GIVEN_BY_HOSTS:
                    self.warn(f"{older} is the older name of {variable.name}: it is still read")
                return older, text
        return "default", None

    def _secret_file(self, variable: Variable, path: str) -> str | None:
        name = f"{variable.name}_FILE"
        try:
            text = read_secret(path)
        except Unsuitable as wrong:
            self.error(f"{name}: {wrong}")
            return None
        self.exposed(name, path, private_key=variable.attribute in _PRIVATE_KEYS)
        return text

    def exposed(self, name: str, path: str, *, private_key: bool) -> None:
        """A private key that every user can read is an error; any other secret that others can read is a warning."""
        who = exposure(path, self.environ.get("CREDENTIALS_DIRECTORY"))
        if who is None:
            return
        whose = "every user" if who == "world" else "its group"
        sentence = f"{name}: {path!r} has mode {octal_mode(path)}, so that {whose} can read it: {KEY_FIX}"
        (self.error if private_key and who == "world" else self.warn)(sentence)

    def names(self) -> None:
        """Warn of names that are none of a setting, and of settings that are no longer listed."""
        known = {v.name for v in VARIABLES} | {older for v in VARIABLES for older in v.older}
        known |= {v.name + "_FILE" for v in VARIABLES if v.secret}
        listed = sorted(v.name for v in VARIABLES if v.listed)
        for name in sorted(self.environ):
            if not name.startswith("RELAY_") or name in known or self._is_service_link(name):
                continue
            near = difflib.get_close_matches(name, listed, 1) or difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            self.warn(f"{name} is set, but there is no such setting{hint}")
        retired = [v.name for v in VARIABLES if not v.listed and self.sources[v.attribute] == v.name]
        if retired:
            self.warn(
                f"still read, but no longer listed as settings: {', '.join(retired)}; the default fits every known "
                "deployment, so remove what you can"
            )

    def _is_service_link(self, name: str) -> bool:
        return bool(_SERVICE_LINK.fullmatch(name)) or (
            name.endswith("_PORT") and bool(_SERVICE_VALUE.match(self.environ[name]))
        )


def without_user_info(text: str) -> str:
    """A text without users and passwords, for messages: an operator may have put them where they do not belong."""
    return _USER_INFO.sub(r"\1…@", text)
