"""The same on real images beside the repository; skipped if there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from baps.imaging.metrics import dice
from baps.io import read_labels, read_volume
from benchmarks.real_data import DOMAINS, ROOT, cases

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real images at {ROOT}; set BAPS_REAL_DATA"),
]


@pytest.mark.parametrize("name", ["BTCV left kidney, CT", "BTCV liver, CT", "CHAOS liver, MR", "hippocampus, MR"])
def test_corrections_improve_the_mask_of_an_organ(connect: Callable[..., Any], name: str) -> None:
    domain = next(domain for domain in DOMAINS if domain.name == name)
    case = next(iter(cases(domain, "train")))
    volume = read_volume(case.image)
    target = np.isin(read_labels(case.labels, volume), domain.values).transpose(2, 1, 0)
    session = connect()
    session.set_image(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0))[None], {"spacing": volume.spacing[::-1]})
    mask = np.zeros(target.shape, np.uint8)
    session.set_target_buffer(mask)
    scores = []
    for _ in range(5):
        errors = target != (mask > 0)
        k = int(errors.sum((1, 2)).argmax())
        pieces, _ = ndimage.label(errors[k])
        largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
        depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
        row, column = (int(index) for index in np.unravel_index(depth.argmax(), depth.shape))
        inside = bool(target[k, row, column])
        session.add_point_interaction([k, row, column], inside)
        assert bool(mask[k, row, column]) == inside
        scores.append(dice(mask > 0, target))
    assert scores[-1] > scores[0], scores
