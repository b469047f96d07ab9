from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.prompts import Prompt


def test_scaling_keeps_the_centres_of_pixels() -> None:
    prompt = Prompt(((0.0, 0.0), (9.0, 4.0)), ((1.0, 1.0),), (0.0, 0.0, 9.0, 4.0)).scaled(2.0, 3.0)
    assert prompt.positive == ((0.5, 1.0), (18.5, 13.0))
    assert prompt.negative == ((2.5, 4.0),)
    assert prompt.box == (0.5, 1.0, 18.5, 13.0)


def test_scaling_is_reversible() -> None:
    prompt = Prompt(((3.0, 4.0),), (), (1.0, 2.0, 5.0, 6.0))
    assert prompt.scaled(4.0, 0.5).scaled(0.25, 2.0) == prompt
    assert Prompt(((3.0, 4.0),)).scaled(2, 2).box is None


@pytest.mark.parametrize("negative", [(), ((1.0, 1.0),)])
def test_prompt_without_click_and_box_is_refused(negative: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(InputError, match="no positive click and no box"):
        Prompt(negative=negative)


@pytest.mark.parametrize("box", [(5.0, 0.0, 4.0, 9.0), (0.0, 5.0, 9.0, 4.0)])
def test_a_box_that_ends_before_it_starts_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="ends before it starts"):
        Prompt(box=box)


def test_a_box_of_one_pixel_is_a_box() -> None:
    assert Prompt(box=(3.0, 3.0, 3.0, 3.0)).box == (3.0, 3.0, 3.0, 3.0)
