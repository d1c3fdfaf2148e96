"""`viewport-relay config`: effective settings, their source, masked secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from viewport_relay.admin.settings import MASK, SET
from viewport_relay.cli.main import main
from viewport_relay.config import VARIABLES

STRONG = "correct-horse-battery-staple-17"


def config(environ: dict[str, str], *arguments: str) -> Result:
    runner = CliRunner(env={"SERVER_URL": "https://platform.example", **environ})
    return runner.invoke(main, ["config", *arguments])


@pytest.fixture(autouse=True)
def _clean(clean_environ: pytest.MonkeyPatch) -> None:
    """Remove relay settings from the environment of the test run."""


def test_json_has_every_setting_in_order_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(STRONG)
    done = config({"PORT": "9000", "RELAY_INTERNAL_KEY_FILE": str(file)}, "--json")
    assert done.exit_code == 0
    settings = json.loads(done.output)["settings"]
    assert [entry["name"] for entry in settings] == [variable.name for variable in VARIABLES]
    by_name = {entry["name"]: entry for entry in settings}
    assert by_name["RELAY_LISTEN_PORT"] == {"name": "RELAY_LISTEN_PORT", "value": "9000", "source": "PORT"}
    assert by_name["RELAY_INTERNAL_KEY"] == {
        "name": "RELAY_INTERNAL_KEY",
        "value": SET,
        "source": "RELAY_INTERNAL_KEY_FILE",
    }
    assert by_name["RELAY_ADMIN_TOKEN"]["value"] == "none"
    assert by_name["RELAY_JWKS_URL"]["value"] == "https://platform.example/api/.well-known/jwks.json"
    assert by_name["RELAY_JWKS_URL"]["source"] == "default"
    assert by_name["RELAY_PROXY_PROTOCOL"]["value"] == "0"


@pytest.mark.parametrize("arguments", [(), ("--all",), ("--json",)])
@pytest.mark.parametrize("variable", [v for v in VARIABLES if v.secret], ids=lambda variable: variable.name)
def test_no_secret_is_shown(variable: object, arguments: tuple[str, ...]) -> None:
    name = variable.name  # type: ignore[attr-defined]
    secret = (
        "rediss://user:hunter2hunter2@redis.example/0?x=hunter2"
        if name.endswith("_URL")
        else "hunter2hunter2-xyz"
    )
    done = config({name: secret}, *arguments)
    assert done.exit_code == 0
    assert "hunter2" not in done.output + done.stderr
    assert (f"rediss://{MASK}@redis.example/0?{MASK}" if name.endswith("_URL") else SET) in done.output


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        (
            "RELAY_TRUSTED_PROXIES",
            "10.0.0.0/8, 127.0.0.1,unix:,junk,fd00::/8",
            "10.0.0.0/8,127.0.0.1/32,fd00::/8,unix:",
        ),
        ("RELAY_TRUSTED_PROXIES", "unix:", "unix:"),
        ("RELAY_TRUSTED_PROXIES", "junk", "none"),
        ("RELAY_ADMIN_LISTEN", "7782", "127.0.0.1:7782"),
        ("RELAY_ADMIN_LISTEN", "[::1]:7782", "[::1]:7782"),
        ("RELAY_REDIS_SENTINELS", "a.example, [::1]:5", "a.example:26379,[::1]:5"),
        (
            "RELAY_ALLOWED_ORIGINS",
            "https://a.example https://b.example",
            "https://a.example,https://b.example",
        ),
        ("RELAY_NO_PROXY", ".svc, 10.0.0.0/8", ".svc,10.0.0.0/8"),
        ("RELAY_PROXY_PROTOCOL", "yes", "1"),
        ("RELAY_PING_INTERVAL_MS", "10s", "10000"),
    ],
)
def test_a_value_is_shown_as_the_setting_is_written(name: str, value: str, shown: str) -> None:
    def shown_for(text: str) -> str:
        settings = json.loads(config({name: text}, "--json").stdout)["settings"]
        return next(row["value"] for row in settings if row["name"] == name)

    assert shown_for(value) == shown
    assert shown == "none" or shown_for(shown) == shown


def test_user_info_of_urls_is_masked() -> None:
    done = config({"RELAY_VALIDATE_URL": "https://user:hunter2@platform.example/v"})
    assert "hunter2" not in done.output
    assert f"https://{MASK}@platform.example/v" in done.output


def test_defaults_are_listed_with_all_only() -> None:
    short, everything = config({"RELAY_MAX_LOGS": "7"}), config({"RELAY_MAX_LOGS": "7"}, "--all")
    assert "RELAY_MAX_LOGS" in short.output
    assert "RELAY_DRAIN_SECONDS" not in short.output
    assert "--all shows them" in short.output
    for variable in VARIABLES:
        assert variable.name in everything.output


def test_all_configuration_errors_are_listed_with_the_exit_status_of_the_relay() -> None:
    done = config({"RELAY_LISTEN_PORT": "x", "RELAY_MODE": "y"})
    assert done.exit_code == 78
    assert done.stdout == ""
    assert "✗ RELAY_LISTEN_PORT: got 'x'" in done.stderr
    assert "✗ RELAY_MODE: got 'y'" in done.stderr


def test_warnings_go_to_standard_error() -> None:
    done = config({"RELAY_FRAME_MAXBYTES": "1"})
    assert done.exit_code == 0
    assert "RELAY_FRAME_MAXBYTES is set, but there is no such setting" in done.stderr
    assert "no such setting" not in done.stdout


def test_dev() -> None:
    done = CliRunner(env={"RELAY_MODE": "prod"}).invoke(main, ["config", "--dev"])
    assert done.exit_code == 78
    assert "dev platform" in done.stderr
