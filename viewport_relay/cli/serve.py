"""`viewport-relay serve`: the relay itself, as `twistd -n viewport-relay` starts it."""

from __future__ import annotations

from typing import Any

import click
from twisted.python.usage import UsageError
from twisted.scripts import twistd

_twistd: Any = twistd  # without type annotations

#: Options of twistd before the relay's: foreground, no pid file.
TWISTD = ("--nodaemon", "--pidfile=", "viewport-relay")


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    options_metavar="",
)
@click.version_option(package_name="viewport-relay", prog_name="viewport-relay")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]")
def serve(options: tuple[str, ...]) -> None:
    """Run the relay in the foreground until SIGTERM or Ctrl-C.

    The same as `twistd -n viewport-relay`, with the same options and environment variables: `viewport-relay serve
    --help` lists them.
    """
    config = _twistd.ServerOptions()
    try:
        config.parseOptions([*TWISTD, *options])
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    _twistd.runApp(config)
