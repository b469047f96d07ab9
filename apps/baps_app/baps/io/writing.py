"""Write a volume in the format that the file's name says."""

from __future__ import annotations

from pathlib import Path

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.nifti import write_nifti
from baps.io.nrrd import write_nrrd
from baps.utils.atomic_write import atomic_write

_WRITERS = {".nii.gz": write_nifti, ".nii": write_nifti, ".nrrd": write_nrrd}


def writable_suffix(path: Path) -> str:
    """Return the suffix of a file that a volume can be written to.

    Args:
        path: the file.

    Returns:
        ``.nii.gz``, ``.nii`` or ``.nrrd``.

    Raises:
        InputError: if the name has another suffix.
    """
    suffix = next((suffix for suffix in _WRITERS if path.name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"A volume cannot be written as {path.name}. Use a name that ends in {', '.join(_WRITERS)}.")
    return suffix


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume or a mask. An older file is replaced when the new one is complete.

    Args:
        path: the file, ``.nii.gz``, ``.nii`` or ``.nrrd``.
        volume: what to write; its voxels keep their type and order.

    Raises:
        InputError: if the name has another suffix, or the axes are not at right angles, which NIfTI cannot store.
    """
    suffix = writable_suffix(path)
    with atomic_write(path, suffix) as partial:
        _WRITERS[suffix](partial, volume)
