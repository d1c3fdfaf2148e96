"""`viewport-relay config`: prints the settings in force and the source of each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import click

from viewport_relay.admin.settings import settings_json
from viewport_relay.config import EX_CONFIG, Config, ConfigError, load


def read_or_exit(environ: Mapping[str, str], *, dev: bool = False) -> Config:
    """Load the settings, or print every error on standard error and exit with status 78, as the relay does."""
    try:
        return load(environ, dev_platform=dev)
    except ConfigError as error:
        for sentence in error.errors:
            click.echo(f"✗ {sentence}", err=True)
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
    table = settings_json(settings)
    if as_json:
        told = [{name: row[name] for name in ("name", "value", "source")} for row in table]
        click.echo(json.dumps({"settings": told, "warnings": settings.warnings}, indent=2))
        return
    worked_out = {"RELAY_MODE", "RELAY_JWKS_URL", "RELAY_VALIDATE_URL", "RELAY_PUBLIC_WS_BASE_URL"}
    picked = [row for row in table if everything or row["source"] != "default" or row["name"] in worked_out]
    names = max(len(row["name"]) for row in picked)
    values = min(60, max(len(row["value"]) for row in picked))
    for row in picked:
        click.echo(f"{row['name']:<{names}}  {row['value']:<{values}}  {row['source']}")
    for warning in settings.warnings:
        click.echo(f"! {warning}", err=True)
    if not everything:
        click.echo(f"\n{len(table) - len(picked)} more have their defaults: --all shows them.")
