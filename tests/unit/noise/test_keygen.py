"""`viewport-relay keygen`: a valid key pair; the private half goes only to the requested place."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from viewport_relay.cli.keygen import generate, keygen
from viewport_relay.noise.keys import NoiseKeyError, RelayKeys


def test_generate() -> None:
    private, public = generate()
    assert len(private) == len(public) == 43 and generate()[0] != private
    assert RelayKeys.load(private, None, None).public_text == public


def test_to_a_file(tmp_path: Path) -> None:
    path, shown = tmp_path / "relay.key", io.StringIO()
    public = keygen(path, shown)
    private = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert shown.getvalue() == public + "\n"
    assert RelayKeys.load(private, None, None).public_text == public
    with pytest.raises(NoiseKeyError, match="never written over"):
        keygen(path, shown)
    assert path.read_text().strip() == private
    with pytest.raises(NoiseKeyError, match="No such file"):
        keygen(tmp_path / "missing" / "relay.key", shown)


def test_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    public = keygen()
    setting, comment = capsys.readouterr().out.splitlines()
    name, _, private = setting.partition("=")
    assert name == "RELAY_NOISE_PRIVATE_KEY" and comment.startswith("#") and comment.endswith(public)
    assert RelayKeys.load(private, None, None).public_text == public
