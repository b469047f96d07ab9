from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import nibabel
import numpy as np
import pytest

from baps.adapters.adapter import identity_adapter
from baps.blackbox import load_black_box
from baps.evaluation import prospective
from baps.evaluation.cases import Case, prompted_slices
from baps.evaluation.prospective import score_adapters
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.io import read_volume
from baps.prompts import Prompt
from tests.support.paths import ROOT

SAMPLES = ROOT / "sample-data" / "ct"
CASE = Case(SAMPLES / "images" / "ct_01.nii.gz", SAMPLES / "labels" / "ct_01.nii.gz", 2, "ct_01")


def read_labels() -> np.ndarray:
    return np.asarray(nibabel.load(CASE.labels).dataobj)


def spleen_prompt(index: int) -> Prompt:
    """A click in the middle of the spleen's largest run of voxels on a slice."""
    i, j = np.argwhere(read_labels()[:, :, index] == 2).mean(0).round()
    return Prompt(((float(i), float(j)),))


def test_an_identity_makes_no_difference_and_the_images_are_counted() -> None:
    black_box, waits = load_black_box(), 0

    def wait() -> None:
        nonlocal waits
        waits += 1

    before = black_box.images_queried
    adapters = {"one": identity_adapter(), "two": identity_adapter()}
    assert score_adapters(black_box, adapters, CASE, 10, {}, wait) == {"one": 0, "two": 0}
    assert black_box.images_queried - before == waits == 9  # Three slices, each with three models.
    assert score_adapters(black_box, {}, CASE, 10, {}) == {}
    assert score_adapters(black_box, adapters, CASE, 2, {}) == {}


def test_slices_that_a_user_prompted_come_first_with_the_users_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    areas = (read_labels() == 2).sum((0, 1))
    middle = int(areas.argmax())
    prompts = {middle: spleen_prompt(middle), 0: Prompt(((1.0, 1.0),))}  # Slice 0 does not show the spleen.
    slices = prompted_slices(CASE, 128, 5, prompts)
    assert len(slices) == 5
    assert sum(prompt is not None for _, prompt in slices) == 1
    (piece, made) = next(entry for entry in slices if entry[1])
    canvas = Canvas.fit(read_volume(CASE.image), Plane(SLICE_AXIS, middle), 128)
    assert made is not None
    assert made == prompts[middle].mapped(canvas.to_canvas)
    x, y = made.positive[0]
    assert piece.target[round(y), round(x)]

    asked: list[Prompt] = []

    def record(box: Any, adapter: Any, images: Any, given: Sequence[Prompt], sizes: Any) -> Iterator[Any]:
        asked.extend(given)
        return iter([np.ones(images.shape[1:3], np.float32)])

    monkeypatch.setattr(prospective, "segment_adapted", record)
    score_adapters(load_black_box(), {"one": identity_adapter()}, CASE, 4, {middle: prompts[middle]})
    assert len(asked) == 4
    assert asked[0::2] == asked[1::2]  # Both models get the same prompt.
