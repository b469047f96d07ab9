from __future__ import annotations

from pathlib import Path

import pytest

from baps.io import IMAGE_SUFFIXES, images_folder, list_images


def _series(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "IM0001").write_bytes(bytes(128) + b"DICM")
    return path


def _names(folder: Path) -> list[str]:
    return [path.name for path in list_images(folder)]


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_files_of_every_kind_are_images(tmp_path: Path, suffix: str) -> None:
    for name in (f"b{suffix}", f"a{suffix.upper()}", "notes.txt", "nii.gz"):
        (tmp_path / name).touch()
    assert _names(tmp_path) == [f"a{suffix.upper()}", f"b{suffix}"]


def test_a_pair_of_files_is_one_image(tmp_path: Path) -> None:
    for name in ("a.hdr", "a.img", "b.nhdr", "b.raw", "c.mhd"):
        (tmp_path / name).touch()
    assert _names(tmp_path) == ["a.hdr"]


def test_a_dicom_series_is_one_image(tmp_path: Path) -> None:
    _series(tmp_path / "1.2.840")
    (tmp_path / "0.nii").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.nii").touch()
    assert _names(tmp_path) == ["0.nii", "1.2.840"]


def test_hidden_files_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "._a.nii.gz").touch()
    _series(tmp_path / ".series")
    assert _names(tmp_path) == []


def test_folders_named_like_files_and_broken_links_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "a.nii").mkdir()
    (tmp_path / "b.nii").symlink_to(tmp_path / "gone")
    (tmp_path / "c.nii.gz").touch()
    (tmp_path / "d.nii.gz").symlink_to(tmp_path / "c.nii.gz")
    assert _names(tmp_path) == ["c.nii.gz", "d.nii.gz"]


def test_images_are_in_the_folder_or_in_its_subfolder_images(tmp_path: Path) -> None:
    assert images_folder(tmp_path) == tmp_path
    assert images_folder(tmp_path / "absent") == tmp_path / "absent"
    (tmp_path / "images").mkdir()
    for beside in (".hidden.nii", "notes.txt"):
        (tmp_path / beside).touch()
    _series(tmp_path / "series")
    assert images_folder(tmp_path) == tmp_path / "images"
    (tmp_path / "loose.nii").touch()
    assert images_folder(tmp_path) == tmp_path


def test_a_series_in_images_is_an_image_of_the_folder(tmp_path: Path) -> None:
    _series(tmp_path / "images")
    assert images_folder(tmp_path) == tmp_path
    assert _names(tmp_path) == ["images"]
