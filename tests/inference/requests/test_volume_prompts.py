"""Prompts of viewers for a model that answers in 3D."""

from __future__ import annotations

import numpy as np
import pytest

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.inference.requests.volume_prompts import read_volume_request
from baps.prompts.volume_prompts import VolumeBox, VolumePoint

VOLUME = Volume(np.zeros((6, 8, 4), np.uint8), np.diag([1.0, 1, 3, 1]))


def test_points_and_boxes_are_voxels_of_the_volume() -> None:
    read = read_volume_request(
        {"foreground": [[1, 2, 3]], "background": [[4, 5, 2], [4, 4, 3]], "roi": [0, 3, 1, 6, 2, 3]}, VOLUME, []
    )
    assert set(read.prompts) == {
        VolumeBox((0, 1, 2), (4, 7, 4), True),
        VolumePoint((1, 2, 3), True),
        VolumePoint((4, 5, 2), False),
        VolumePoint((4, 4, 3), False),
    }


def test_a_point_on_the_far_edge_lies_in_the_last_voxel() -> None:
    """5.5 and 7.5, as numbers, are rounded to 6 and 8, which are outside."""
    read = read_volume_request({"foreground": [[5.5, 7.5, 3.5]], "background": [[-0.5, -0.5, 3]]}, VOLUME, [])
    assert read.prompts == (VolumePoint((5, 7, 3), True), VolumePoint((0, 0, 3), False))


def test_a_box_larger_than_the_volume_covers_it() -> None:
    read = read_volume_request({"roi": [-9, 99, 99, -9, -9, 99]}, VOLUME, [])
    assert read.prompts == (VolumeBox((0, 0, 0), VOLUME.shape, True),)


@pytest.mark.parametrize("request_", [{}, {"background": [[1, 1, 1]]}, {"foreground": [[6, 1, 1]]}, {"roi": [1, 2]}])
def test_requests_without_a_prompt(request_: dict[str, object]) -> None:
    with pytest.raises(InputError):
        read_volume_request(request_, VOLUME, [])
