"""Prints lines of a command."""

from __future__ import annotations

import click

from viewport_relay.descriptors import standard_output


def say(text: str) -> bool:
    """Print a line on standard output, at once; False when the pipe is closed."""
    with standard_output():
        click.echo(text)
        return True
    return False
