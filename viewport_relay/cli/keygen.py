"""`viewport-relay keygen`: makes a static X25519 key for the Noise link.

The private key goes to a file of mode 0600, or to standard output when no file is named. An existing file is never
replaced.
"""

from __future__ import annotations

from pathlib import Path

import click

from viewport_relay.noise.keys import StaticKey, write_private


@click.command(short_help="Make the relay's static key for the Noise link.")
@click.option(
    "--out", metavar="FILE", help="Write the private half to a new file (mode 0600), print the public half."
)
def keygen(out: str | None) -> None:
    """Make an X25519 key for the Noise link (RELAY_NOISE_PRIVATE_KEY).

    Without --out both keys are printed as lines of an environment file. An existing file is never replaced.

    \b
      viewport-relay keygen --out /etc/viewport-relay/noise.key
      RELAY_NOISE_PRIVATE_KEY_FILE=/etc/viewport-relay/noise.key twistd -n viewport-relay
    """
    key = StaticKey.generate()
    if out is None:
        click.echo(f"RELAY_NOISE_PRIVATE_KEY={key.private_text()}")
        click.echo(f"# public half (noisePublicKey): {key.public_text}")
        return
    try:
        write_private(Path(out), key.private_text() + "\n")
    except FileExistsError:
        raise click.ClickException(f"{out} is there already: a key is never written over") from None
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror or 'cannot be written'}") from None
    except ValueError:  # an empty name, as of an unset shell variable
        raise click.ClickException(f"{out!r} names no file") from None
    click.echo(key.public_text)
