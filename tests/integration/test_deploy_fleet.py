"""The examples of a fleet: what compose.yaml, haproxy.cfg and kubernetes.yaml say fits together, and the relay takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from viewport_relay.config import VARIABLES, Config, ConfigError, load
from viewport_relay.noise.keys import StaticKey

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = {v.name for v in VARIABLES} | {f"{v.name}_FILE" for v in VARIABLES if v.secret}
SECRET = "a-long-enough-random-value-0123456789"

#: The key file and Redis password of the example are placeholders by another name.
VALUES = {"noise-private-key": StaticKey.generate().private_text(), "redis-url": "redis://127.0.0.1:6379"}


# -- compose ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


def relays(compose: Any) -> dict[str, dict[str, str]]:
    """The environment of each relay, as compose hands it over."""
    found = {}
    for name, service in compose["services"].items():
        if name.startswith("relay-"):
            found[name] = {
                key: re.sub(r"\$\{[A-Z_]+:\?[^}]*\}", SECRET, value)
                for key, value in service["environment"].items()
            }
    return found


def test_compose_has_two_relays_whose_settings_are_taken(compose: Any) -> None:
    loaded = {name: load(environ) for name, environ in relays(compose).items()}
    assert len(loaded) == 2
    for name, config in loaded.items():
        assert (config.warnings, config.relay_id, config.backplane_mode) == ((), name, "redis")
        assert config.bus_enabled and config.client_redirect_enabled
    assert len({config.listen_port for config in loaded.values()}) == 2


def test_compose_says_nothing_in_vain(compose: Any) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services)
        assert name == "platform" or service["network_mode"] == "service:platform"
        for volume in service.get("volumes", ()):
            assert (DEPLOY / volume.split(":")[0]).is_file()
    for environ in relays(compose).values():
        assert set(environ) <= NAMES
    assert not any("replace" in str(service) for service in services.values())


def test_secrets_of_compose_must_be_given(compose: Any) -> None:
    secret = {v.name for v in VARIABLES if v.secret} - {"RELAY_REDIS_URL"}
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if name in secret or name == "DEV_CREDENTIAL":
                assert value.startswith("${" + name + ":?"), name


def test_compose_waits_for_the_drain(compose: Any) -> None:
    for name, environ in relays(compose).items():
        assert (
            int(compose["services"][name]["stop_grace_period"].rstrip("s"))
            >= load(environ).drain_seconds + 15
        )


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


def test_the_balancer_knows_the_relays_and_keeps_a_workspace_together(compose: Any) -> None:
    backend = sections()["backend relays"]
    servers = {word[1]: word[2] for line in backend if (word := line.split())[0] == "server"}
    assert servers == {
        name: f"127.0.0.1:{environ['RELAY_LISTEN_PORT']}" for name, environ in relays(compose).items()
    }
    assert {"balance url_param workspaceId", "hash-type consistent", "option httpchk GET /ready"} <= set(
        backend
    )
    assert "default_backend relays" in sections()["frontend peers"]
    (bound,) = (line.split(":")[1] for line in sections()["frontend peers"] if line.startswith("bind"))
    assert any(port.endswith(f":{bound}") for port in compose["services"]["platform"]["ports"])


def test_the_balancer_is_more_patient_than_the_pings(compose: Any) -> None:
    (tunnel,) = (line.split()[2] for line in sections()["defaults"] if line.startswith("timeout tunnel"))
    for environ in relays(compose).values():
        assert int(tunnel.rstrip("m")) * 60_000 > 2 * load(environ).ping_interval_ms


# -- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    return {document["kind"]: document for document in documents}


def container(manifests: dict[str, Any]) -> Any:
    (one,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return one


def environment(manifests: dict[str, Any], folder: Path, secrets: dict[str, str]) -> dict[str, str]:
    """As the container gets it, with its secret files in `folder`."""
    mount = container(manifests)["volumeMounts"][0]["mountPath"]
    for name, value in secrets.items():
        (folder / name).write_text(value)
    return {
        entry["name"]: entry["value"].replace(mount, str(folder))
        if "value" in entry
        else "viewport-relay-5d4f-x2x"
        for entry in container(manifests)["env"]
    }


@pytest.fixture
def config(manifests: dict[str, Any], tmp_path: Path) -> Config:
    secrets = {name: VALUES.get(name, SECRET) for name in manifests["Secret"]["stringData"]}
    return load(environment(manifests, tmp_path, secrets))


def test_kubernetes_settings_are_taken(config: Config, manifests: dict[str, Any]) -> None:
    assert config.warnings == ()
    assert (config.mode, config.backplane_mode, config.bus_enabled) == ("prod", "redis", True)
    assert {entry["name"] for entry in container(manifests)["env"]} <= NAMES


def test_placeholders_end_it(manifests: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(environment(manifests, tmp_path, manifests["Secret"]["stringData"]))
    said = "\n".join(error.value.problems)
    for name in ("RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN", "RELAY_BUS_HMAC_KEY", "RELAY_NOISE_PRIVATE_KEY"):
        assert f"{name} is a placeholder" in said


def labels(manifests: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield manifests["Deployment"]["spec"]["selector"]["matchLabels"]
    yield manifests["Service"]["spec"]["selector"]
    yield manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    for spread in manifests["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        yield spread["labelSelector"]["matchLabels"]


def test_everything_selects_the_pods(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert all(selected == pod for selected in labels(manifests))


def test_ports_and_secrets_exist(manifests: dict[str, Any], config: Config) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    assert ports["ws"] == config.listen_port
    assert config.admin_listen is not None and config.admin_listen[1] == ports["admin"]
    assert {port["targetPort"] for port in manifests["Service"]["spec"]["ports"]} <= set(ports)
    volume = manifests["Deployment"]["spec"]["template"]["spec"]["volumes"][0]["secret"]
    assert volume["secretName"] == manifests["Secret"]["metadata"]["name"]
    files = {
        e["value"].rpartition("/")[2] for e in container(manifests)["env"] if e["name"].endswith("_FILE")
    }
    assert files == set(manifests["Secret"]["stringData"])


def test_probes_and_patience(manifests: dict[str, Any], config: Config) -> None:
    one, spec = container(manifests), manifests["Deployment"]["spec"]["template"]["spec"]
    paths = {
        probe: one[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    pause = int(one["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= pause + config.drain_seconds + 15


def test_the_budget_lets_a_node_be_drained(manifests: dict[str, Any]) -> None:
    assert (
        0
        < manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"]
        < manifests["Deployment"]["spec"]["replicas"]
    )
