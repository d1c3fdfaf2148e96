"""What the commands print. A reader that has closed the pipe (`… | head`) ends the output, not the command."""

from __future__ import annotations

import os
import sys

import click


def say(text: str) -> bool:
    """Print a line on standard output; False when nobody can read it any more."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What follows goes nowhere: Python itself would complain once more when it flushes at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True
