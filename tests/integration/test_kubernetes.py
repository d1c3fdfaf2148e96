"""deploy/kubernetes as `kubectl kustomize` builds it: consistent, and accepted by the relay."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import ROOT, section, version
from viewport_relay.config import VARIABLES, Config, ConfigError, load
from viewport_relay.noise.keys import StaticKey

DEPLOY = ROOT / "deploy/kubernetes"
NAMES = {v.name for v in VARIABLES} | {f"{v.name}_FILE" for v in VARIABLES if v.secret}
POD = "viewport-relay-5d4f-x2x"
SECRETS = {
    "internal-key": "a-long-enough-random-value-0123456789",
    "admin-token": "another-long-enough-random-value-01234",
    "metrics-token": "a-fourth-long-enough-random-value-0123",
    "bus-hmac-key": "a-third-long-enough-random-value-01234",
    "noise-private-key": StaticKey.generate().private_text(),
    "redis-url": "rediss://:password@redis.example:6379",
}
PUBLISHED = ["/ws", "/health", "/.well-known/viewport-relay.json"]

Manifests = dict[tuple[str, str], Any]

pytestmark = pytest.mark.kubectl


def build(folder: Path) -> Manifests:
    """Manifests by kind and name (without its hash), with every resource of the kustomization."""
    shutil.copytree(DEPLOY, folder, dirs_exist_ok=True)
    (folder / "secrets").mkdir()
    for name, value in SECRETS.items():
        (folder / "secrets" / name).write_text(value)
    path = folder / "kustomization.yaml"
    path.write_text(path.read_text("utf-8").replace("  # - ", "  - "))
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: Manifests = {}
    for document in yaml.safe_load_all(done.stdout):
        name = document["metadata"]["name"]
        found[document["kind"], name.rpartition("-")[0] if "data" in document else name] = document
    return found


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return build(tmp_path_factory.mktemp("kustomization"))


@pytest.fixture
def pod(manifests: Manifests) -> Any:
    return manifests["Deployment", "viewport-relay"]["spec"]["template"]


@pytest.fixture
def container(pod: Any) -> Any:
    (one,) = pod["spec"]["containers"]
    return one


def environment(
    manifests: Manifests, container: Any, folder: Path, secrets: dict[str, str]
) -> dict[str, str]:
    """The container's environment, with its secret files in `folder`."""
    mount = container["volumeMounts"][0]["mountPath"]
    for name, value in secrets.items():
        (folder / name).write_text(value)
    (source,) = (entry["configMapRef"]["name"] for entry in container["envFrom"])
    settings = manifests["ConfigMap", "viewport-relay"]
    assert settings["metadata"]["name"] == source
    given = {
        e["name"]: e["value"].replace(mount, str(folder)) if "value" in e else POD for e in container["env"]
    }
    return settings["data"] | given


@pytest.fixture
def config(manifests: Manifests, container: Any, tmp_path: Path) -> Config:
    return load(environment(manifests, container, tmp_path, SECRETS))


def test_the_settings_are_valid(config: Config, manifests: Manifests, container: Any) -> None:
    assert config.warnings == ()
    assert (config.mode, config.backplane_mode, config.bus_enabled, config.relay_id) == (
        "prod",
        "redis",
        True,
        POD,
    )
    assert {entry["name"] for entry in container["env"]} | set(
        manifests["ConfigMap", "viewport-relay"]["data"]
    ) <= NAMES


def test_placeholders_end_the_relay(manifests: Manifests, container: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(environment(manifests, container, tmp_path, dict.fromkeys(SECRETS, "replace-me")))
    said = "\n".join(error.value.errors)
    for name in ("RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN", "RELAY_BUS_HMAC_KEY", "RELAY_NOISE_PRIVATE_KEY"):
        assert f"{name} is a placeholder" in said


def selectors(manifests: Manifests) -> Iterator[dict[str, str]]:
    for (kind, _), one in manifests.items():
        if kind == "Service":
            yield one["spec"]["selector"]
        elif kind in {"Deployment", "PodDisruptionBudget", "PodMonitor"}:
            yield one["spec"]["selector"]["matchLabels"]
    spec = manifests["Deployment", "viewport-relay"]["spec"]["template"]["spec"]
    for spread in spec["topologySpreadConstraints"]:
        yield spread["labelSelector"]["matchLabels"]


def test_all_selectors_match_the_pods(manifests: Manifests, pod: Any) -> None:
    found = list(selectors(manifests))
    assert len(found) == 6
    assert all(one == pod["metadata"]["labels"] for one in found)


def test_operators_have_a_service_of_their_own(manifests: Manifests, container: Any, config: Config) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["ws"] == config.listen_port
    assert config.admin_listen is not None and config.admin_listen[1] == ports["admin"]
    targets = {
        name: [port["targetPort"] for port in one["spec"]["ports"]]
        for (kind, name), one in manifests.items()
        if kind == "Service"
    }
    assert targets == {"viewport-relay": ["ws"], "viewport-relay-admin": ["admin"]}


def test_secrets_are_the_files_that_the_settings_name(manifests: Manifests, pod: Any, container: Any) -> None:
    secret = manifests["Secret", "viewport-relay"]
    assert {name: base64.b64decode(value).decode() for name, value in secret["data"].items()} == SECRETS
    assert pod["spec"]["volumes"][0]["secret"]["secretName"] == secret["metadata"]["name"]
    files = {e["value"].rpartition("/")[2] for e in container["env"] if e["name"].endswith("_FILE")}
    assert files == set(SECRETS)


def test_only_the_paths_of_peers_are_published(manifests: Manifests) -> None:
    (rule,) = manifests["Ingress", "viewport-relay"]["spec"]["rules"]
    paths = rule["http"]["paths"]
    assert [path["path"] for path in paths] == PUBLISHED
    assert {path["pathType"] for path in paths} == {"Exact"}
    assert {path["backend"]["service"]["name"] for path in paths} == {"viewport-relay"}
    (route,) = manifests["HTTPRoute", "viewport-relay"]["spec"]["rules"]
    assert [match["path"] for match in route["matches"]] == [{"type": "Exact", "value": p} for p in PUBLISHED]
    assert [one["name"] for one in route["backendRefs"]] == ["viewport-relay"]


def test_the_ingress_names_its_class_and_keeps_workspaces_together(manifests: Manifests) -> None:
    ingress = manifests["Ingress", "viewport-relay"]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert (
        ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/upstream-hash-by"]
        == "$arg_workspaceId"
    )


def test_the_pod_monitor_names_the_generated_secret(manifests: Manifests, container: Any) -> None:
    (endpoint,) = manifests["PodMonitor", "viewport-relay"]["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    secret = manifests["Secret", "viewport-relay"]
    assert credentials == {"name": secret["metadata"]["name"], "key": "metrics-token"}
    assert endpoint["port"] in {port["name"] for port in container["ports"]}


def test_probes_and_time_to_drain(pod: Any, container: Any, config: Config) -> None:
    probes = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= pause + config.drain_seconds + 15


def test_the_budget_lets_a_node_be_drained(manifests: Manifests) -> None:
    budget = manifests["PodDisruptionBudget", "viewport-relay"]["spec"]["maxUnavailable"]
    assert 0 < budget < manifests["Deployment", "viewport-relay"]["spec"]["replicas"]


def test_the_pods_keep_the_restricted_standard(pod: Any, container: Any) -> None:
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_image_is_of_this_version(container: Any) -> None:
    assert container["image"] == f"registry.example/viewport-relay:{version()}"


def test_the_page_writes_the_secrets_that_the_kustomization_reads() -> None:
    steps = section("docs/how-to/kubernetes.md", "## Fill it in")
    assert all(f" secrets/{name}\n" in steps for name in SECRETS)


def test_a_missing_secret_file_stops_the_build(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "copy")
    done = subprocess.run(
        ["kubectl", "kustomize", tmp_path / "copy"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and "secrets/internal-key" in done.stderr
