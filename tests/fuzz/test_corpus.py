"""Every input of the corpus ends in a result or a refusal."""

from __future__ import annotations

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    target, seeds = TARGETS[name]
    kept = corpus.read(name)
    assert kept, "the corpus of this target is missing"
    for data in (*seeds, *kept):
        target(data)


def test_every_corpus_has_a_target() -> None:
    assert {path.stem for path in corpus.FOLDER.glob("*.txt")} == set(TARGETS)
