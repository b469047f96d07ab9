from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from baps.blackbox.volumes.identity import identify, is_same_answer

DECLARED = {"version": "2.6.0", "license": "Apache-2.0"}
ANSWER = np.random.default_rng(0).random((24, 20, 16)) > 0.5


def flipped(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The answer with some voxels less."""
    answer = ANSWER.copy()
    answer.reshape(-1)[np.flatnonzero(ANSWER)[:count]] = False
    return answer


def test_answers_that_differ_by_rounding_are_the_same() -> None:
    empty = np.zeros_like(ANSWER)
    assert is_same_answer(ANSWER, flipped(20))
    assert not is_same_answer(ANSWER, flipped(400))
    assert is_same_answer(empty, empty)
    assert not is_same_answer(ANSWER, empty)


def test_the_identity_is_that_of_declaration_and_answer() -> None:
    first = identify(DECLARED, ANSWER, None)
    assert identify(dict(reversed(DECLARED.items())), ANSWER.copy(), None) == first
    assert identify({**DECLARED, "license": "other"}, ANSWER, None) != first
    assert identify(DECLARED, flipped(1), None) != first


def test_a_known_model_keeps_its_identity_over_rounding(tmp_path: Path) -> None:
    known = tmp_path / "adapters" / "volume_models.json"
    first = identify(DECLARED, ANSWER, known)
    assert first == identify(DECLARED, ANSWER, None)
    assert identify(DECLARED, flipped(20), known) == first
    second = identify(DECLARED, flipped(400), known)
    assert second != first
    assert identify(DECLARED, flipped(390), known) == second
    assert identify({**DECLARED, "version": "2.7.0"}, ANSWER, known) not in (first, second)
    assert len(json.loads(known.read_text())) == 3


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', '{"x": {"declared": 1, "answer": "zz"}}'])
def test_a_broken_file_is_replaced(tmp_path: Path, content: str) -> None:
    known = tmp_path / "volume_models.json"
    known.write_text(content)
    first = identify(DECLARED, ANSWER, known)
    assert identify(DECLARED, flipped(20), known) == first


def test_a_record_of_another_probe_is_no_match(tmp_path: Path) -> None:
    known = tmp_path / "volume_models.json"
    identify(DECLARED, ANSWER[:3], known)
    assert identify(DECLARED, ANSWER, known) == identify(DECLARED, ANSWER, None)


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert identify(DECLARED, ANSWER, tmp_path / "file" / "models.json") == identify(DECLARED, ANSWER, None)
