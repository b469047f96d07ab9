"""DICOM SEG that is written is read back, also by other programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume
from baps.io.dicom import seg
from baps.io.dicom.seg import Segment, describe_segments, slice_depths, write_segmentation
from tests.support.series import ORIENTATIONS, write_series


def read_segmentation(dataset: Dataset, image: Volume) -> dict[str, Segment]:
    """Return the segments by label."""
    return {segment.name: segment for segment in seg.read_segmentation(dataset, image)}


WHEN = datetime(2026, 3, 1, 12, 30, 5, tzinfo=timezone.utc)
DCMQI = Path(sys.executable).parent


@pytest.fixture(scope="module", params=ORIENTATIONS)
def series(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Dataset], Volume]:
    """Return shuffled headers, and the volume."""
    folder = tmp_path_factory.mktemp("series") / request.param
    write_series(folder, request.param)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.glob("*.dcm")]
    return sorted(headers, key=lambda header: str(header.SOPInstanceUID)), read_volume(folder)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Dataset], Volume]:
    folder = tmp_path_factory.mktemp("ct") / "axial"
    write_series(folder, "axial")
    return (
        folder,
        [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.glob("*.dcm")],
        read_volume(folder),
    )


def _balls(image: Volume) -> dict[str, NDArray[np.bool_]]:
    """Make two overlapping organs, neither symmetric in any axis."""
    grid = np.moveaxis(np.indices(image.shape), 0, -1) / np.array(image.shape)
    liver = ((grid - [0.4, 0.3, 0.5]) ** 2).sum(-1) < 0.04
    liver &= grid[..., 0] + 2 * grid[..., 1] < 1.2
    return {"liver": liver, "tumour": ((grid - [0.5, 0.3, 0.55]) ** 2).sum(-1) < 0.01}


def _marked(masks: dict[str, NDArray[np.bool_]]) -> dict[str, frozenset[int]]:
    return {name: frozenset(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}


def test_a_written_object_is_read_back_in_every_orientation(series: tuple[list[Dataset], Volume]) -> None:
    headers, image = series
    masks = _balls(image)
    result = read_segmentation(write_segmentation(headers, image, masks, _marked(masks), WHEN), image)
    for segment, (name, mask) in zip(result.values(), masks.items(), strict=True):
        assert segment.name == name
        np.testing.assert_array_equal(segment.mask, mask)
        assert segment.slices == _marked(masks)[name]


@settings(max_examples=10, deadline=None)
@given(few=arrays(bool, (4, 5, 24)), first=st.integers(0, 120), down=st.integers(0, 120))
def test_any_mask_is_preserved(
    ct: tuple[Path, list[Dataset], Volume], few: NDArray[np.bool_], first: int, down: int
) -> None:
    _, headers, image = ct
    mask = np.zeros(image.shape, bool)
    mask[first : first + 4, down : down + 5] = few
    everywhere = frozenset(range(image.shape[2]))
    result = read_segmentation(write_segmentation(headers, image, {"a": mask}, {"a": everywhere}, WHEN), image)
    np.testing.assert_array_equal(result["a"].mask, mask)
    assert result["a"].slices == everywhere


def test_empty_slices_differ_from_unseen_slices(
    ct: tuple[Path, list[Dataset], Volume],
) -> None:
    _, headers, image = ct
    mask = np.zeros(image.shape, bool)
    mask[40:50, 40:60, 7] = True
    header = write_segmentation(headers, image, {"a": mask}, {"a": frozenset({6, 7})}, WHEN)
    assert read_segmentation(header, image)["a"].slices == {6, 7}


def test_header_of_the_object(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    masks = _balls(image)
    for by_model, kind in ((False, "MANUAL"), (True, "SEMIAUTOMATIC")):
        dataset = write_segmentation(headers, image, masks, _marked(masks), WHEN, "Anna=B\\C", by_model)
        assert describe_segments(dataset) == {1: ("liver", True), 2: ("tumour", True)}
        assert {segment.SegmentAlgorithmType for segment in dataset.SegmentSequence} == {kind}
    dataset.SegmentSequence[1].SegmentAlgorithmType = "AUTOMATIC"
    assert describe_segments(dataset)[2] == ("tumour", False)
    assert dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert (dataset.ContentDate, str(dataset.ContentTime), dataset.TimezoneOffsetFromUTC) == (
        "20260301",
        "123005.000000",
        "+0000",
    )
    assert (dataset.StudyInstanceUID, dataset.PatientID) == (headers[0].StudyInstanceUID, headers[0].PatientID)
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert dataset.SeriesInstanceUID != headers[0].SeriesInstanceUID


def test_a_validator_accepts_the_object(ct: tuple[Path, list[Dataset], Volume], tmp_path: Path) -> None:
    validator = shutil.which("dciodvfy")
    if not validator:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    _, headers, image = ct
    masks = _balls(image)
    write_segmentation(headers, image, masks, _marked(masks), WHEN, "Anna", True).save_as(tmp_path / "seg.dcm")
    output = subprocess.run([validator, tmp_path / "seg.dcm"], capture_output=True, text=True).stderr
    assert "Segmentation" in output
    assert "Error" not in output


def test_dcmqi_reads_the_same_voxels(ct: tuple[Path, list[Dataset], Volume], tmp_path: Path) -> None:
    _, headers, image = ct
    masks = _balls(image)
    everywhere = frozenset(range(image.shape[2]))
    dataset = write_segmentation(headers, image, masks, dict.fromkeys(masks, everywhere), WHEN)
    dataset.save_as(tmp_path / "seg.dcm")
    command = [DCMQI / "segimage2itkimage", "--inputDICOM", tmp_path / "seg.dcm", "-t", "nii"]
    subprocess.run([*command, "--outputDirectory", tmp_path], check=True, capture_output=True)
    for number, mask in enumerate(masks.values(), start=1):
        read = read_volume(tmp_path / f"{number}.nii.gz")
        assert read.same_geometry(image)
        np.testing.assert_array_equal(read.voxels > 0, mask)


def test_files_of_dcmqi_are_read(ct: tuple[Path, list[Dataset], Volume], tmp_path: Path) -> None:
    """3D Slicer exports with dcmqi."""
    folder, _, image = ct
    liver = _balls(image)["liver"]
    source = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    label = SimpleITK.GetImageFromArray(liver.astype(np.uint8).T)
    label.CopyInformation(source)
    SimpleITK.WriteImage(label, tmp_path / "liver.nrrd")
    (tmp_path / "segments.json").write_text(
        '{"ContentCreatorName": "A", "SeriesDescription": "S", "SeriesNumber": "300", "InstanceNumber": "1",'
        ' "segmentAttributes": [[{"labelID": 1, "SegmentLabel": "liver", "SegmentDescription": "liver",'
        ' "SegmentAlgorithmType": "MANUAL", "SegmentedPropertyCategoryCodeSequence": {"CodeValue": "123037004",'
        ' "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"},'
        ' "SegmentedPropertyTypeCodeSequence": {"CodeValue": "10200004", "CodingSchemeDesignator": "SCT",'
        ' "CodeMeaning": "Liver"}}]], "ContentLabel": "SEGMENTATION", "ContentDescription": "x"}'
    )
    command = [DCMQI / "itkimage2segimage", "--inputImageList", tmp_path / "liver.nrrd", "--inputMetadata"]
    command += [tmp_path / "segments.json", "--inputDICOMDirectory", folder, "--outputDICOM", tmp_path / "seg.dcm"]
    subprocess.run([*command, "--skip", "1"], check=True, capture_output=True)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_segmentation(dataset, image)["liver"].mask, liver)
    assert describe_segments(dataset) == {1: ("liver", True)}


def test_rotated_and_flipped_frames_are_reordered(ct: tuple[Path, list[Dataset], Volume], tmp_path: Path) -> None:
    _, headers, image = ct
    masks = _balls(image)
    write_segmentation(headers, image, masks, _marked(masks), WHEN).save_as(tmp_path / "seg.dcm")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    pixels = dataset.pixel_array
    # Columns along the image's rows from the bottom up, rows along its columns.
    rotated = np.flip(pixels.transpose(0, 2, 1), 2)
    dataset.PixelData = pydicom.pixel_data_handlers.util.pack_bits(rotated.astype(np.uint8).ravel())
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, -1, 0, 1, 0, 0]
    last = headers[0].PixelSpacing[0] * (headers[0].Rows - 1)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, y + last, z]
    del dataset._pixel_array
    for segment, mask in zip(read_segmentation(dataset, image).values(), masks.values(), strict=True):
        np.testing.assert_array_equal(segment.mask, mask)


def test_fractions_count_from_one_half(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    masks = _balls(image)
    dataset = write_segmentation(headers, image, {"liver": masks["liver"]}, {"liver": frozenset({12})}, WHEN)
    dataset.SegmentationType, dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = (
        "FRACTIONAL",
        "OCCUPANCY",
        200,
    )
    levels = np.where(dataset.pixel_array > 0, 101, 99).astype(np.uint8)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelData = 8, 8, 7, levels.tobytes()
    del dataset._pixel_array
    np.testing.assert_array_equal(read_segmentation(dataset, image)["liver"].mask[:, :, 12], masks["liver"][:, :, 12])


@pytest.mark.parametrize(
    "change",
    [[0, 0, 300.0], [3.3, 0, 0], [0, 0, 1.4]],
    ids=["beyond the volume", "shifted by part of a voxel", "between slices"],
)
def test_a_segmentation_of_another_series_is_refused(
    ct: tuple[Path, list[Dataset], Volume], change: list[float]
) -> None:
    _, headers, image = ct
    masks = _balls(image)
    dataset = write_segmentation(headers, image, masks, _marked(masks), WHEN)
    moved = image.affine.copy()
    moved[:3, 3] += change
    with pytest.raises(InputError, match="does not lie on the slices of its series"):
        read_segmentation(dataset, Volume(image.voxels, moved))


def test_a_segmentation_of_another_resolution_is_refused(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    masks = _balls(image)
    dataset = write_segmentation(headers, image, masks, _marked(masks), WHEN)
    finer = image.affine @ np.diag([0.5, 0.5, 1, 1])
    with pytest.raises(InputError, match="another resolution"):
        read_segmentation(dataset, Volume(np.zeros((256, 256, 24), np.int16), finer))


def test_an_object_that_is_not_a_segmentation_is_refused(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    with pytest.raises(InputError, match="cannot be read"):
        read_segmentation(headers[0], image)
    masks = _balls(image)
    dataset = write_segmentation(headers, image, masks, _marked(masks), WHEN)
    dataset.PixelData = dataset.PixelData[:100]
    with pytest.raises(InputError, match="cannot be read"):
        read_segmentation(dataset, image)


def test_slices_that_do_not_make_the_volume_are_refused(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    masks = _balls(image)
    with pytest.raises(
        InputError, match="has 23 slices that make 1 volumes, none of which has the geometry of the image .24 slices."
    ):
        write_segmentation(headers[1:], image, masks, _marked(masks), WHEN)


def test_segmentation_of_a_multi_frame_image(ct: tuple[Path, list[Dataset], Volume]) -> None:
    """Frames may be in the order of K or reversed; every mask stays with its frame."""
    _, headers, image = ct
    masks = _balls(image)
    along = sorted(headers, key=lambda header: float(header.ImagePositionPatient[2]))
    for order in (along, along[::-1]):
        dataset = write_segmentation([_multi_frame(order)], image, masks, _marked(masks), WHEN)
        for segment in read_segmentation(dataset, image).values():
            np.testing.assert_array_equal(segment.mask, masks[segment.name])


def _multi_frame(headers: list[Dataset]) -> Dataset:
    """Convert the series to one enhanced CT image."""
    first, frames = headers[0], []
    enhanced = Dataset()
    enhanced.update({element.tag: element for element in first if element.keyword not in _OF_FRAMES})
    enhanced.SOPClassUID, enhanced.SOPInstanceUID = EnhancedCTImageStorage, "1.2.3.4"
    enhanced.NumberOfFrames = len(headers)
    for header in headers:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = header.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    enhanced.SharedFunctionalGroupsSequence, enhanced.PerFrameFunctionalGroupsSequence = [shared], frames
    return enhanced


_OF_FRAMES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")


def test_images_without_a_position_have_no_segmentation(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    film = _multi_frame(headers)
    del film.SharedFunctionalGroupsSequence
    masks = _balls(image)
    with pytest.raises(InputError, match="have no positions"):
        write_segmentation([film], image, masks, _marked(masks), WHEN)


def test_masks_follow_their_slices_with_varying_steps(ct: tuple[Path, list[Dataset], Volume]) -> None:
    """The steps are within the tolerance, and the volume is evenly spaced."""
    _, headers, image = ct
    along = sorted((deepcopy(header) for header in headers), key=lambda header: float(header.ImagePositionPatient[2]))
    for k, header in enumerate(along):
        x, y, _ = header.ImagePositionPatient
        header.ImagePositionPatient = [x, y, 6 * k if k < 12 else 6 * 12 + 6.3 * (k - 12)]
    affine = image.affine.copy()
    affine[2, 2] = float(along[-1].ImagePositionPatient[2]) / 23
    uneven, mask = Volume(image.voxels, affine), np.zeros(image.shape, bool)
    mask[40:50, 40:60, 14] = True
    dataset = write_segmentation(along[::-1], uneven, {"a": mask}, {"a": frozenset({14})}, WHEN)
    (frame,) = dataset.PerFrameFunctionalGroupsSequence
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == along[14].SOPInstanceUID
    (read,) = seg.read_segmentation(dataset, uneven, slice_depths(along, uneven))
    np.testing.assert_array_equal(read.mask, mask)


@pytest.mark.parametrize("name", ["Milz – groß", "脾臓", "селезёнка"])
def test_names_in_any_script_are_preserved(ct: tuple[Path, list[Dataset], Volume], name: str, tmp_path: Path) -> None:
    _, headers, image = ct
    sources = [deepcopy(header) for header in headers]
    for source in sources:
        source.SpecificCharacterSet, source.PatientName = "ISO_IR 192", "山田^太郎"
    mask = _balls(image)["liver"]
    write_segmentation(sources, image, {name: mask}, {name: frozenset()}, WHEN).save_as(tmp_path / "seg.dcm")
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(read.PatientName) == "山田^太郎"
    np.testing.assert_array_equal(read_segmentation(read, image)[name].mask, mask)


def test_segments_of_one_label_are_merged(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    masks = _balls(image)
    dataset = write_segmentation(headers, image, masks, _marked(masks), WHEN)
    dataset.SegmentSequence[1].SegmentLabel = "liver"
    np.testing.assert_array_equal(read_segmentation(dataset, image)["liver"].mask, masks["liver"] | masks["tumour"])


def test_shared_segment_number_is_read(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    mask = _balls(image)["liver"]
    dataset = write_segmentation(headers, image, {"a": mask}, {"a": frozenset()}, WHEN)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        if "SegmentIdentificationSequence" in frame:  # Newer versions of highdicom share it themselves.
            shared.SegmentIdentificationSequence = frame.SegmentIdentificationSequence
            del frame.SegmentIdentificationSequence
    assert "SegmentIdentificationSequence" in shared
    np.testing.assert_array_equal(read_segmentation(dataset, image)["a"].mask, mask)


def test_anonymised_headers_are_accepted(
    ct: tuple[Path, list[Dataset], Volume],
) -> None:
    _, headers, image = ct
    bare = [deepcopy(header) for header in headers]
    for header in bare:
        header.PatientSex = "U"
        for keyword in ("StudyID", "AccessionNumber", "PatientBirthDate", "StudyDate", "StudyTime", "PatientID",
                        "PatientName", "SliceThickness"):  # fmt: skip
            if keyword in header:
                delattr(header, keyword)
    masks = _balls(image)
    result = read_segmentation(write_segmentation(bare, image, masks, _marked(masks), WHEN), image)
    np.testing.assert_array_equal(result["liver"].mask, masks["liver"])


def test_a_garbled_header_is_not_quoted(ct: tuple[Path, list[Dataset], Volume]) -> None:
    _, headers, image = ct
    garbled = [deepcopy(header) for header in headers]
    for header in garbled:
        header["PatientBirthDate"] = RawDataElement(Tag("PatientBirthDate"), "DA", 10, b"1950-01-01", 0, False, True)
    masks = _balls(image)
    try:
        write_segmentation(garbled, image, masks, _marked(masks), WHEN)
    except InputError as error:
        assert "1950" not in str(error)
