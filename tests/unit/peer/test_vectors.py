"""Test vectors: the peers against the published file, and the checker against damaged files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.vectors import check_vectors, make_vectors

FILE = Path(make_vectors.__file__).with_name("relay-peers.json")
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text("utf-8"))


@pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=lambda vector: vector["id"])
def test_key_exchange(vector: dict[str, Any]) -> None:
    check_vectors.check_exchange(DOCUMENT, vector)


@pytest.mark.parametrize("vector", DOCUMENT["linkVectors"], ids=lambda vector: vector["id"])
def test_link(vector: dict[str, Any]) -> None:
    check_vectors.check_link(vector)


@pytest.mark.parametrize("vector", DOCUMENT["envelopeVectors"], ids=lambda vector: vector["id"])
def test_envelope(vector: dict[str, Any]) -> None:
    check_vectors.check_envelope(vector)


def test_the_file_equals_the_output_of_the_script() -> None:
    assert make_vectors.text() == FILE.read_text("utf-8")


def test_the_command_names_every_vector(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_vectors.main([str(FILE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok own-ik-first"
    assert lines[-1] == f"{len(lines) - 1} vectors hold"


def _damaged() -> list[tuple[str, dict[str, Any]]]:
    cases: list[tuple[str, dict[str, Any]]] = []
    for path in (
        ("vectors", 0, "init", "encryptedClientStatic"),
        ("vectors", 1, "response", "encryptedMetadata"),
        ("vectors", 2, "response", "proof"),
        ("vectors", 3, "sessionKey"),
        ("linkVectors", 0, "message1"),
        ("linkVectors", 1, "message2"),
        ("linkVectors", 2, "psk"),
        ("linkVectors", 2, "relayMessage"),
        ("envelopeVectors", 1, "tag"),
    ):
        document = copy.deepcopy(DOCUMENT)
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        value = place[path[-1]]
        place[path[-1]] = ("B" if value[0] == "A" else "A") + value[1:]
        cases.append((".".join(map(str, path)), document))
    return cases


@pytest.mark.parametrize(
    ("name", "document"), _damaged(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_command_stops_at_a_difference(
    name: str, document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document), "utf-8")
    assert check_vectors.main([str(path)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "status"),
    [("{}", 1), ("no JSON", 2), ('{"vectors":[{"id":"x"}]}', 1)],
    ids=["empty", "text", "schema"],
)
def test_the_command_refuses_other_files(content: str, status: int, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, "utf-8")
    assert check_vectors.main([str(path)]) == status


def test_the_command_refuses_no_file(tmp_path: Path) -> None:
    assert check_vectors.main([str(tmp_path / "absent.json")]) == 2
    assert check_vectors.main([]) == 2
