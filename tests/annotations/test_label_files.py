"""Names of label files of other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from baps.annotations.label_files import match_labels, unused_labels
from baps.imaging.volume import Volume
from baps.io import write_nifti


def write(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(file, Volume(np.ones((3, 4, 5), np.uint8), np.eye(4)))


@pytest.mark.parametrize(
    ("label", "image"),
    [
        ("a.nii.gz", "a"),
        ("a.seg.nrrd", "a"),
        ("a-label.nrrd", "a"),
        ("a_mask.png", "a"),
        ("a_Segmentation.nii", "a"),
        ("a_labels.seg.nrrd", "a"),
        ("b.nii.gz", "b_0000"),
        ("b-label.nii.gz", "b_0000"),
        ("c-label.nii.gz", "c-label"),  # This is an image, not a label.
        ("d.nii.gz", ""),
        ("a_0001.nii.gz", ""),
        ("amask.nii.gz", ""),
    ],
)
def test_label_names_match_image_names(label: str, image: str) -> None:
    (match,) = match_labels([Path(label)], ["a", "b_0000", "b_0001", "c-label", "c"])
    assert match.image == image
    assert bool(match.reason) == (not image)


def test_two_labels_of_one_image_are_both_skipped() -> None:
    first, second, third = match_labels(map(Path, ("a.nii.gz", "a-label.nii.gz", "b.nii.gz")), ["a", "b"])
    assert first.reason == "a-label.nii.gz is a label of the same image. Keep one of them."
    assert second.reason.startswith("a.nii.gz is")
    assert not third.reason


@pytest.mark.parametrize("folder", ["labels", "labels/by-anna", "labelsTr", "masks", "segmentations"])
def test_unused_labels_are_reported(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", tmp_path / "c.nii.gz")
    write(*(tmp_path / folder / f"{name}.nii.gz" for name in ("a", "b", "x")))
    (message,) = unused_labels(tmp_path)
    assert message == (
        f"2 files in {tmp_path / folder} look like labels; they are not used. Import them: baps labels import "
        f"{tmp_path / folder} {tmp_path} --dry-run"
    )
    assert unused_labels(tmp_path, skip_named_folders=True) == ([] if "by-anna" in folder else [message])
    write(tmp_path / "labels" / "final" / "a.nii.gz")
    assert unused_labels(tmp_path)[0].startswith("1 files in")
    write(tmp_path / "labels" / "final" / "b.nii.gz")
    assert unused_labels(tmp_path) == []


def test_labels_beside_the_images_folder_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "imagesTr" / "case_0000.nii.gz", tmp_path / "labelsTr" / "case.nii.gz")
    (message,) = unused_labels(tmp_path / "imagesTr")
    assert f"1 files in {tmp_path / 'labelsTr'} look like labels" in message
    write(tmp_path / "data" / "images" / "a.nii.gz", tmp_path / "data" / "masks" / "a.nii.gz")
    (message,) = unused_labels(tmp_path / "data")
    assert f"1 files in {tmp_path / 'data' / 'masks'} look" in message


def test_labels_without_an_image_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", tmp_path / "labels" / "x.nii.gz")
    (message,) = unused_labels(tmp_path)
    assert "none is named as an image" in message


def test_folder_without_labels_gives_no_report(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", tmp_path / "labels" / "final" / "a.nii.gz", tmp_path / "labels" / "draft" / "a.nii.gz")
    assert unused_labels(tmp_path) == []
