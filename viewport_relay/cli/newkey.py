"""`viewport-relay keygen`: the command line of `keygen.keygen`."""

from __future__ import annotations

import click

from viewport_relay.cli.keygen import keygen
from viewport_relay.noise.keys import NoiseKeyError


@click.command("keygen", short_help="Make the relay's static key for the Noise link.")
@click.option(
    "--out", metavar="FILE", help="Write the private half to a new file (mode 0600), print the public half."
)
def keygen_command(out: str | None) -> None:
    """Make an X25519 key for the Noise link (RELAY_NOISE_PRIVATE_KEY).

    Without --out both keys are printed as lines of an environment file. An existing file is never replaced.

    \b
      viewport-relay keygen --out /etc/viewport-relay/noise.key
      RELAY_NOISE_PRIVATE_KEY_FILE=/etc/viewport-relay/noise.key twistd -n viewport-relay
    """
    try:
        keygen(out)
    except NoiseKeyError as error:
        raise click.ClickException(str(error)) from None
