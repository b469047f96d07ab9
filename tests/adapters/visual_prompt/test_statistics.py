from __future__ import annotations

import pytest
import torch

from baps.adapters.visual_prompt import STATISTICS, image_statistics


def _images(count: int = 3, side: int = 96) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("side", [32, 64, 128, 200])
def test_number_of_features(side: int) -> None:
    features = image_statistics(_images(side=side))
    assert features.shape == (3, STATISTICS)
    assert bool(torch.isfinite(features).all())


def test_images_do_not_mix() -> None:
    images = _images()
    images[1] *= 0.2
    together = image_statistics(images)
    for row in range(3):
        torch.testing.assert_close(image_statistics(images[row : row + 1])[0], together[row])
    assert not torch.allclose(together[0], together[1])


def test_a_constant_image_by_hand() -> None:
    mean, spread, colour, levels, edges = image_statistics(torch.full((1, 3, 64, 64), 51.0))[0].split(
        [64, 64, 48, 32, 16]
    )
    for part, expected in ((mean, -0.6), (spread, -0.8), (colour, -0.6), (levels, -0.6), (edges, -0.5)):
        torch.testing.assert_close(part, torch.full_like(part, expected), atol=5e-3, rtol=0)


def test_position_and_colour_change_the_features() -> None:
    dark = torch.zeros(1, 3, 64, 64)
    corner, red = dark.clone(), dark.clone()
    corner[..., :8, 56:] = 255  # The upper right cell of 8 x 8.
    red[:, 0] = 255
    mean = (image_statistics(corner) - image_statistics(dark))[0, :64].view(8, 8)
    assert mean.nonzero().tolist() == [[0, 7]]
    colour = (image_statistics(red) - image_statistics(dark))[0, 128:176].view(3, 16)
    torch.testing.assert_close(colour[0], torch.full((16,), 4.0))
    assert not colour[1:].any()
