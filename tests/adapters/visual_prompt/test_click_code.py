from __future__ import annotations

import math

import numpy as np
import torch

from baps.adapters.visual_prompt.click_code import CLICK_LENGTH, click_code, fourier_matrix
from baps.prompts import Prompt

CLICKS = [Prompt(((10.0, 20.0),)), Prompt(((200.0, 3.0), (50.0, 60.0)), ((0.0, 0.0),))]
FOURIER = torch.randn((2, CLICK_LENGTH // 2), generator=torch.Generator().manual_seed(0))


def test_the_matrix_is_normal() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        matrix = fourier_matrix()
    assert matrix.shape == FOURIER.shape
    assert abs(float(matrix.mean())) < 0.15
    assert abs(float(matrix.std()) - 1) < 0.15


def test_click_code_by_hand() -> None:
    code = click_code(CLICKS[:1], 224, FOURIER)
    normalised = (np.array([10.0, 20.0]) + 0.5) / 224 * 2 - 1
    angle = normalised @ FOURIER.numpy().astype(float) * 2 * math.pi
    np.testing.assert_allclose(code.numpy(), [np.concatenate([np.sin(angle), np.cos(angle)])], atol=1e-4)


def test_click_code_scales_with_the_canvas() -> None:
    (scaled,) = [prompt.scaled(0.5, 0.5) for prompt in CLICKS[:1]]
    expected = click_code(CLICKS[:1], 224, FOURIER)
    torch.testing.assert_close(click_code([scaled], 112, FOURIER), expected, atol=1e-4, rtol=0)


def test_several_clicks_are_averaged() -> None:
    together = click_code([CLICKS[1]], 224, FOURIER)
    apart = click_code([Prompt((point,)) for point in CLICKS[1].positive], 224, FOURIER)
    torch.testing.assert_close(together[0], apart.mean(0))


def test_a_box_counts_as_two_corners() -> None:
    box = click_code([Prompt(box=(3.0, 4.0, 50.0, 60.0))], 224, FOURIER)
    torch.testing.assert_close(box, click_code([Prompt(((3.0, 4.0), (50.0, 60.0)))], 224, FOURIER))
