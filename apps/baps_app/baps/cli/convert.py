"""``baps convert``: an image of any kind as NIfTI, one file for each volume that it holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baps.cli.console import Console
from baps.errors import InputError

if TYPE_CHECKING:
    from baps.imaging.volume import Volume

console = Console(soft_wrap=True, highlight=False)


def convert(
    image: Annotated[Path, typer.Argument(help="A file, or the folder of a DICOM series.")],
    out: Annotated[Path, typer.Argument(help="The folder that the NIfTI files go to; it is made.")],
) -> None:
    """Write the volumes of an image as NIfTI files that every viewer opens.

    A DICOM series or object may hold several volumes: time points, echoes, stacks. Each gets a file of its own. A
    tilted stack is straightened: its slices are moved by whole pixels to where they lie. One that cannot be read, as it
    lacks slices, holds up no other.
    """
    from baps.io import SeveralVolumesError, file_stem, read_each_volume, read_volume, volume_id, write_nifti

    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give a folder for the NIfTI files.")
    stem, refused = file_stem(image), None
    names = [f"{stem}.nii.gz"]
    volumes: Iterable[tuple[str, Volume | InputError]]
    try:
        volumes = [("", read_volume(image))]
    except SeveralVolumesError as error:
        names = [f"{volume_id(stem, number)}.nii.gz" for number, _ in enumerate(error.titles, start=1)]
        volumes = read_each_volume(image)
    for name in names:
        if (out / name).exists():
            raise InputError(f"{out / name} is there already. Give another folder, or remove it.")
    out.mkdir(parents=True, exist_ok=True)
    for name, (title, volume) in zip(names, volumes, strict=True):
        if isinstance(volume, InputError):
            refused = volume
            console.print(f"{out / name} is not written: {volume}", markup=False)
            continue
        write_nifti(out / name, volume)
        size = " x ".join(map(str, volume.shape))
        console.print(f"{out / name}: {size}{f', {title}' if title else ''}", markup=False)
        for note in volume.notes:
            console.print(f"  {note}", markup=False)
    if refused:
        raise refused
