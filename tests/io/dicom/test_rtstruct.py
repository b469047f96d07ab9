"""RTSTRUCT contours agree with other readers."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from skimage.draw import polygon2mask

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_volume
from baps.io.dicom.labels import read_series_headers
from baps.io.dicom.rtstruct import (
    describe_structures,
    fill_contours,
    read_structures,
    structure_references,
    structure_series,
    trace_outlines,
    write_structures,
)
from baps.io.dicom.seg import slice_depths, source_frames
from tests.support.small_series import OBLIQUE, random_segments, write_small_series

WHEN = datetime(2026, 3, 1, 12, 30, 5, tzinfo=timezone.utc)
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))

Case = tuple[Path, list[Dataset], Volume]


@pytest.fixture(scope="module")
def oblique(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case(tmp_path_factory.mktemp("oblique") / "p1")


def _case(folder: Path, *args: object, **kwargs: object) -> Case:
    write_small_series(folder, *args, **kwargs)  # type: ignore[arg-type]
    return folder, read_series_headers(folder), read_volume(folder)


def _read(dataset: Dataset, image: Volume, notes: list[str] | None = None) -> dict[str, NDArray[np.bool_]]:
    return {segment.name: segment.mask for segment in read_structures(dataset, image, notes=notes)}


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_outlines_enclose_the_mask_by_both_fill_rules(mask: NDArray[np.bool_]) -> None:
    """This holds for the even-odd rule, and for the union of contours, which some programs fill."""
    result = trace_outlines(mask)
    if not mask.any():
        assert result == []
        return
    np.testing.assert_array_equal(fill_contours(result, mask.shape), mask)
    union = np.logical_or.reduce([polygon2mask(mask.shape, points) for points in result])
    np.testing.assert_array_equal(union, mask)


@given(
    st.lists(st.tuples(st.floats(-3, 15), st.floats(-3, 15)), min_size=3, max_size=12),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_filled_polygons_match_scikit_image(points: list[tuple[float, float]], shape: tuple[int, int]) -> None:
    polygon = np.array(points) + 1e-4 * np.pi  # The contours avoid voxel centres on an edge.
    ours, theirs = fill_contours([polygon], shape), polygon2mask(shape, polygon)
    edges = np.roll(polygon, -1, 0) - polygon
    for i, j in np.argwhere(ours != theirs):  # They may differ at centres that lie on an edge.
        along = ((([i, j] - polygon) * edges).sum(1) / np.maximum((edges**2).sum(1), 1e-12)).clip(0, 1)
        away = np.linalg.norm(polygon + along[:, None] * edges - [i, j], axis=1)
        assert away.min() < 2e-3


def test_a_contour_through_the_centres_of_voxels_marks_them() -> None:
    """Programs built on OpenCV draw such contours; a hole passes through marked voxels too."""
    mask = np.zeros((12, 12), bool)
    mask[2:9, 3:11] = True
    outer = np.array([(2, 3), (8, 3), (8, 10), (2, 10)], float) + 2e-4
    np.testing.assert_array_equal(fill_contours([outer], mask.shape), mask)
    mask[5:7, 6:8] = False
    hole = np.array([(4, 5), (7, 5), (7, 8), (4, 8)], float)
    np.testing.assert_array_equal(fill_contours([outer, hole], mask.shape), mask)


@pytest.mark.parametrize("directions", [OBLIQUE, AXIAL, ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))])
def test_masks_survive_in_every_orientation(tmp_path: Path, directions: tuple[tuple[float, ...], ...]) -> None:
    folder, headers, image = _case(tmp_path / "p1", directions)
    for seed in range(12):
        masks = {f"organ {n}": mask for n, mask in enumerate(random_segments(seed))}
        write_structures(headers, image, masks, WHEN).save_as(tmp_path / "rt.dcm", write_like_original=False)
        result = read_label_map(tmp_path / "rt.dcm", image, folder)
        assert list(result.names.values()) == list(masks)
        for value, name in result.names.items():
            np.testing.assert_array_equal(result.mask(value), masks[name])


def test_plastimatch_reads_the_same_voxels(tmp_path: Path) -> None:
    program = shutil.which("plastimatch")
    if not program:
        pytest.skip("plastimatch is not installed: apt-get install plastimatch")
    folder, headers, image = _case(tmp_path / "p1", AXIAL, (40, 30, 8))
    masks = {f"organ{n}": mask for seed in (1, 2, 3) for n, mask in enumerate(random_segments(seed, image.shape))}
    write_structures(headers, image, masks, WHEN).save_as(tmp_path / "rt.dcm", write_like_original=False)
    command = [program, "convert", "--input", tmp_path / "rt.dcm", "--referenced-ct", folder, "--output-prefix"]
    subprocess.run([*command, tmp_path / "masks", "--prefix-format", "nrrd"], check=True, capture_output=True)
    for name, mask in masks.items():
        read = read_volume(tmp_path / "masks" / f"{name}.nrrd")
        assert read.same_geometry(image)
        np.testing.assert_array_equal(read.voxels > 0, mask)


def test_files_of_plastimatch_are_read(tmp_path: Path) -> None:
    program = shutil.which("plastimatch")
    if not program:
        pytest.skip("plastimatch is not installed: apt-get install plastimatch")
    folder, headers, image = _case(tmp_path / "p1", AXIAL, (40, 30, 8))
    mask = random_segments(3, image.shape)[0]
    write_structures(headers, image, {"organ": mask}, WHEN).save_as(tmp_path / "rt.dcm", write_like_original=False)
    command = [program, "convert", "--input", tmp_path / "rt.dcm", "--referenced-ct", folder]
    subprocess.run([*command, "--output-dicom", tmp_path / "theirs"], check=True, capture_output=True)
    (file,) = (tmp_path / "theirs").glob("rtss*")
    file.rename(tmp_path / "theirs.dcm")
    result = read_label_map(tmp_path / "theirs.dcm", image, folder)
    np.testing.assert_array_equal(result.mask(1), mask)


def test_positions_are_in_patient_mm_and_references_are_those_of_the_series(oblique: Case) -> None:
    _, headers, image = oblique
    mask = np.zeros(image.shape, bool)
    mask[4:7, 5:9, 2] = True
    dataset = write_structures(headers, image, {"liver": mask}, WHEN, "Anna=B", by_model=True)
    (structure,) = dataset.ROIContourSequence
    (contour,) = structure.ContourSequence
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    assert contour.NumberOfContourPoints == len(points)
    ras = image.affine @ [5, 6.5, 2, 1]  # The centre of the mask.
    np.testing.assert_allclose(points.mean(0), ras[:3] * [-1, -1, 1], atol=0.2)
    source = next(
        first for first in headers if first.SOPInstanceUID == contour.ContourImageSequence[0].ReferencedSOPInstanceUID
    )
    normal = np.cross(*np.reshape(source.ImageOrientationPatient, (2, 3)))
    np.testing.assert_allclose((points - source.ImagePositionPatient) @ normal, 0, atol=1e-3)
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert {first.ReferencedSOPInstanceUID for first in series.ContourImageSequence} == {
        h.SOPInstanceUID for h in headers
    }
    assert (dataset.StudyInstanceUID, dataset.PatientID, dataset.FrameOfReferenceUID) == (
        headers[0].StudyInstanceUID,
        "p1",
        headers[0].FrameOfReferenceUID,
    )
    assert dataset.SeriesInstanceUID != headers[0].SeriesInstanceUID
    assert describe_structures(dataset) == {1: ("liver", True)}
    dataset.StructureSetROISequence[0].ROIGenerationAlgorithm = "AUTOMATIC"
    assert describe_structures(dataset) == {1: ("liver", False)}


def test_slightly_uneven_slices_keep_their_contours(tmp_path: Path) -> None:
    folder, headers, image = _case(tmp_path / "p1", OBLIQUE, uneven=0.5)
    mask = random_segments(5)[0]
    dataset = write_structures(headers, image, {"a": mask}, WHEN)
    (result,) = read_structures(dataset, image, slice_depths(headers, image))
    np.testing.assert_array_equal(result.mask, mask)
    dataset.save_as(tmp_path / "rt.dcm", write_like_original=False)
    np.testing.assert_array_equal(read_label_map(tmp_path / "rt.dcm", image, folder).mask(1), mask)
    with pytest.raises(InputError, match="off the nearest slice"):
        list(read_structures(dataset, image))


def test_contours_of_other_slices_are_refused(oblique: Case) -> None:
    _, headers, image = oblique
    dataset = write_structures(headers, image, {"a": random_segments(5)[0]}, WHEN)
    moved = image.affine.copy()
    moved[:3, 3] += 1.2 * image.slice_normal
    with pytest.raises(InputError, match=r"A contour of a is .* mm off the nearest slice"):
        _read(dataset, Volume(image.voxels, moved))


def test_points_are_skipped_with_a_note(oblique: Case) -> None:
    _, headers, image = oblique
    masks = {"isocentre": random_segments(5)[0], "liver": random_segments(6)[0]}
    dataset = write_structures(headers, image, masks, WHEN)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType, contour.ContourData, contour.NumberOfContourPoints = "POINT", ["1", "2", "3"], 1
    count = len(dataset.ROIContourSequence[0].ContourSequence)
    assert describe_structures(dataset) == {2: ("liver", True)}
    messages: list[str] = []
    result = _read(dataset, image, messages)
    assert messages == [f"{count} contours of isocentre enclose no area (points, open lines) and were skipped."]
    np.testing.assert_array_equal(result["liver"], masks["liver"])
    assert result.keys() == {"liver"}


def test_structures_of_one_name_are_merged_and_parts_outside_are_noted(oblique: Case) -> None:
    _, headers, image = oblique
    first, second = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    first[2:6, 2:6, 2], second[4:9, 4:9, 2] = True, True
    dataset = write_structures(headers, image, {"a": first, "b": second}, WHEN)
    dataset.StructureSetROISequence[1].ROIName = "a"
    np.testing.assert_array_equal(_read(dataset, image)["a"], first | second)
    messages: list[str] = []
    result = _read(dataset, Volume(image.voxels[:5], image.affine), messages)
    np.testing.assert_array_equal(result["a"], (first | second)[:5])
    assert messages == ["a extends beyond the image; the part outside was dropped."]


@pytest.mark.parametrize("broken", [["1", "2"], ["nan"] * 9])
def test_broken_objects_are_refused(oblique: Case, broken: list[str]) -> None:
    _, headers, image = oblique
    dataset = write_structures(headers, image, {"a": random_segments(5)[0]}, WHEN)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData = broken
    with pytest.raises(InputError, match="The RTSTRUCT cannot be read"):
        _read(dataset, image)


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_without_identity_has_no_structures(oblique: Case, keyword: str) -> None:
    folder, _, image = oblique
    headers = read_series_headers(folder)
    for header in headers:
        delattr(header, keyword)
    with pytest.raises(InputError, match=f"has no {keyword}"):
        write_structures(headers, image, {"a": random_segments(5)[0]}, WHEN)


def test_the_file_is_complete_dicom(oblique: Case, tmp_path: Path) -> None:
    _, headers, image = oblique
    write_structures(headers, image, {"Milz – groß": random_segments(5)[0]}, WHEN).save_as(
        tmp_path / "rt.dcm", write_like_original=False
    )
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    assert read.SOPClassUID.name == "RT Structure Set Storage"
    assert read.StructureSetROISequence[0].ROIName == "Milz – groß"
    assert all(
        len(str(value)) <= 16 for first in read.ROIContourSequence[0].ContourSequence for value in first.ContourData
    )


def test_a_structure_that_cannot_be_read_does_not_hide_the_others(oblique: Case) -> None:
    _, headers, image = oblique
    masks = {name: random_segments(5)[n] for n, name in enumerate(("moved", "elsewhere", "good"))}
    dataset = write_structures(headers, image, masks, WHEN)
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3) + 1.4 * image.slice_normal * [-1, -1, 1]
        contour.ContourData = [f"{value:.10g}" for value in points.ravel()]
    dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"
    unreadable: dict[str, str] = {}
    frame = headers[0].FrameOfReferenceUID
    (result,) = read_structures(dataset, image, frame_of_reference=frame, unreadable=unreadable)
    assert result.name == "good"
    np.testing.assert_array_equal(result.mask, masks["good"])
    assert "off the nearest slice" in unreadable["moved"]
    assert "another frame of reference" in unreadable["elsewhere"]
    with pytest.raises(InputError, match="off the nearest slice"):
        list(read_structures(dataset, image))


def test_references_are_those_of_the_contours_or_of_the_object(oblique: Case) -> None:
    _, headers, image = oblique
    mask = np.zeros(image.shape, bool)
    mask[3:7, 3:7, 2:4] = True
    dataset = write_structures(headers, image, {"a": mask}, WHEN)
    assert structure_series(dataset) == (headers[0].SeriesInstanceUID,)
    frames = source_frames(headers, image)
    assert structure_references(dataset) == {(frames[k][0].SOPInstanceUID, 0) for k in (2, 3)}
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        del contour.ContourImageSequence
    assert structure_references(dataset) == {(header.SOPInstanceUID, 0) for header in headers}
    assert structure_references(Dataset()) == set()
