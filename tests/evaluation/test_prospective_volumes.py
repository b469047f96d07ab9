"""Adapters of a 3D black box are judged on a volume that was labelled later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.prospective_volumes import fixed_prompts, score_volume_adapters
from baps.prompts.volume_prompts import VolumeBox, VolumePoint
from tests.support.flood import FloodBlackBox, emptying_adapter, leaky_volume

VOLUME = leaky_volume(1)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    affine = np.diag([*VOLUME.image.spacing, 1])
    nibabel.Nifti1Image(np.round(VOLUME.image.voxels).astype(np.int16), affine).to_filename(tmp_path / "ct.nii.gz")
    nibabel.Nifti1Image(VOLUME.target.astype(np.uint8) * 2, affine).to_filename(tmp_path / "label.nii.gz")
    return Case(tmp_path / "ct.nii.gz", tmp_path / "label.nii.gz", 2, "anna")


def test_all_adapters_get_the_same_prompts_and_the_predictions_are_counted(case: Case) -> None:
    black_box, waits = FloodBlackBox(), 0

    def wait() -> None:
        nonlocal waits
        waits += 1

    adapters = {"same": VolumeAdapter(), "empty": emptying_adapter()}
    scores = score_volume_adapters(black_box, adapters, case, wait=wait)
    assert black_box.images_queried == waits == 6  # Two prompts, each with three models.
    assert scores["same"] == 0
    assert -1 < scores["empty"] < -0.3
    score_volume_adapters(black_box, {"same": VolumeAdapter()}, case)
    assert black_box.images_queried == 12
    assert score_volume_adapters(black_box, adapters, case, 6) == scores  # Always the same prompts.


@pytest.mark.parametrize(("count", "adapters"), [(1, 1), (2, 2), (6, 0)])
def test_too_few_predictions_or_no_adapters_judge_nothing(case: Case, count: int, adapters: int) -> None:
    black_box = FloodBlackBox()
    some = {str(number): VolumeAdapter() for number in range(adapters)}
    assert score_volume_adapters(black_box, some, case, count) == {}
    assert black_box.images_queried == 0


@pytest.mark.parametrize("annotated", [None, frozenset({11, 12})])
def test_only_annotated_slices_count(case: Case, annotated: frozenset[int] | None) -> None:
    """What the unadapted model marks on other slices is not counted against it."""
    black_box, slices = FloodBlackBox(), np.isin(np.arange(VOLUME.image.shape[2]), list(annotated or range(24)))
    empty = {"empty": emptying_adapter()}
    score = score_volume_adapters(black_box, empty, replace(case, annotated_slices=annotated))["empty"]
    target, dice = VOLUME.target & slices, []
    for prompt in fixed_prompts(black_box.capabilities, target, VOLUME.image.spacing, 3):
        mask = (VolumeAdapter().predict(black_box, VOLUME.image, [prompt]) > 0.5) & slices
        dice.append(2 * (mask & target).sum() / (mask.sum() + target.sum()))
    assert np.mean(dice) == pytest.approx(-score, abs=0.02)  # Grey values are rounded in the file.


def test_a_label_that_cannot_be_used_is_refused(case: Case) -> None:
    with pytest.raises(InputError, match="fewer than 30 voxels"):
        score_volume_adapters(FloodBlackBox(), {"a": VolumeAdapter()}, replace(case, annotated_slices=frozenset({0})))


def test_prompts_are_clicks_in_the_organ_or_boxes_where_the_model_understands_no_clicks() -> None:
    capabilities = FloodBlackBox().capabilities
    clicks = fixed_prompts(capabilities, VOLUME.target, VOLUME.image.spacing, 3)
    assert clicks == fixed_prompts(capabilities, VOLUME.target, VOLUME.image.spacing, 3)
    assert all(isinstance(one, VolumePoint) and VOLUME.target[one.voxel] for one in clicks)
    (box,) = fixed_prompts(replace(capabilities, points=False), VOLUME.target, VOLUME.image.spacing)
    assert isinstance(box, VolumeBox)
