"""List the images in a folder."""

from __future__ import annotations

from pathlib import Path

from baps.io.dicom.volumes import is_dicom_folder
from baps.io.reading import IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """List the images directly in a folder: files of every kind that ``read_volume`` reads, and DICOM folders.

    Hidden files are skipped: macOS puts them beside others, and a file is hidden until it is complete.

    Args:
        folder: path of the folder.

    Returns:
        Paths of the images, sorted by name.
    """
    return [path for path in sorted(folder.iterdir()) if _is_image_file(path) or _is_series(path)]


def images_folder(studies: Path) -> Path:
    """Find the folder of the images in a folder of studies: ``images`` below it, unless image files lie beside that.

    DICOM folders beside ``images`` are ignored. If ``images`` is a DICOM folder itself, it is one of the images.

    Args:
        studies: path of the folder of studies.

    Returns:
        Path of the folder of the images.
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
