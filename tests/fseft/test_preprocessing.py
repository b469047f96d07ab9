"""Geometry by properties over orientations; intensities by hand."""

from __future__ import annotations

from collections.abc import Callable

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baps.errors import InputError
from baps.fseft.preprocessing import PreparedVolume, preprocess
from baps.imaging.volume import Volume

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return 2 * int((first & second).sum()) / (int(first.sum()) + int(second.sum()))


def _centre_mm(prepared: PreparedVolume, mask: torch.Tensor) -> NDArray[np.float64]:
    """Compute the centre of a mask on the voxels of the image, mm, RAS."""
    middle = mask[0].nonzero().float().mean(0).numpy()
    result: NDArray[np.float64] = prepared.affine[:3, :3] @ middle + prepared.affine[:3, 3]
    return result


@given(codes=st.sampled_from(["RAS", "LPS", "LAS", "SPR", "AIL", "IRP"]), spacing=st.sampled_from([1.0, 1.5, 3.0]))
def test_round_trip_in_any_orientation(new_phantom: Phantom, codes: str, spacing: float) -> None:
    volume, ball = new_phantom()
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(turn, volume.shape)
    rotated = Volume(nibabel.apply_orientation(volume.voxels, turn), affine)
    turned_ball = nibabel.apply_orientation(ball, turn)
    prepared = preprocess(rotated, spacing, side=8)
    assert nibabel.aff2axcodes(prepared.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.diag(prepared.affine)[:3], spacing, rtol=0.05)
    mask = prepared.mask(turned_ball)
    middle = volume.affine[:3, :3] @ np.argwhere(ball).mean(0) + volume.affine[:3, 3]
    np.testing.assert_allclose(_centre_mm(prepared, mask), middle, atol=0.5 * spacing)
    back = prepared.restore(mask.float())
    assert back.shape == rotated.shape
    assert back.dtype == np.float32
    assert _dice(back > 0.5, turned_ball) > {1.0: 0.95, 1.5: 0.9, 3.0: 0.8}[spacing]


def test_round_trip_of_an_oblique_volume(new_phantom: Phantom) -> None:
    volume, ball = new_phantom(spacing=(1.0, 1.0, 1.0), shape=(40, 36, 30))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    oblique = Volume(volume.voxels, turn @ volume.affine)
    prepared = preprocess(oblique, 1.5, side=8)
    assert _dice(prepared.restore(prepared.mask(ball).float()) > 0.5, ball) > 0.9


@given(codes=st.sampled_from(["RAS", "LPS", "SPR", "AIL"]), seed=st.integers(0, 5), angle=st.floats(0, 0.5))
def test_restoring_above_a_floor_equals_restoring_all(
    new_phantom: Phantom, codes: str, seed: int, angle: float
) -> None:
    volume, _ = new_phantom(shape=(24, 20, 14))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    start = nibabel.io_orientation(volume.affine)
    orientation = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(codes))
    affine = turn @ volume.affine @ nibabel.orientations.inv_ornt_aff(orientation, volume.shape)
    prepared = preprocess(Volume(nibabel.apply_orientation(volume.voxels, orientation), affine), 3.0, side=8)
    random = np.random.default_rng(seed)
    probability = torch.from_numpy(np.where(random.random(prepared.image.shape) > 0.98, 0.9, 0.3).astype(np.float32))
    every, some = prepared.restore(probability), prepared.restore(probability, 0.5)
    np.testing.assert_allclose(np.where(every > 0.5, every, 0), np.where(some > 0.5, some, 0), atol=1e-4)
    corner = torch.zeros_like(probability)
    corner[0, 0, 0, 0] = corner[0, -1, -1, 0] = 0.9
    np.testing.assert_allclose(prepared.restore(corner, 0.5), prepared.restore(corner), atol=1e-4)
    assert not prepared.restore(corner, 0.95).any()


def test_hounsfield_units() -> None:
    """-175 HU is 0, 250 HU is 1, values beyond are clipped; voxels on the model's grid are not resampled."""
    values = np.array([-1000, -175, -68.75, 37.5, 250, 3000] * 10, np.float32)
    voxels = np.broadcast_to(values[:, None, None], (60, 4, 4)).copy()
    prepared = preprocess(Volume(voxels, np.diag([1.5, 1.5, 1.5, 1.0])), side=1)
    # The first two are dark and are cropped.
    expected = torch.tensor([0, 0, 0.25, 0.5, 1, 1] * 10)[2:]
    torch.testing.assert_close(prepared.image[0, :, 0, 0], expected, rtol=0, atol=1e-5)
    assert prepared.affine[0, 3] == pytest.approx(3.0)


def test_spacing_window_and_orientation_of_a_model(new_phantom: Phantom) -> None:
    """0 HU is 0.25 of a window from -100 to 300; each axis has its own size of voxels."""
    voxels = np.full((20, 24, 30), -1000, np.int16)
    voxels[4:, 6:, 8:] = 0
    voxels[0, 0, 0] = 1000
    volume = Volume(voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    prepared = preprocess(volume, (2.0, 1.0, 4.0), side=1, window=(-100.0, 300.0), orientation="LPS")
    assert nibabel.aff2axcodes(prepared.affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.abs(np.diag(prepared.affine))[:3], (2.0, 1.0, 4.0), rtol=0.03)
    assert float(prepared.image[0, 2, 2, -2]) == pytest.approx(0.25, abs=1e-4)
    mask = voxels == 0
    assert _dice(prepared.restore(prepared.mask(mask).float()) > 0.5, mask) > 0.9


def test_other_grey_values_use_percentiles(new_phantom: Phantom) -> None:
    volume, ball = new_phantom()
    rescaled = Volume(volume.voxels * 7 + 1000, volume.affine)
    first, second = preprocess(volume, 1.0, side=1), preprocess(rescaled, 1.0, side=1)
    torch.testing.assert_close(first.image, second.image, rtol=0, atol=1e-4)
    inside = first.image[first.mask(ball)]
    assert float(inside.mean()) > 0.8
    assert (float(first.image.min()), float(first.image.max())) == (0, 1)


def test_image_is_cropped_to_bright_voxels() -> None:
    voxels = np.full((30, 20, 20), -1000, np.int16)
    voxels[10:16, 5:9, 2:12] = 100
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    prepared = preprocess(Volume(voxels, affine), 2.0, side=1)
    assert prepared.image.shape == (1, 6, 4, 10)
    np.testing.assert_allclose(prepared.affine[:3, 3], (20, 10, 4))
    padded = preprocess(Volume(voxels, affine), 2.0, side=8)
    assert padded.image.shape == (1, 8, 8, 10)
    back = padded.restore(padded.image)
    np.testing.assert_allclose(back[10:16, 5:9, 2:12], 275 / 425, atol=1e-5)
    assert back.sum() == pytest.approx(240 * 275 / 425, rel=1e-4)


def test_dark_image_is_not_cropped() -> None:
    prepared = preprocess(Volume(np.full((8, 8, 8), -1000, np.int16), np.eye(4)), 1.0, side=1)
    assert prepared.image.shape == (1, 8, 8, 8)


def test_invalid_volumes_are_refused(new_phantom: Phantom) -> None:
    volume, ball = new_phantom()
    with pytest.raises(InputError, match="in colour"):
        preprocess(Volume(np.zeros((4, 4, 1, 3), np.uint8), np.eye(4)))
    with pytest.raises(InputError, match="positive number of millimetres"):
        preprocess(volume, 0.0)
    with pytest.raises(InputError, match="positive"):
        preprocess(volume, (1.5, 1.5, float("nan")))
    with pytest.raises(InputError, match="on the volume's grid"):
        preprocess(volume, 1.5, side=1).mask(ball[1:])
