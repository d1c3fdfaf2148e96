"""The command `viewport-relay`: the relay itself (`serve`), and what an operator runs beside it."""

from __future__ import annotations

import click

from viewport_relay import __version__
from viewport_relay.cli.doctor import doctor
from viewport_relay.cli.explain import explain
from viewport_relay.cli.newkey import keygen_command
from viewport_relay.cli.serve import serve
from viewport_relay.cli.settings import config
from viewport_relay.cli.show import demo
from viewport_relay.cli.token import token

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


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EPILOG
)
@click.version_option(__version__, prog_name="viewport-relay")
def main() -> None:
    """Run, check, explain and demonstrate a Viewport relay.

    Settings come from the environment, as for the relay: run it where the relay runs, with the same variables
    (docker exec viewport-relay viewport-relay doctor).
    """


for command in (serve, doctor, token, explain, config, keygen_command, demo):
    main.add_command(command)


if __name__ == "__main__":
    main()
