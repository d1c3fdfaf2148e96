"""Settings of a relay process: what lets it start, what ends it with status 78 and why, what it warns about."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

from tests.integration.admission.controlplane import INTERNAL_KEY, ControlPlane
from tests.integration.admission.relays import Relay, run
from tests.ports import free_port
from viewport_relay.config import VARIABLES

Start = Callable[..., Relay]


def test_four_variables_are_enough(platform: ControlPlane, start: Start, workspace: str) -> None:
    """`start` adds only the admin token and a short drain."""
    relay = start(platform.settings()).ready()  # with RELAY_LISTEN_PORT
    daemon_token = platform.token("workspace-daemon", workspace)
    with relay.upgrade("workspace-daemon", workspace, daemon_token) as daemon:
        assert daemon.admitted
        with relay.upgrade(
            "client", workspace, platform.token("client", workspace), via="subprotocol"
        ) as client:
            client.send(b'{"type":"relay_pairing_offer_request"}')
            assert json.loads(client.frame()[1])["code"] == "INVALID_FRAME"
        # In mode dev, the default for a loopback host, the query may carry the token.
        with relay.upgrade("client", workspace, platform.token("client", workspace), via="query") as client:
            assert client.admitted
        assert not any("token=" in line for line in relay.written)
    assert relay.stop() == 0


def test_prod_refuses_all_weak_secrets_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    ended = run(
        {
            "RELAY_MODE": "prod",
            "SERVER_URL": "https://platform.example",
            "RELAY_INTERNAL_KEY": "changeme",
            "RELAY_ADMIN_TOKEN": "0123456789",
            "RELAY_BUS_HMAC_KEY": "aaaaaaaaaaaaaaaaaaaaaaa",
            "RELAY_FRAME_MAX_BYTES": "lots",
            "RELAY_TLS": "maybe",
            "RELAY_NOISE_PRIVATE_KEY_FILE": str(tmp_path / "empty"),
            "RELAY_SERVER_CA_CERT_PATH": "/does/not/exist",
        }
    )
    assert ended.returncode == 78
    assert ended.stdout == ""
    empty = str(tmp_path / "empty")
    assert sorted(ended.stderr.splitlines()) == [
        "viewport-relay: RELAY_ADMIN_TOKEN is only 10 characters long: use at least 16 random characters",
        "viewport-relay: RELAY_BUS_HMAC_KEY is one character repeated: use at least 16 random characters",
        "viewport-relay: RELAY_FRAME_MAX_BYTES: got 'lots', takes bytes from 256 to 67108864, or with a unit: 64KiB 4MiB "
        "(K, M, G mean the same: 1M is 1048576)",
        "viewport-relay: RELAY_INTERNAL_KEY is a placeholder: use at least 16 random characters",
        f"viewport-relay: RELAY_NOISE_PRIVATE_KEY_FILE: {empty!r} is empty",
        "viewport-relay: RELAY_SERVER_CA_CERT_PATH: cannot read '/does/not/exist': No such file or directory",
        "viewport-relay: RELAY_TLS: got 'maybe', takes one of auto 0 1",
    ]
    assert "changeme" not in ended.stderr and "0123456789" not in ended.stderr


def test_a_relay_without_settings_names_what_it_lacks() -> None:
    ended = run({})
    assert ended.returncode == 78
    assert ended.stderr.splitlines() == [
        "viewport-relay: RELAY_JWKS_URL is not set: set it, or SERVER_URL (or start with --dev)",
        "viewport-relay: RELAY_VALIDATE_URL is not set: set it, or SERVER_URL (or start with --dev)",
    ]


def test_secrets_from_files_older_names_and_warnings(
    platform: ControlPlane, start: Start, tmp_path: Path, workspace: str
) -> None:
    """One relay with every setting that is a warning at start and none that prevents the start."""
    (tmp_path / "key").write_text(f"  {INTERNAL_KEY}\n")
    settings = platform.settings()
    del settings["RELAY_INTERNAL_KEY"]
    port = free_port()
    relay = start(
        {
            **settings,
            "RELAY_INTERNAL_KEY_FILE": str(tmp_path / "key"),
            "RELAY_ADMIN_TOKEN": "",  # empty means unset
            "RELAY_ADMIN_TOKEN_FILE": str(_written(tmp_path / "admin", "an-operator-knows-this-one")),
            "RELAY_LISTEN_HOST": "",
            "RELAY_LISTEN_PORT": "",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "RELAY_UPGRADE_RATE_PER_MINUTE": "2",
            "RELAY_MAX_FRAME_BYTES": "500",
            "MAX_LOGS": "10",
            "RELAY_LISTEN_PROT": "1",
            "RELAY_BUS_HMAC_KEY": "short",
            "RELAY_FRAME_MAX_BYTES": "400",
        },
        "--frame-max-bytes=300",  # an option takes precedence over a variable
    )
    relay.port = port
    relay.ready()
    with relay.upgrade("client", workspace, platform.token("client", workspace)) as peer:
        assert peer.admitted, "the key from the file is the platform's"
        peer.announce(301)
        assert peer.closed_with() == (1009, "frame too large")
    relay.upgrade("client", workspace, None)
    assert relay.upgrade("client", workspace, None).reason == "RATE_LIMIT_EXCEEDED"
    warnings = [e["message"] for e in relay.lines() if e["event"] == "config_warning"]
    assert (
        "RELAY_LISTEN_PROT is set, but there is no such setting, did you mean RELAY_LISTEN_PORT?" in warnings
    )
    assert "RELAY_BUS_HMAC_KEY is only 5 characters long: use at least 16 random characters" in warnings
    assert not any(INTERNAL_KEY in line or "an-operator-knows" in line for line in relay.written)
    for _ in range(5):
        relay.upgrade("client", workspace, None)
    assert len(relay.logs()) == 10


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_documented_name_takes_precedence_and_two_forms_of_a_secret_are_an_error(tmp_path: Path) -> None:
    ended = run(
        {
            "SERVER_URL": "http://127.0.0.1:1",
            "RELAY_LISTEN_PORT": "x",
            "PORT": "y",
            "RELAY_INTERNAL_KEY": INTERNAL_KEY,
            "RELAY_INTERNAL_KEY_FILE": str(_written(tmp_path / "key", INTERNAL_KEY)),
            "RELAY_ADMIN_TOKEN_FILE": str(tmp_path / "missing"),
        }
    )
    assert ended.returncode == 78
    missing = str(tmp_path / "missing")
    assert ended.stderr.splitlines() == [
        "viewport-relay: RELAY_LISTEN_PORT: got 'x', takes a whole number from 0 to 65535",
        "viewport-relay: RELAY_INTERNAL_KEY and RELAY_INTERNAL_KEY_FILE are both set: keep one",
        f"viewport-relay: RELAY_ADMIN_TOKEN_FILE: cannot read {missing!r}: No such file or directory",
    ]


def test_an_address_of_another_machine_names_the_host() -> None:
    ended = run({"SERVER_URL": "http://127.0.0.1:1", "RELAY_LISTEN_HOST": "192.0.2.1", "RELAY_MODE": "dev"})
    assert ended.returncode == 1
    (failed,) = (json.loads(line) for line in ended.stdout.splitlines() if "listen_failed" in line)
    assert failed["message"].startswith("RELAY_LISTEN_HOST: cannot listen on 192.0.2.1:")


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run({"SERVER_URL": "http://127.0.0.1:1", "RELAY_LISTEN_PORT": port})
    assert ended.returncode == 1
    failed = [json.loads(line) for line in ended.stdout.splitlines() if "listen_failed" in line]
    assert [(e["level"], e["message"]) for e in failed] == [
        ("error", f"RELAY_LISTEN_PORT: cannot listen on 127.0.0.1:{port}: Address already in use")
    ]
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stderr == ""


def test_help_lists_options_and_every_variable() -> None:
    ended = run({}, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    for variable in VARIABLES:
        shown = re.search(rf"(?m)^    {variable.name}[ \[]", ended.stdout)
        assert bool(shown) is variable.listed, variable.name
        if variable.option:
            assert f"--{variable.option}=" in ended.stdout
    assert "RELAY_INTERNAL_KEY (or RELAY_INTERNAL_KEY_FILE)" in ended.stdout
    assert "--dev " in ended.stdout
