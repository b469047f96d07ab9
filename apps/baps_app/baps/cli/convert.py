"""``baps convert``: convert an image of any kind to NIfTI, one file per volume."""

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
    out: Annotated[Path, typer.Argument(help="Folder for the NIfTI files; made if it does not exist.")],
) -> None:
    """Write the volumes of an image as NIfTI files, which every viewer opens.

    A DICOM series or object may contain several volumes: time points, echoes, stacks. Each gets a separate file. A
    tilted stack is straightened: its slices are moved by whole pixels to their positions. A volume that cannot be read,
    for example because slices are missing, is reported, and the others are written.
    """
    from baps.io import SeveralVolumesError, file_stem, read_each_volume, read_volume, volume_id, write_nifti

    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give a folder for the NIfTI files.")
    stem, failure = file_stem(image), None
    names = [f"{stem}.nii.gz"]
    volumes: Iterable[tuple[str, Volume | InputError]]
    try:
        volumes = [("", read_volume(image))]
    except SeveralVolumesError as error:
        names = [f"{volume_id(stem, number)}.nii.gz" for number, _ in enumerate(error.titles, start=1)]
        volumes = read_each_volume(image)
    for name in names:
        if (out / name).exists():
            raise InputError(f"{out / name} exists already. Give another folder, or remove the file.")
    out.mkdir(parents=True, exist_ok=True)
    for name, (title, volume) in zip(names, volumes, strict=True):
        if isinstance(volume, InputError):
            failure = volume
            console.print(f"{out / name} is not written: {volume}", markup=False)
            continue
        write_nifti(out / name, volume)
        size = " x ".join(map(str, volume.shape))
        console.print(f"{out / name}: {size}{f', {title}' if title else ''}", markup=False)
        for note in volume.notes:
            console.print(f"  {note}", markup=False)
    if failure:
        raise failure
