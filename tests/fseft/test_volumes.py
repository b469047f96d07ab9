from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.evaluation.cases import Case
from baps.fseft.models import FoundationModel, OrganModel
from baps.fseft.volumes import LabelledVolume, load_volumes, load_volumes_of_organs
from baps.imaging.volume import Volume
from baps.io import write_nifti

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]


@pytest.fixture
def model(unet: FoundationModel) -> OrganModel:
    return OrganModel("tiny", unet, "0" * 64, spacing=2.0, side=16)


@pytest.fixture
def new_case(tmp_path: Path, new_phantom: Phantom) -> Callable[..., Case]:
    """Return a function that writes a phantom and its label 1; ``organ`` replaces the mask of the ball."""

    def make(
        name: str,
        patient: str = "a",
        annotated_slices: frozenset[int] | None = None,
        organ: Callable[[NDArray[np.bool_]], NDArray[np.bool_]] = lambda ball: ball,
    ) -> Case:
        volume, ball = new_phantom()
        image, labels = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz"
        write_nifti(image, volume)
        write_nifti(labels, Volume(organ(ball).astype(np.uint8), volume.affine))
        return Case(image, labels, 1, patient, annotated_slices)

    return make


def test_volumes_are_grouped_by_patient(model: OrganModel, new_case: Callable[..., Case]) -> None:
    result, skipped = load_volumes([new_case("one"), new_case("two", "b"), new_case("three")], model)
    assert skipped == {}
    assert {patient: len(volumes) for patient, volumes in result.items()} == {"a": 2, "b": 1}
    volume = result["b"][0]
    assert volume.labelled is None
    assert volume.image.shape == volume.target.shape
    assert min(volume.image.shape[1:]) >= model.side
    assert volume.image[volume.target].mean() > volume.image[~volume.target].mean() + 0.5


def test_organs_of_a_volume_share_its_image(model: OrganModel, new_case: Callable[..., Case]) -> None:
    whole, other = new_case("one"), new_case("two", "b")
    some = frozenset({4, 5, 6})
    cases = [replace(whole, organ="ball"), replace(whole, organ="part", annotated_slices=some), other]
    volumes, skipped = load_volumes_of_organs([*cases, replace(other, value=2, organ="part")], model)
    assert {organ: list(by_patient) for organ, by_patient in volumes.items()} == {
        "ball": ["a"],
        "part": ["a"],
        "": ["b"],
    }
    assert list(skipped) == ["two.nii.gz, label 2"]
    ball, part = volumes["ball"]["a"][0], volumes["part"]["a"][0]
    assert ball.image is part.image
    assert 0 < int(part.target.sum()) < int(ball.target.sum())
    assert torch.equal(part.target, load_volumes([cases[1]], model)[0]["a"][0].target)


def test_unannotated_slices_are_neither_organ_nor_background(model: OrganModel, new_case: Callable[..., Case]) -> None:
    """Slices are as thick as the model's voxels, 2 mm, so annotated slices correspond one to one."""
    complete = load_volumes([new_case("whole")], model)[0]["a"][0]
    volume = load_volumes([new_case("part", annotated_slices=frozenset({4, 5, 6, 99}))], model)[0]["a"][0]
    assert volume.labelled is not None
    labelled_slices = volume.labelled.any(1).any(1)[0]
    assert int(labelled_slices.sum()) == 3
    assert torch.equal(volume.target, complete.target & volume.labelled)
    assert 0 < int(volume.target.sum()) < int(complete.target.sum())
    assert volume.labelled[..., labelled_slices].float().mean() > 0.5, "all of a slice is known, not the organ alone"


def test_dice_uses_labelled_voxels_only() -> None:
    target, labelled = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    target[..., 1], labelled[..., :2] = True, True
    mask = torch.zeros_like(target)
    mask[..., 1:] = True
    known = LabelledVolume("a", torch.zeros(1, 4, 4, 4), target, labelled)
    assert known.dice(mask) == 1
    assert LabelledVolume("a", torch.zeros(1, 4, 4, 4), target, None).dice(mask) == pytest.approx(2 * 16 / (16 + 48))


def test_unusable_volumes_are_skipped_with_a_reason(
    model: OrganModel, new_case: Callable[..., Case], tmp_path: Path
) -> None:
    def speck(ball: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mark a voxel of 1 mm that lies between the centres of the model's voxels."""
        small = np.zeros_like(ball)
        small[20, 19, 6] = True
        return small

    broken = new_case("broken")
    broken.image.write_bytes(b"no volume")
    cases = [
        broken,
        new_case("empty", organ=np.zeros_like),
        new_case("elsewhere", annotated_slices=frozenset({0})),
        new_case("speck", organ=speck),
        new_case("good", "b"),
    ]
    result, skipped = load_volumes(cases, model)
    assert list(result) == ["b"]
    assert list(skipped) == [f"{name}.nii.gz, label 1" for name in ("broken", "empty", "elsewhere", "speck")]
    reasons = list(skipped.values())
    assert "broken.nii.gz" in reasons[0]
    assert "no voxel of value 1" in reasons[1]
    assert "no voxel on the annotated slices" in reasons[2]
    assert "smaller than a voxel of 2 mm" in reasons[3]
    model = replace(model, spacing=(2.0, 2.0, 2.5))
    assert "smaller than a voxel of 2 x 2 x 2.5 mm" in next(iter(load_volumes(cases[3:4], model)[1].values()))
