"""Label files: overlapping segments, one channel per class, parts of an image, and scaled headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baps.errors import InputError
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import label_stem, read_label_map, read_labels, write_label_map
from baps.io.nrrd import nrrd_header
from tests.support.paths import ROOT
from tests.support.small_series import random_segments

CASES = ROOT.parent / "shared" / "cases"

IMAGE = Volume(
    np.zeros((18, 15, 6), np.int16),
    np.array([[-0.6, 0.48, 0.4, 8], [0.8, 0.6, 0.1, -20], [0.1, -0.3, 2.9, 33], [0, 0, 0, 1]]),
)
"""An affine whose axes are not at right angles, which NRRD can store."""

STRAIGHT = Volume(IMAGE.voxels, np.array([[-1.5, 0, 0, 8], [0, 1.2, 0, -20], [0, 0, 3, 33], [0, 0, 0, 1.0]]))

Described = Sequence[tuple[int, int, str]]


def _seg_nrrd(
    path: Path, layers: Sequence[NDArray[Any]], segments: Described, image: Volume = IMAGE, **more: str
) -> Path:
    """Write a file as 3D Slicer does, with layer, value and name of each segment in the header."""
    header = nrrd_header(image, compress=True)
    voxels = layers[0]
    if len(layers) > 1:
        header["space directions"] = np.vstack([np.full((1, 3), np.nan), header["space directions"]])
        header["kinds"], voxels = ["list", *header["kinds"]], np.stack(layers)
    for number, (layer, value, name) in enumerate(segments):
        header |= {
            f"Segment{number}_ID": f"Segment_{number + 1}",
            f"Segment{number}_Name": name,
            f"Segment{number}_Layer": str(layer),
            f"Segment{number}_LabelValue": str(value),
            f"Segment{number}_Color": "0.5 0.1 0.2",
        }
    nrrd.write(str(path), voxels, {**header, **more})
    return path


@pytest.mark.parametrize("seed", range(20))
def test_every_segment_of_3d_slicer_is_kept(tmp_path: Path, seed: int) -> None:
    """Each layer has its own segments; values may be used in several layers."""
    random, masks = np.random.default_rng(seed), random_segments(seed)
    segments, layers, expected = [], [], {}
    for number, mask in enumerate(masks):
        layer = next((n for n, voxels in enumerate(layers) if not voxels[mask].any()), len(layers))
        if layer == len(layers) or random.random() < 0.3:
            layer = len(layers)
            layers.append(np.zeros(IMAGE.shape, np.uint8))
        value = int(random.choice([v for v in range(1, 6) if not (layers[layer] == v).any()]))
        layers[layer][mask] = value
        segments.append((layer, value, f"organ {number}"))
        expected[f"organ {number}"] = mask
    results = read_label_map(_seg_nrrd(tmp_path / "a.seg.nrrd", layers, segments), IMAGE)
    assert sorted(results.names.values()) == sorted(expected)
    for value, name in results.names.items():
        np.testing.assert_array_equal(results.mask(value), expected[name])
    several = len({value for _, value, _ in segments}) < len(segments)
    assert results.renumbered == several


def test_unique_values_are_kept(tmp_path: Path) -> None:
    first, second = random_segments(3)[0] * np.uint8(4), random_segments(6)[0] * np.uint8(2)
    path = _seg_nrrd(tmp_path / "a.seg.nrrd", [first, second], [(0, 4, "liver"), (1, 2, "Segment_2")])
    result = read_label_map(path, IMAGE)
    assert (result.names, result.renumbered) == ({4: "liver"}, False)  # The other value has no name.
    np.testing.assert_array_equal(result.mask(4), first > 0)
    np.testing.assert_array_equal(result.mask(2), second > 0)
    with pytest.raises(InputError, match="has overlapping segments"):
        read_labels(path, IMAGE)


def test_disjoint_layers_are_read_as_one_label_map(tmp_path: Path) -> None:
    first, second = np.zeros(IMAGE.shape, np.uint8), np.zeros(IMAGE.shape, np.uint8)
    first[2:4], second[5:9] = 1, 1
    path = _seg_nrrd(tmp_path / "a.seg.nrrd", [first, second], [(0, 1, "liver"), (1, 1, "spleen")])
    np.testing.assert_array_equal(read_labels(path, IMAGE), first + 2 * second)


def test_a_layer_with_a_value_that_no_segment_has_is_refused(tmp_path: Path) -> None:
    first = np.ones(IMAGE.shape, np.uint8)
    path = _seg_nrrd(tmp_path / "a.seg.nrrd", [first, first * 3], [(0, 1, "liver"), (1, 1, "spleen")])
    with pytest.raises(InputError, match=r"voxels of the values \[3\], which no segment has"):
        read_label_map(path, IMAGE)


@given(seed=st.integers(0, 10_000), data=st.data())
def test_labels_of_a_part_are_embedded_in_the_image(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    """3D Slicer crops to the segments, and SimpleITK crops too; the axes may be permuted."""
    folder = tmp_path_factory.mktemp("part")
    mask = random_segments(seed)[0]
    first = [data.draw(st.integers(0, size - 1)) for size in mask.shape]
    last = [data.draw(st.integers(begin + 1, size)) for begin, size in zip(first, mask.shape, strict=True)]
    part = tuple(slice(*ends) for ends in zip(first, last, strict=True))
    expected = np.zeros_like(mask)
    expected[part] = mask[part]
    affine = IMAGE.affine.copy()
    affine[:3, 3] = (IMAGE.affine @ [*first, 1])[:3]
    offset = {"Segmentation_ReferenceImageExtentOffset": " ".join(map(str, first))}
    cropped = Volume(mask[part].astype(np.uint8), affine)
    path = _seg_nrrd(folder / "a.seg.nrrd", [cropped.voxels], [(0, 1, "liver")], cropped, **offset)
    result = read_label_map(path, IMAGE)
    np.testing.assert_array_equal(result.mask(1), expected)
    assert result.names == {1: "liver"}
    both = [cropped.voxels, cropped.voxels]
    layered = read_label_map(
        _seg_nrrd(folder / "b.seg.nrrd", both, [(0, 1, "a"), (1, 1, "b")], cropped, **offset), IMAGE
    )
    np.testing.assert_array_equal(layered.mask(2), expected)

    itk_labels = SimpleITK.GetImageFromArray(mask.astype(np.uint8).T)
    lps = np.diag([-1.0, -1, 1]) @ STRAIGHT.affine[:3]
    itk_labels.SetSpacing(STRAIGHT.spacing)
    itk_labels.SetDirection((lps[:, :3] / STRAIGHT.spacing).ravel())
    itk_labels.SetOrigin(lps[:, 3])
    begins_there = all(begin == 0 or size == whole_size for begin, size, whole_size in zip(
        first, cropped.shape, mask.shape, strict=True
    ))  # fmt: skip
    rotated = SimpleITK.DICOMOrient(
        itk_labels[part[0], part[1], part[2]], data.draw(st.sampled_from(["LPS", "RAS", "AIL"]))
    )
    SimpleITK.WriteImage(rotated, folder / "a.nii.gz")
    if begins_there and cropped.shape != mask.shape:
        with pytest.raises(InputError, match="both begin at the same voxel"):
            read_label_map(folder / "a.nii.gz", STRAIGHT)
    else:
        np.testing.assert_array_equal(read_labels(folder / "a.nii.gz", STRAIGHT) > 0, expected)


@pytest.mark.parametrize(
    ("first", "size", "spacing"),
    [((2.5, 0, 0), (6, 15, 6), 1), ((-1, 0, 0), (6, 15, 6), 1), ((14, 0, 0), (6, 15, 6), 1), ((2, 2, 2), (6, 6, 3), 2)],
    ids=["between voxels", "begins outside", "ends outside", "another resolution"],
)
def test_labels_that_are_not_a_part_of_the_image_are_refused(
    tmp_path: Path, first: tuple[float, ...], size: tuple[int, ...], spacing: float
) -> None:
    affine = STRAIGHT.affine @ np.diag([spacing, spacing, 1, 1])
    affine[:3, 3] = (STRAIGHT.affine @ [*first, 1])[:3]
    nibabel.save(nibabel.Nifti1Image(np.ones(size, np.uint8), affine), tmp_path / "a.nii")
    with pytest.raises(InputError, match="does not have the geometry of its image"):
        read_label_map(tmp_path / "a.nii", STRAIGHT)


def _nifti(path: Path, voxels: NDArray[Any]) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, STRAIGHT.affine), path)
    return path


def test_rounding_errors_of_a_scaled_header_are_corrected(tmp_path: Path) -> None:
    """nibabel writes floats as scaled integers: 1 becomes 1.00001526."""
    expected = np.random.default_rng(0).integers(0, 3, STRAIGHT.shape)
    image = nibabel.Nifti1Image(expected.astype(np.float64), STRAIGHT.affine)
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert (np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj) != expected).any()
    np.testing.assert_array_equal(read_labels(tmp_path / "a.nii.gz", STRAIGHT), expected)
    with pytest.raises(InputError, match="holds fractions"):
        read_labels(_nifti(tmp_path / "b.nii", expected * 0.99), STRAIGHT)


def _one_hot(seed: int) -> NDArray[np.uint8]:
    """Make three classes that do not overlap, the first the background, (I, J, K, C)."""
    classes = np.where(random_segments(seed)[0], np.random.default_rng(seed).integers(1, 3, STRAIGHT.shape), 0)
    return np.stack([classes == n for n in range(3)], -1).astype(np.uint8)


def _write_channels(folder: Path, voxels: NDArray[np.uint8], layout: str) -> Path:
    if layout == "nibabel":
        return _nifti(folder / "a.nii.gz", voxels)
    if layout == "nibabel, float":
        return _nifti(folder / "a.nii.gz", voxels.astype(np.float32))
    image = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0, 3), isVector=True)
    lps = np.diag([-1.0, -1, 1]) @ STRAIGHT.affine[:3]
    image.SetSpacing(STRAIGHT.spacing)
    image.SetDirection((lps[:, :3] / STRAIGHT.spacing).ravel())
    image.SetOrigin(lps[:, 3])
    path = folder / ("a.nrrd" if layout == "SimpleITK, NRRD" else "a.nii.gz")
    SimpleITK.WriteImage(image, path)
    return path


WAYS = ["nibabel", "nibabel, float", "SimpleITK, NRRD", "SimpleITK, NIfTI"]


@pytest.mark.parametrize("layout", WAYS)
def test_a_channel_for_each_class_with_the_background_first(tmp_path: Path, layout: str) -> None:
    voxels = _one_hot(3)
    result = read_label_map(_write_channels(tmp_path, voxels, layout), STRAIGHT)
    (note,) = result.notes
    assert "was taken as the background" in note
    assert result.values() == [1, 2]
    for value in (1, 2):
        np.testing.assert_array_equal(result.mask(value), voxels[..., value] > 0)


@pytest.mark.parametrize("layout", WAYS)
def test_a_channel_for_each_class_without_background_may_overlap(tmp_path: Path, layout: str) -> None:
    voxels = np.stack([mask for seed in (3, 6, 9) for mask in random_segments(seed)[:1]], -1).astype(np.uint8)
    result = read_label_map(_write_channels(tmp_path, voxels, layout), STRAIGHT)
    assert "have no background; the first was taken as label 1" in result.notes[0]
    for value in (1, 2, 3):
        np.testing.assert_array_equal(result.mask(value), voxels[..., value - 1] > 0)


@pytest.mark.parametrize("order", [[1, 2, 0], [0, 1, 1]], ids=["background last", "two channels on one voxel"])
def test_channels_whose_background_is_unclear_are_refused(tmp_path: Path, order: list[int]) -> None:
    voxels = _one_hot(3)[..., order]
    if order == [0, 1, 1]:
        voxels[..., 0] = 1
    with pytest.raises(InputError, match="it is unclear which is the background"):
        read_label_map(_nifti(tmp_path / "a.nii", voxels), STRAIGHT)


def test_time_points_are_not_classes(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 4, (*STRAIGHT.shape, 2)).astype(np.uint8)
    with pytest.raises(InputError, match=r"2 channels of several values \(\[0, 1, 2, 3\]\)"):
        read_label_map(_nifti(tmp_path / "a.nii", voxels), STRAIGHT)


@pytest.mark.parametrize("seed", range(6))
def test_written_labels_are_read_back_also_by_itk(tmp_path: Path, seed: int) -> None:
    masks = dict(enumerate(random_segments(seed), start=1))
    labels = LabelMap.from_masks(masks.items(), {value: f"organ {value}" for value in masks})
    for image in (STRAIGHT, IMAGE):
        path = write_label_map(tmp_path / "label", labels, image)
        assert path.name == ("label.nii.gz" if len(labels.layers) == 1 and image is STRAIGHT else "label.seg.nrrd") or (
            len(labels.layers) == 1
        )
        result = read_label_map(path, image)
        for value, mask in masks.items():
            np.testing.assert_array_equal(result.mask(value), mask)
        if path.name.endswith(".nrrd"):
            theirs = SimpleITK.ReadImage(path)
            layers = np.atleast_3d(SimpleITK.GetArrayFromImage(theirs))
            layers = layers.reshape(*layers.shape[:3], -1).transpose(2, 1, 0, 3)
            for layer, voxels in enumerate(result.layers):
                np.testing.assert_array_equal(layers[..., layer], voxels)
            np.testing.assert_allclose(np.array(theirs.GetOrigin()) * [-1, -1, 1], image.affine[:3, 3], atol=1e-6)
            assert result.names == labels.names


def test_a_segmentation_is_named_after_its_image() -> None:
    assert [label_stem(Path(name)) for name in ("a.seg.nrrd", "a.nii.gz", "a.b.nrrd")] == ["a", "a", "a.b"]


@pytest.mark.parametrize(
    ("image", "label", "values"),
    [
        ("label_scaled_float/images/a.nii.gz", "label_scaled_float/labels/a.nii.gz", [1, 2]),
        ("label_two_layers/a.nii.gz", "label_two_layers/b.seg.nrrd", [1, 2]),
        ("label_dicom_seg/images/p1", "label_dicom_seg/labels/p1.dcm", [1]),
    ],
)
def test_files_that_an_older_version_refused_are_read(image: str, label: str, values: list[int]) -> None:
    from baps.io import read_volume

    if not CASES.is_dir():
        pytest.skip(f"no cases at {CASES}")
    result = read_label_map(CASES / label, read_volume(CASES / image), CASES / image)
    assert result.values() == values
