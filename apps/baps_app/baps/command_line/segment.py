"""``baps segment``: one click in, one mask out, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import BapsError, InputError
from . import options

_KINDS = (".nii.gz", ".nii", ".nrrd")
console = Console(soft_wrap=True, highlight=False)


def segment(
    image: Annotated[Path, typer.Argument(help="The volume.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help=f"Where the mask goes: {', '.join(_KINDS)}.")],
    click: Annotated[list[str] | None, typer.Option(metavar="I,J,K", help="In the organ; may be repeated.")] = None,
    background: Annotated[list[str] | None, typer.Option(metavar="I,J,K", help="Beside it; may be repeated.")] = None,
    box: Annotated[str, typer.Option(metavar="I0,I1,J0,J1,K0,K1", help="First and last voxels of the organ.")] = "",
    plane: Annotated[
        str, typer.Option(help="How to cut: as-stored (across K), axial, coronal, sagittal, or across I, J or K.")
    ] = "as-stored",
    label: Annotated[str, typer.Option(help="The organ, whose adapter is used; without it, the shared one.")] = "",
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="With the model as it is, without adapters.")] = False,
    black_box: options.BlackBox = "",
    weights: options.Weights = "",
    weights_sha256: options.WeightsSha256 = "",
    device: options.Device = "",
    remote: options.Remote = "",
    adapters: options.Adapters = "",
    config: options.Config = "",
) -> None:
    """Segment the clicked slice of a volume: a mask of the whole volume, zero outside that slice.

    Points are voxel indices, as the file has them. The last click says which slice is meant.
    """
    if not out.name.endswith(_KINDS):
        raise InputError(f"A mask cannot be written as {out.name}. Give --out a name that ends in {', '.join(_KINDS)}.")
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent} for the mask. Make it, or give another --out.")
    if out.exists() and image.exists() and out.samefile(image):
        raise InputError(f"The mask would replace the image {image}. Give another --out.")
    request = {
        "foreground": [_numbers("--click", text, 3) for text in click or []],
        "background": [_numbers("--background", text, 3) for text in background or []],
        "roi": _numbers("--box", box, 6) if box else [],
        "plane": plane.replace("-", " "),
        "label": label,
    }

    import numpy as np

    from ..click import read_click
    from ..formats import write_nifti, write_nrrd
    from ..segmenter import Segmenter
    from ..store import AdapterStore
    from ..volume import Volume

    site, model = options.load_site(
        black_box=black_box,
        weights=weights,
        weights_sha256=weights_sha256,
        device=device,
        remote=remote,
        adapters=adapters,
        config=config,
    )
    segmenter = Segmenter(model, AdapterStore(site.adapters))
    volume, _ = segmenter.volume(image)
    asked = read_click(request, volume, list(site.labels))
    found = segmenter.segment(image, asked.plane, asked.prompt, asked.label, adapted=not zero_shot)
    mask = np.zeros(volume.shape, np.uint8)
    asked.plane.put(mask, found.mask)
    try:
        (write_nrrd if out.suffix == ".nrrd" else write_nifti)(out, Volume(mask, volume.affine))
    except OSError as error:
        raise BapsError(f"The mask cannot be written to {out}: {error.strerror}. Give another --out.") from error

    for note in asked.notes:
        console.print(note, style="yellow", markup=False)
    served = found.adapter and f"{found.adapter[0] or 'shared'} {found.adapter[1]}"
    lines = {
        "mask": f"{out}, {int(found.mask.sum())} voxels",
        "label": asked.label or "none",
        "slice": f"{asked.plane.index} across {'IJK'[asked.plane.axis]}",
        "adapter": served or "none, the model as it is",
        "window": f"{found.window.low:g} to {found.window.high:g} ({found.window.source})",
        "time": f"{found.seconds:.2f} s",
    }
    for name, value in lines.items():
        console.print(f"{name:<8}{value}", markup=False)


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        form = "i,j,k" if count == 3 else "i0,i1,j0,j1,k0,k1"
        raise InputError(f"{option} takes {count} numbers, {form}, with commas and no spaces between; got {text!r}.")
    return numbers
