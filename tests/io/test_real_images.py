"""Real files of scanners and other programs; skipped if they are not beside the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from baps.io import is_dicom_folder, read_labels, read_volume
from baps.io.dicom.seg import read_segmentation, write_segmentation
from benchmarks.real_data import ROOT

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real images at {ROOT}; set BAPS_REAL_DATA"),
]
TOTAL = ROOT / "totalsegmentator_example"
DCMQI = ROOT / "dicom" / "dcmqi_ct3slice_liverseg"
_SERIES = ("StudyInstanceUID", "SeriesInstanceUID")
LIVER = 5
"""The value of the liver in the labels of TotalSegmentator."""


@pytest.mark.parametrize(
    "folder",
    [
        TOTAL / "example_ct_dicom",
        DCMQI / "ct",
        ROOT / "dicom/rtutils_ct2_rtstruct",
    ],
    ids=lambda folder: folder.name,
)
def test_series_equals_the_one_of_itk(folder: Path) -> None:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_volume(folder)
    assert is_dicom_folder(folder)
    np.testing.assert_array_equal(volume.voxels, SimpleITK.GetArrayFromImage(image).swapaxes(0, 2))
    for voxel in ((0, 0, 0), (100, 200, 1)):
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(volume.affine @ (*voxel, 1), (-x, -y, z, 1), atol=1e-4)


@pytest.mark.parametrize("name", ["liver.dcm", "partial_overlaps.dcm"])
def test_segmentations_of_another_program_match_dcmqi(name: str, tmp_path: Path) -> None:
    image = read_volume(DCMQI / "ct")
    command = [Path(sys.executable).with_name("segimage2itkimage"), "--inputDICOM", DCMQI / name, "-t", "nii"]
    subprocess.run([*command, "--outputDirectory", tmp_path], check=True, capture_output=True)
    result = list(read_segmentation(pydicom.dcmread(DCMQI / name), image))
    assert result
    for number, segment in enumerate(result, start=1):
        theirs = read_volume(tmp_path / f"{number}.nii.gz")
        marked_positions = (
            theirs.affine @ np.append(np.argwhere(theirs.voxels > 0), np.ones(((theirs.voxels > 0).sum(), 1)), 1).T
        )
        voxels = np.rint(np.linalg.inv(image.affine) @ marked_positions).astype(int)[:3]
        assert segment.mask[tuple(voxels)].all()
        assert segment.mask.sum() == voxels.shape[1] > 0


@pytest.mark.parametrize("folder", [TOTAL / "example_ct_dicom", DCMQI / "ct"], ids=lambda folder: folder.parent.name)
def test_segmentation_of_a_real_series_is_valid(folder: Path, tmp_path: Path) -> None:
    image = read_volume(folder)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    for header in headers:
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID  # Some files have no segments.
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID = (header.get(name) or "1.2.3" for name in _SERIES)
    masks = {"bone": image.voxels > 200, "soft tissue": (image.voxels > 0) & (image.voxels < 250)}
    slices = {name: frozenset(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}
    dataset = write_segmentation(headers, image, masks, slices, datetime.now(timezone.utc), by_model=True)
    dataset.save_as(tmp_path / "seg.dcm")
    for segment in read_segmentation(pydicom.dcmread(tmp_path / "seg.dcm"), image):
        np.testing.assert_array_equal(segment.mask, masks[segment.name])
    if validator := shutil.which("dciodvfy"):
        output = subprocess.run([validator, tmp_path / "seg.dcm"], capture_output=True, text=True).stderr
        assert "Error" not in output


def test_labels_with_flipped_rows_are_reordered() -> None:
    image = read_volume(TOTAL / "example_ct_dicom")
    stored = read_volume(TOTAL / "example_seg_dicom.nii.gz")
    labels = read_labels(TOTAL / "example_seg_dicom.nii.gz", image)
    assert not stored.same_geometry(image)
    np.testing.assert_array_equal(labels, stored.voxels[:, ::-1])
    liver = image.voxels[labels == LIVER]
    assert 60 < np.median(liver) < 130  # Contrast-enhanced liver, Hounsfield units.
    assert (liver < -100).mean() < 0.01


def test_photographs_and_masks_are_read() -> None:
    image = read_volume(ROOT / "isic2017_skin" / "images" / "ISIC_0012903.jpg")
    mask = read_labels(ROOT / "isic2017_skin" / "masks" / "ISIC_0012903.png", image)
    assert image.colour
    assert image.shape == (1024, 685, 1)
    inside, outside = image.voxels[mask > 0].mean(), image.voxels[mask == 0].mean()
    assert inside < outside - 20  # This mole is darker than skin.


def test_arrays_and_labels_are_read() -> None:
    for path in sorted((ROOT / "medscribble").glob("*/*.npz")):
        image = read_volume(path)
        assert image.shape == (256, 256, 1)
        assert read_labels(path, image).any()
