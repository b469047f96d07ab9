"""Output files of commands: adapters, masks and results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baps.errors import BapsError, InputError

if TYPE_CHECKING:
    from baps.imaging.volume import Volume

AdapterFile = Annotated[Path, typer.Option(metavar="FILE", help="File for the adapter.")]
MaskFile = Annotated[Path, typer.Option(metavar="FILE", help="File for the mask: .nii.gz, .nii, .nrrd.")]
FiguresFile = Annotated[Path, typer.Option("--json", metavar="FILE", help="JSON file for the results.")]


def make_adapter_folder(adapter: Path) -> None:
    """Make the folder of an adapter file before anything is computed.

    Args:
        adapter: Path of the file.

    Raises:
        InputError: If the folder cannot be made, or the path is that of a folder.
    """
    if adapter.is_dir():
        raise InputError(f"{adapter} is a folder. Give --out the name of a file.")
    make_folder(adapter.parent)


def make_folder(folder: Path) -> None:
    """Make the folder of ``--out`` before anything is computed.

    Args:
        folder: Path of the folder.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}). Give another --out.") from error


def check_mask_file(out: Path, image: Path) -> None:
    """Check that a mask can be written, before anything is computed.

    Args:
        out: File for the mask.
        image: The image, which the mask must not replace.

    Raises:
        InputError: If the suffix is not supported, the folder does not exist, or the file is the image.
    """
    from baps.io import writable_suffix

    writable_suffix(out)
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent} for the mask. Make it, or give another --out.")
    if out.exists() and image.exists() and out.samefile(image):
        raise InputError(f"The mask would replace the image {image}. Give another --out.")


def write_mask(out: Path, mask: Volume) -> None:
    """Write a mask.

    Args:
        out: File for the mask.
        mask: The mask.

    Raises:
        BapsError: If the file cannot be written.
    """
    from baps.io import write_volume

    try:
        write_volume(out, mask)
    except OSError as error:
        raise BapsError(f"The mask cannot be written to {out}: {error.strerror}. Give another --out.") from error


def check_figures_file(file: Path) -> None:
    """Check that a results file can be written, before anything is computed.

    Args:
        file: Path of the file.

    Raises:
        InputError: If it is a folder, or its folder does not exist.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"The results cannot be written to {file}. Give --json a file in a folder that exists.")


def write_figures(file: Path, figures: dict[str, Any]) -> None:
    """Write results as JSON.

    Args:
        file: Path of the file.
        figures: The results.

    Raises:
        BapsError: If the file cannot be written.
    """
    try:
        file.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        sentence = f"The results cannot be written to {file} ({error.strerror}). Give another --json."
        raise BapsError(sentence) from error
