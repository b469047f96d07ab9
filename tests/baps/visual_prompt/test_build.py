from __future__ import annotations

import pytest
import torch

from baps.blackbox import Prompt
from baps.errors import InputError
from baps.visual_prompt import KINDS, STATISTICS, build_visual_prompt, image_statistics
from baps.visual_prompt.interface import as_grey_levels


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_an_identity_until_it_is_trained(kind: str) -> None:
    made = build_visual_prompt(kind, seed=2)
    assert (made.kind, made.features) == (kind, STATISTICS)
    images = torch.randint(0, 256, (2, 3, 128, 128), generator=torch.Generator().manual_seed(0)).float()
    prompts = [Prompt(((3.0, 4.0),)), Prompt(box=(1.0, 2.0, 30.0, 40.0))]
    assert torch.equal(made.change(images, image_statistics(images), prompts), images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_can_be_differentiated_and_change_keeps_no_graph(kind: str) -> None:
    made = build_visual_prompt(kind)
    images = torch.zeros(1, 3, 64, 64)
    features, prompts = image_statistics(images), [Prompt(((3.0, 4.0),))]
    assert made.code(features, prompts, 64).requires_grad
    assert not made.change(images, features, prompts).requires_grad


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'vp'.*basis, concat"):
        build_visual_prompt("vp")


def test_grey_levels_are_rounded_not_truncated() -> None:
    levels = as_grey_levels(torch.tensor([-3.0, 0.4, 0.6, 99.5001, 254.7, 300.0]))
    assert levels.tolist() == [0, 0, 1, 100, 255, 255]
