"""The command `viewport-relay`: the relay (`serve`) and the operator's tools."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from viewport_relay import __version__
from viewport_relay.descriptors import open_standard_streams, standard_output

EPILOG = """\b
Examples:
  viewport-relay serve                        run the relay in the foreground
  viewport-relay doctor                       what would go wrong, and how to mend it
  viewport-relay explain JWKS_UNREACHABLE     what a reason code of the log means
  viewport-relay token inspect < token.txt    what this relay would say to a token
  viewport-relay config                       the settings in force, and where they come from
  viewport-relay demo --once                  a daemon and a client talk through a relay of their own

viewport-relay serve --help lists every setting. Under twistd: twistd -n viewport-relay.
"""

#: The commands in the order of the help. Each is the click command of this name in a module of this package.
COMMANDS: Final = ("serve", "healthcheck", "doctor", "token", "explain", "config", "keygen", "demo")


class Commands(click.Group):
    """A click group that imports a command's module when it is called, so that `healthcheck` starts fast."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command of the arguments, and exit the process."""
        with standard_output():
            return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"viewport_relay.cli.{cmd_name}")
        found: click.Command = getattr(module, cmd_name)
        return found


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="viewport-relay")
def main() -> None:
    """Run, check, explain and demonstrate a Viewport relay.

    Settings come from the environment, as for the relay: run it where the relay runs, with the same variables
    (docker exec viewport-relay viewport-relay doctor).
    """
    open_standard_streams()


if __name__ == "__main__":
    main()
