from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tools.pretraining.blackbox.photographs import PHOTOGRAPH_SIZE, Photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a wide photograph, red on the left half of its central square, with two polygons, and a plain one."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :100, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg", quality=95)
    Image.fromarray(pixels[:, :120]).save(tmp_path / "images" / "b.jpg")
    # The left half of the central square, and a small square inside it; the small one is written first.
    small = "1 0.30 0.4 0.35 0.4 0.35 0.5 0.30 0.5"
    half = "0 0.25 0 0.5 0 0.5 1 0.25 1"
    (tmp_path / "labels" / "a.txt").write_text(f"{small}\n{half}\n\n2 0.1 0.1\n")
    return tmp_path


def test_pictures_are_cropped_square_with_their_polygons(folder: Path) -> None:
    photographs = Photographs(folder)
    assert photographs.pictures.shape == (2, 3, PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE)
    region, picture = photographs.regions[0], photographs.pictures[0].float()
    assert set(region.unique().tolist()) == {0, 1, 2}
    assert int(region[PHOTOGRAPH_SIZE // 2, PHOTOGRAPH_SIZE // 4]) == 1
    assert (
        int(region[int(0.45 * PHOTOGRAPH_SIZE), int(0.15 * PHOTOGRAPH_SIZE)]) == 2
    )  # The smaller polygon is drawn over the larger one.
    assert int(region[PHOTOGRAPH_SIZE // 2, 3 * PHOTOGRAPH_SIZE // 4]) == 0
    assert float(picture[0, :, : PHOTOGRAPH_SIZE // 2 - 4].min()) > 150
    assert float(picture[0, :, PHOTOGRAPH_SIZE // 2 + 4 :].max()) < 50
    assert not photographs.regions[1].any()


def test_scenes_come_from_pictures_with_objects(folder: Path) -> None:
    photographs = Photographs(folder)
    first, same, different = (photographs.draw(torch.Generator().manual_seed(seed), 4, 64) for seed in (0, 0, 1))
    assert first.images.shape == (4, 3, 64, 64)
    assert first.regions.shape == (4, 64, 64)
    assert float(first.images.min()) >= 0
    assert float(first.images.max()) <= 255
    assert set(first.regions.unique().tolist()) <= {0, 1, 2}
    assert torch.equal(first.images, same.images)
    assert torch.equal(first.regions, same.regions)
    assert not torch.equal(first.images, different.images)


def test_folder_without_photographs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No photographs"):
        Photographs(tmp_path)
