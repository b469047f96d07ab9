from __future__ import annotations

from pathlib import Path

import pytest

from baps.annotations import first_prompts
from baps.annotations.first_prompts import FirstPrompts
from baps.prompts import Prompt

FIRST, SECOND = Prompt(((3.0, 4.0),)), Prompt(((5.0, 6.0),), ((1.0, 2.0),), (0.0, 0.0, 7.0, 8.0))


def test_the_first_prompt_on_a_slice_is_kept_and_read_back(tmp_path: Path) -> None:
    prompts = FirstPrompts(tmp_path / "new" / "prompts.sqlite")
    assert prompts.read("a", "spleen") == {}
    prompts.add("a", "spleen", 7, FIRST)
    prompts.add("a", "spleen", 7, SECOND)
    prompts.add("a", "spleen", 2, SECOND)
    prompts.add("a", "liver", 7, SECOND)
    prompts.add("b", "spleen", 9, FIRST)
    again = FirstPrompts(tmp_path / "new" / "prompts.sqlite")
    assert again.read("a", "spleen") == {2: SECOND, 7: FIRST}
    assert again.read("b", "spleen") == {9: FIRST}
    assert again.read("c", "spleen") == {}


def test_the_oldest_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_prompts, "_MAX_PROMPTS", 500)
    prompts = FirstPrompts(tmp_path / "prompts.sqlite")
    for index in range(1000):
        prompts.add("a", "spleen", index, FIRST)
    assert sorted(prompts.read("a", "spleen")) == list(range(500, 1000))


def test_a_damaged_file_has_no_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.sqlite"
    file.write_text("rubbish")
    assert FirstPrompts(file).read("a", "spleen") == {}
