"""deploy/compose*.yaml and haproxy.cfg: consistent, accepted by the relay, and the one to try runs."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ports
from tests.drill.relay import until
from tests.pages import ROOT, version
from viewport_relay.config import VARIABLES, load

DEPLOY = ROOT / "deploy"
NAMES = {v.name for v in VARIABLES} | {f"{v.name}_FILE" for v in VARIABLES if v.secret} | {"DEV_CREDENTIAL"}
SECRET = "a-long-enough-random-value-0123456789"
GIVEN = {"SERVER_URL": "https://platform.example", "RELAY_PUBLIC_WS_BASE_URL": "wss://relay.example"}
IMAGE = {"RELAY_LISTEN_HOST": "0.0.0.0"}  # variables of the image
DRAIN_SECONDS = load({"SERVER_URL": "http://a"}).drain_seconds
FILES = ("compose.yaml", "compose-try.yaml", "compose-fleet.yaml")


def read(file: str) -> Any:
    return yaml.safe_load((DEPLOY / file).read_text("utf-8"))


def interpolated(value: str) -> str:
    """A value as compose substitutes it, with the operator's exported variables."""
    return re.sub(r"\$\{([A-Z_]+):\?[^}]*\}", lambda match: GIVEN.get(match[1], SECRET), value)


def environment(service: Any) -> dict[str, str]:
    return {name: interpolated(value) for name, value in service.get("environment", {}).items()}


# -- every file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_settings_exist_and_secrets_are_required(file: str) -> None:
    secret = {v.name for v in VARIABLES if v.secret} - {"RELAY_REDIS_URL"} | {"DEV_CREDENTIAL"}
    for service in read(file)["services"].values():
        for name, value in service.get("environment", {}).items():
            assert name in NAMES, name
            if name in secret:
                assert value.startswith("${" + name + ":?"), name


@pytest.mark.parametrize("file", FILES)
def test_every_relay_is_restricted_and_has_time_to_drain(file: str) -> None:
    relays = {n: s for n, s in read(file)["services"].items() if n.startswith("relay")}
    assert relays
    for service in relays.values():
        assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["stop_grace_period"].rstrip("s")) >= DRAIN_SECONDS + 15


@pytest.mark.parametrize("file", FILES)
def test_ports_are_published_on_loopback_only(file: str) -> None:
    for service in read(file)["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("file", FILES)
def test_the_first_lines_export_the_required_variables(file: str) -> None:
    text = (DEPLOY / file).read_text("utf-8")
    head = text.partition("\nname:")[0]
    for name in re.findall(r"\$\{([A-Z_]+):\?", text):
        assert re.search(rf"export\b.*\b{name}=", head), name
    for secret in read(file).get("secrets", {}).values():
        assert f"deploy/{secret['file'].removeprefix('./')}" in head


# -- one relay ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one() -> Any:
    return read("compose.yaml")["services"]["relay"]


def test_the_relay_takes_its_settings(one: Any, tmp_path: Path) -> None:
    for name in one["secrets"]:
        (tmp_path / name).write_text(SECRET)
        (tmp_path / name).chmod(0o444)
    environ = {n: v.replace("/run/secrets", str(tmp_path)) for n, v in environment(one).items()}
    config = load(environ | IMAGE)
    assert (config.warnings, config.mode, config.internal_key, config.admin_tokens) == (
        (),
        "prod",
        SECRET,
        (SECRET,),
    )
    assert config.validate_url is not None and config.validate_url.startswith(GIVEN["SERVER_URL"])


def test_ports_secrets_and_network_fit_its_settings(one: Any) -> None:
    environ, whole = environment(one), read("compose.yaml")
    assert {port.rpartition(":")[2] for port in one["ports"]} == {
        "7781",
        environ["RELAY_ADMIN_LISTEN"].rpartition(":")[2],
    }
    assert set(one["secrets"]) == set(whole["secrets"])
    assert {v for n, v in environ.items() if n.endswith("_FILE")} == {
        f"/run/secrets/{n}" for n in one["secrets"]
    }
    (pool,) = whole["networks"]["default"]["ipam"]["config"]
    gateway = next(ipaddress.ip_network(pool["subnet"]).hosts())
    assert environ["RELAY_TRUSTED_PROXIES"] == str(gateway)


def test_restart_policy_and_health_check(one: Any) -> None:
    assert one["restart"] == "unless-stopped"
    assert one["healthcheck"]["test"] == ["CMD", "viewport-relay", "healthcheck"]
    assert one["image"] == f"viewport-relay:{version()}"


# -- the one to try ------------------------------------------------------------------------------------------------


def test_the_commands_of_the_first_lines(free_port: int) -> None:
    """The command and environment of the file, then the demo that `exec` runs; with the test's ports."""
    service = read("compose-try.yaml")["services"]["relay"]
    platform = ports.free_port()
    moved = {"7781": str(free_port), "7790": str(platform)}
    environ = {n: v for n, v in os.environ.items() if not n.startswith("RELAY_") and n != "SERVER_URL"}
    environ |= {"PYTHONPATH": str(ROOT), "RELAY_LISTEN_PORT": str(free_port)} | IMAGE | environment(service)
    program, *command = service["command"]
    assert program == "viewport-relay"
    main = [sys.executable, "-m", "viewport_relay.cli.main"]
    text = (DEPLOY / "compose-try.yaml").read_text("utf-8")
    (demo,) = re.findall(r"exec relay \\\n# +viewport-relay (demo .*)", text)
    for old, new in moved.items():
        assert old in demo
        demo = demo.replace(old, new)
    with subprocess.Popen(
        [*main, *(moved.get(word, word) for word in command)], env=environ, stdout=subprocess.PIPE, text=True
    ) as relay:
        try:
            assert relay.stdout is not None
            until(lambda: "jwks_fetched" in relay.stdout.readline(), 30, "the key set")
            done = subprocess.run(
                [*main, *demo.split()], env=environ, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0 and "EXCHANGE OK" in done.stdout, done.stdout + done.stderr
        finally:
            relay.terminate()
        assert relay.wait(20) == 0


# -- a fleet -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> Any:
    return read("compose-fleet.yaml")


def relays(compose: Any) -> dict[str, dict[str, str]]:
    """The environment of each relay after substitution."""
    found = {}
    for name, service in compose["services"].items():
        if name.startswith("relay-"):
            found[name] = environment(service)
    return found


def test_the_fleet_has_two_relays_with_valid_settings(compose: Any) -> None:
    loaded = {name: load(environ) for name, environ in relays(compose).items()}
    assert len(loaded) == 2
    for name, config in loaded.items():
        assert (config.warnings, config.relay_id, config.backplane_mode) == ((), name, "redis")
        assert config.bus_enabled and config.client_redirect_enabled
    assert len({config.listen_port for config in loaded.values()}) == 2


def test_all_files_and_services_of_the_fleet_exist(compose: Any) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services)
        assert name == "platform" or service["network_mode"] == "service:platform"
        for volume in service.get("volumes", ()):
            assert (DEPLOY / volume.split(":")[0]).is_file()
    assert not any("replace" in str(service) for service in services.values())


# -- the load balancer --------------------------------------------------------------------------------------------


def sections() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (DEPLOY / "haproxy.cfg").read_text("utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text and not line[0].isspace():
            lines = found[text] = []
        elif text:
            lines.append(text)
    return found


def test_the_balancer_has_the_relays_and_hashes_by_workspace(compose: Any) -> None:
    backend = sections()["backend relays"]
    servers = {word[1]: word[2] for line in backend if (word := line.split())[0] == "server"}
    assert servers == {
        name: f"127.0.0.1:{environ['RELAY_LISTEN_PORT']}" for name, environ in relays(compose).items()
    }
    assert {
        "balance hash url_param(workspaceId),url_dec",
        "hash-type consistent",
        "option httpchk GET /ready",
    } <= set(backend)
    assert "default_backend relays" in sections()["frontend peers"]
    (bound,) = (line.split(":")[1] for line in sections()["frontend peers"] if line.startswith("bind"))
    assert any(port.endswith(f":{bound}") for port in compose["services"]["platform"]["ports"])


def test_the_balancers_time_outs_are_longer_than_the_ping_interval(compose: Any) -> None:
    (tunnel,) = (line.split()[2] for line in sections()["defaults"] if line.startswith("timeout tunnel"))
    for environ in relays(compose).values():
        assert int(tunnel.rstrip("m")) * 60_000 > 2 * load(environ).ping_interval_ms
