"""``baps convert``: an image of any kind as NIfTI, one file for each volume that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import InputError

console = Console(soft_wrap=True, highlight=False)


def convert(
    image: Annotated[Path, typer.Argument(help="A file, or the folder of a DICOM series.")],
    out: Annotated[Path, typer.Argument(help="The folder that the NIfTI files go to; it is made.")],
) -> None:
    """Write the volumes of an image as NIfTI files that every viewer opens.

    A DICOM series or object may hold several volumes: time points, echoes, stacks. Each gets a file of its own. A
    tilted stack is straightened: its slices are moved by whole pixels to where they lie.
    """
    from ..formats import SeveralVolumesError, file_stem, read_dicom, read_volume, write_nifti

    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give a folder for the NIfTI files.")
    stem = file_stem(image)
    try:
        found: dict[str, tuple[int | None, str]] = {f"{stem}.nii.gz": (None, "")}
        volume = read_volume(image)
    except SeveralVolumesError as error:
        found = {f"{stem}-volume{n}.nii.gz": (n, title) for n, title in enumerate(error.titles, start=1)}
    for name in found:
        if (out / name).exists():
            raise InputError(f"{out / name} is there already. Give another folder, or remove it.")
    out.mkdir(parents=True, exist_ok=True)
    for name, (number, title) in found.items():
        if number is not None:
            volume = read_dicom(image, number)
        write_nifti(out / name, volume)
        size = " x ".join(map(str, volume.shape))
        console.print(f"{out / name}: {size}{f', {title}' if title else ''}", markup=False)
        for note in volume.notes:
            console.print(f"  {note}", markup=False)
