"""DICOM objects as label files: SEG, Label Map Segmentation and RTSTRUCT."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_labels, read_volume
from baps.io.dicom.labels import read_series_headers
from baps.io.dicom.rtstruct import write_structures
from baps.io.dicom.seg import describe_segments, write_segmentation
from baps.io.dicom.stacks import find_stack
from tests.support.label_map_segmentation import make_label_map
from tests.support.small_series import SHAPE, random_segments, write_small_series

WHEN = datetime(2026, 3, 1, 12, 30, 5, tzinfo=timezone.utc)

Masks = dict[str, NDArray[np.bool_]]
Make = Callable[[list[Dataset], Volume, Masks], Dataset]


def _seg(headers: list[Dataset], image: Volume, masks: Masks) -> Dataset:
    return write_segmentation(headers, image, masks, dict.fromkeys(masks, frozenset()), WHEN)


def _fractional(headers: list[Dataset], image: Volume, masks: Masks) -> Dataset:
    dataset = _seg(headers, image, masks)
    levels = np.where(dataset.pixel_array > 0, 200, 40).astype(np.uint8)
    dataset.SegmentationType, dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = (
        "FRACTIONAL",
        "PROBABILITY",
        255,
    )
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelData = 8, 8, 7, levels.tobytes()
    return dataset


def _structures(headers: list[Dataset], image: Volume, masks: Masks) -> Dataset:
    return write_structures(headers, image, masks, WHEN)


MAKERS: dict[str, Make] = {
    "binary SEG": _seg,
    "fractional SEG": _fractional,
    "Label Map": make_label_map,
    "RTSTRUCT": _structures,
}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Dataset], Volume]:
    folder = tmp_path_factory.mktemp("series") / "p1"
    write_small_series(folder)
    return folder, read_series_headers(folder), read_volume(folder)


Series = tuple[Path, list[Dataset], Volume]


def _masks(kind: str) -> Masks:
    masks = {"spleen": random_segments(3)[0], "liver": random_segments(8)[0]}
    if kind == "Label Map":  # Label maps have no overlapping segments.
        masks["spleen"] &= ~masks["liver"]
    return masks


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_a_label_file_with_names(series: Series, tmp_path: Path, kind: str) -> None:
    folder, headers, image = series
    masks = _masks(kind)
    dataset = MAKERS[kind](headers, image, masks)
    dataset.save_as(tmp_path / "p1.dcm", write_like_original=False)
    for source in (folder, None):
        result = read_label_map(tmp_path / "p1.dcm", image, source)
        assert result.names == {1: "spleen", 2: "liver"}
        for value, name in result.names.items():
            np.testing.assert_array_equal(result.mask(value), masks[name])
    (tmp_path / "folder").mkdir()
    (tmp_path / "p1.dcm").rename(tmp_path / "folder" / "1.dcm")  # Files as a PACS exports them.
    assert read_label_map(tmp_path / "folder", image, folder).names == {1: "spleen", 2: "liver"}


@pytest.mark.parametrize("kind", MAKERS)
def test_an_object_of_another_series_is_refused(series: Series, tmp_path: Path, kind: str) -> None:
    _, headers, image = series
    MAKERS[kind](headers, image, _masks(kind)).save_as(tmp_path / "p1.dcm", write_like_original=False)
    write_small_series(tmp_path / "other")  # At the same position.
    other_volume = read_volume(tmp_path / "other")
    with pytest.raises(InputError, match="The label p1.dcm belongs to another series"):
        read_label_map(tmp_path / "p1.dcm", other_volume, tmp_path / "other")


@pytest.mark.parametrize("kind", MAKERS)
def test_an_object_without_references_is_matched_by_frame_of_reference(
    series: Series, tmp_path: Path, kind: str
) -> None:
    folder, headers, image = series
    written = MAKERS[kind](headers, image, _masks(kind))

    def forget(dataset: Dataset) -> None:
        for element in list(dataset):
            if element.keyword in (
                "ReferencedSeriesSequence", "DerivationImageSequence", "RTReferencedStudySequence",
                "ContourImageSequence", "SourceImageSequence",
            ):  # fmt: skip
                del dataset[element.tag]
            elif element.VR == "SQ":
                for item in element.value:
                    forget(item)

    forget(written)
    written.save_as(tmp_path / "p1.dcm", write_like_original=False)
    assert read_label_map(tmp_path / "p1.dcm", image, folder).names == {1: "spleen", 2: "liver"}

    def rename(dataset: Dataset) -> None:
        for element in dataset:
            if "FrameOfReferenceUID" in element.keyword:
                element.value = "1.2.3"
            elif element.VR == "SQ":
                for item in element.value:
                    rename(item)

    rename(written)
    written.save_as(tmp_path / "p1.dcm", write_like_original=False)
    with pytest.raises(InputError, match="another frame of reference"):
        read_label_map(tmp_path / "p1.dcm", image, folder)


def test_a_label_map_with_rle_and_with_a_palette(series: Series, tmp_path: Path) -> None:
    folder, headers, image = series
    masks = _masks("Label Map")
    dataset = make_label_map(headers, image, masks)
    assert describe_segments(dataset) == {1: ("spleen", True), 2: ("liver", True)}
    dataset.PhotometricInterpretation = "PALETTE COLOR"  # The pixels are still the numbers of the segments.
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.save_as(tmp_path / "p1.dcm", write_like_original=False)
    result = read_label_map(tmp_path / "p1.dcm", image, folder)
    np.testing.assert_array_equal(result.mask(2), masks["liver"])
    read = pydicom.dcmread(tmp_path / "p1.dcm")
    read.file_meta.TransferSyntaxUID = JPEGLSLossless
    read.save_as(tmp_path / "p1.dcm")
    with pytest.raises(InputError, match="cannot be"):
        read_label_map(tmp_path / "p1.dcm", image, folder)


def test_a_label_map_with_a_segment_that_it_does_not_describe_is_refused(series: Series, tmp_path: Path) -> None:
    folder, headers, image = series
    dataset = make_label_map(headers, image, _masks("Label Map"))
    dataset.SegmentSequence = dataset.SegmentSequence[:2]
    dataset.save_as(tmp_path / "p1.dcm", write_like_original=False)
    with pytest.raises(InputError, match=r"pixels of the segments \[2\], which its SegmentSequence does not name"):
        read_label_map(tmp_path / "p1.dcm", image, folder)


def test_deflated_and_empty_objects_are_refused(series: Series, tmp_path: Path) -> None:
    folder, headers, image = series
    created = _structures(headers, image, _masks("RTSTRUCT"))
    created.ROIContourSequence = []
    created.save_as(tmp_path / "p1.dcm", write_like_original=False)
    with pytest.raises(InputError, match=r"p1\.dcm has no segment"):
        read_label_map(tmp_path / "p1.dcm", image, folder)
    created.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    created.save_as(tmp_path / "p1.dcm", write_like_original=False)
    with pytest.raises(InputError, match="compressed as a whole"):
        read_label_map(tmp_path / "p1.dcm", image, folder)


def test_overlapping_segments_are_refused_where_one_labelmap_is_needed(series: Series, tmp_path: Path) -> None:
    folder, headers, image = series
    masks = {"spleen": random_segments(3)[0], "lesion": random_segments(3)[0]}
    _seg(headers, image, masks).save_as(tmp_path / "p1.dcm", write_like_original=False)
    with pytest.raises(InputError, match=r"p1\.dcm has overlapping segments"):
        read_labels(tmp_path / "p1.dcm", image, folder)


def test_an_ordinary_dicom_image_can_still_be_a_labelmap(series: Series, tmp_path: Path) -> None:
    """The label map was stored as slices."""
    folder, _, image = series
    labels = random_segments(3)[0].astype(np.int16)
    uid = generate_uid()
    for file in folder.glob("*.dcm"):
        header = pydicom.dcmread(file)
        k = int(header.InstanceNumber) - 1
        header.SeriesInstanceUID, header.PixelData = uid, np.ascontiguousarray(labels[:, :, k].T).tobytes()
        (tmp_path / "labels").mkdir(exist_ok=True)
        header.save_as(tmp_path / "labels" / file.name)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels", image, folder), labels)


@pytest.mark.parametrize("kind", ["binary SEG", "fractional SEG", "RTSTRUCT"])
@pytest.mark.parametrize("tilt", [0.9, 1.1, -1.6])
def test_labels_of_a_tilted_gantry_are_preserved(tmp_path: Path, kind: str, tilt: float) -> None:
    """The volume is straightened, but a label lies on the original slices."""
    folder = tmp_path / "p1"
    write_small_series(folder, tilt=tilt)
    headers, image = read_series_headers(folder), read_volume(folder)
    frames = find_stack(headers, image)
    assert frames.straightened
    scanned = np.zeros(image.shape, bool)  # There are no pixels elsewhere.
    for k, (i, j) in enumerate(frames.offsets):
        scanned[i : i + SHAPE[0], j : j + SHAPE[1], k] = True
    masks = {name: mask & scanned for name, mask in zip("ab", random_segments(8, image.shape), strict=False)}
    MAKERS[kind](headers, image, masks).save_as(tmp_path / "p1.dcm", write_like_original=False)
    result = read_label_map(tmp_path / "p1.dcm", image, folder)
    for value, name in result.names.items():
        np.testing.assert_array_equal(result.mask(value), masks[name])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_label_among_the_slices_is_not_an_image(series: Series, tmp_path: Path, kind: str) -> None:
    folder, headers, image = series
    shutil.copytree(folder, tmp_path / "p1")
    MAKERS[kind](headers, image, _masks(kind)).save_as(tmp_path / "p1" / "label.dcm", write_like_original=False)
    result = read_volume(tmp_path / "p1")
    np.testing.assert_array_equal(result.voxels, image.voxels)
    np.testing.assert_allclose(result.affine, image.affine)
    assert len(read_series_headers(tmp_path / "p1")) == len(headers)
