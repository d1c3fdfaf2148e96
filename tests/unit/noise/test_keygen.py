"""`viewport-relay keygen`: a valid key pair; the private half goes only to the requested place."""

from __future__ import annotations

import stat
from pathlib import Path

from click.testing import CliRunner, Result

from viewport_relay.cli.keygen import keygen
from viewport_relay.noise.keys import RelayKeys


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(keygen, [str(argument) for argument in arguments])


def test_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "relay.key"
    public = run("--out", path).stdout.removesuffix("\n")
    private = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(private) == len(public) == 43
    assert RelayKeys.load(private, None, None).current.public_text == public
    again = run("--out", path)
    assert again.exit_code == 1 and "never written over" in again.stderr
    assert path.read_text().strip() == private
    missing = run("--out", tmp_path / "missing" / "relay.key")
    assert missing.exit_code == 1 and "No such file" in missing.stderr and missing.stdout == ""
    for nameless in ("", ".", "/"):
        refused = run("--out", nameless)
        assert (
            refused.exit_code == 1
            and refused.stderr == f"Error: {nameless!r} names no file\n"
            and refused.stdout == ""
        )


def test_to_standard_output() -> None:
    setting, comment = run().stdout.splitlines()
    name, _, private = setting.partition("=")
    public = comment[-43:]
    assert name == "RELAY_NOISE_PRIVATE_KEY" and comment.startswith("#") and len(private) == 43
    assert RelayKeys.load(private, None, None).current.public_text == public
    assert private not in run().stdout, "each key is another one"
