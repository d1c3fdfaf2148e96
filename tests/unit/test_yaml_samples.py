"""Every YAML block of the pages and every YAML file of deploy/: each parses, without a key that is there twice.

Traefik is not installed on the machines that run these tests. Its sample is read as Traefik reads it: the names fit together,
and it publishes the paths that the other proxies' samples publish.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
FILES = sorted((ROOT / "deploy").rglob("*.y*ml"))

BLOCKS = {
    f"{page.relative_to(ROOT)}:{number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```ya?ml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE), 1
    )
}


class Strict(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys; Traefik, Kubernetes and Compose refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read(text: str) -> list[Any]:
    return list(yaml.load_all(text, Strict))


def test_a_key_that_is_there_twice_is_found() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="twice"):
        read("a: 1\nb:\n  c: 1\n  c: 2\n")


@pytest.mark.parametrize("where", BLOCKS)
def test_blocks_of_the_pages_parse(where: str) -> None:
    assert all(document for document in read(BLOCKS[where]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_deploy_parse(path: Path) -> None:
    assert all(document for document in read(path.read_text("utf-8")))


# -- Traefik -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def http() -> Any:
    (found,) = [block for block in BLOCKS.values() if "routers:" in block]
    return read(found)[0]["http"]


def test_each_router_of_traefik_names_a_service_and_middlewares_that_exist(http: Any) -> None:
    assert set(http) <= {"routers", "services", "middlewares"}
    assert http["routers"] and http["services"]
    for router in http["routers"].values():
        assert set(router) <= {"entryPoints", "rule", "service", "middlewares", "tls", "priority"}
        assert router["service"] in http["services"]
        assert set(router.get("middlewares", ())) <= set(http.get("middlewares", {}))
        assert router["entryPoints"] and all(isinstance(name, str) for name in router["entryPoints"])
    used = {router["service"] for router in http["routers"].values()}
    assert used == set(http["services"]), "a service without a router"


def test_traefiks_rule_publishes_what_the_other_samples_publish(http: Any) -> None:
    page = (ROOT / "docs/how-to/behind-a-proxy.md").read_text("utf-8")
    (haproxy,) = re.findall(r"unless \{ path (.*?) \}", page)
    (caddy,) = re.findall(r"@peers path (.*)", page)
    (router,) = http["routers"].values()
    paths = re.findall(r"Path\(`([^`]+)`\)", router["rule"])
    assert paths == haproxy.split() == caddy.split()
    # Matchers of Traefik 3, joined by && and ||: nothing else is left of the rule.
    rest = re.sub(r"(Host|Path)\(`[^`]+`\)", "M", router["rule"])
    assert rest == "M && (M || M || M)"


def test_traefik_leads_to_where_the_relay_listens(http: Any) -> None:
    (service,) = http["services"].values()
    balancer = service["loadBalancer"]
    assert balancer["servers"] == [{"url": "http://127.0.0.1:7781"}]
    assert balancer["healthCheck"]["path"] == "/ready"
    assert re.fullmatch(r"[0-9]+s", balancer["healthCheck"]["interval"])
