"""Which images lie in a folder."""

from __future__ import annotations

from pathlib import Path

from baps.io.dicom.volumes import is_dicom_folder
from baps.io.reading import IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, by name: files of every kind that ``read_volume`` reads, and DICOM folders.

    Hidden ones are none: macOS lays them beside others, and a file is hidden as long as it is not whole.
    """
    return [path for path in sorted(folder.iterdir()) if _is_image_file(path) or _is_series(path)]


def images_folder(studies: Path) -> Path:
    """Where the images of a folder of studies lie: in ``images`` below it, unless image files lie beside that.

    A series beside ``images`` does not count, unlike a file. ``images`` may be a series itself, one of the images then.
    """
    inside = studies / "images"
    if not inside.is_dir() or is_dicom_folder(inside):
        return studies
    return studies if any(map(_is_image_file, studies.iterdir())) else inside


def _is_image_file(path: Path) -> bool:
    return not _is_hidden(path) and path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file()


def _is_series(path: Path) -> bool:
    return not _is_hidden(path) and is_dicom_folder(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")
