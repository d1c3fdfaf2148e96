"""`viewport-relay config`: prints the settings in force and the source of each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click

from viewport_relay.config import EX_CONFIG, VARIABLES, Config, ConfigError, Variable, as_text, load

MASK = "********"


def shown(variable: Variable, value: Any) -> str:
    """A value as text. Secrets are masked; of a URL only the user info is."""
    if variable.secret and value is not None and value != ():
        return masked_url(value) if "://" in value and variable.name.endswith("_URL") else MASK
    text = as_text(value)
    return without_user_info(text) if variable.name.endswith("_URL") else text or "none"


def masked_url(url: str) -> str:
    """A URL without its user info and query, which may hold secrets."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = "?" + MASK if parts.query else ""
    return f"{parts.scheme}://{MASK if user else ''}{at}{host}{parts.path}{query}"


def without_user_info(url: str) -> str:
    """A URL with its user info masked."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=f"{MASK}@{parts.netloc.rpartition('@')[2]}").geturl()


def rows(settings: Config) -> list[tuple[Variable, str, str]]:
    """(variable, value as shown, source) for each, in the order of the table.

    A default that depends on other settings is shown with the value it has now.
    """
    return [
        (
            variable,
            shown(variable, getattr(settings, variable.attribute)),
            settings.sources.get(variable.attribute, "default"),
        )
        for variable in VARIABLES
    ]


def read_or_exit(environ: Mapping[str, str], *, dev: bool = False) -> Config:
    """Load the settings, or print every problem on standard error and exit with status 78, as the relay does."""
    try:
        return load(environ, dev_platform=dev)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"✗ {problem}", err=True)
        raise SystemExit(EX_CONFIG) from None


@click.command(short_help="Show the settings in force, secrets masked, and where each came from.")
@click.option("--all", "everything", is_flag=True, help="Defaults too, not only what was set.")
@click.option("--dev", is_flag=True, help="As `twistd -n viewport-relay --dev` would read them.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text; always with defaults.")
def config(everything: bool, dev: bool, as_json: bool) -> None:
    """Show the settings that the relay would run with here, and where each came from.

    Secrets are masked. What cannot work is listed on standard error, with exit status 78.
    """
    settings = read_or_exit(os.environ, dev=dev)
    table = rows(settings)
    if as_json:
        values = [{"name": v.name, "value": value, "source": source} for v, value, source in table]
        click.echo(json.dumps({"settings": values, "warnings": settings.warnings}, indent=2))
        return
    worked_out = {"RELAY_MODE", "RELAY_JWKS_URL", "RELAY_VALIDATE_URL", "RELAY_PUBLIC_WS_BASE_URL"}
    picked = [row for row in table if everything or row[2] != "default" or row[0].name in worked_out]
    names = max(len(row[0].name) for row in picked)
    values_width = min(60, max(len(row[1]) for row in picked))
    for variable, value, source in picked:
        click.echo(f"{variable.name:<{names}}  {value:<{values_width}}  {source}")
    for warning in settings.warnings:
        click.echo(f"! {warning}", err=True)
    if not everything:
        click.echo(f"\n{len(table) - len(picked)} more have their defaults: --all shows them.")
