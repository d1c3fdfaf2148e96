"""Prints lines of a command. A closed pipe (`… | head`) ends the output, not the command."""

from __future__ import annotations

import os
import sys

import click


def say(text: str) -> bool:
    """Print a line on standard output; False when the pipe is closed."""
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Later output goes to the null device: Python would report the closed pipe again at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True
