"""``baps segment``: segment a volume from clicks, without a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from baps.cli import options, outputs
from baps.cli.console import Console
from baps.errors import BapsError, InputError

if TYPE_CHECKING:
    from baps.imaging.volume import Volume
    from baps.inference.segmenter import LoadedAdapter, Segmenter

console = Console(soft_wrap=True, highlight=False)


@options.with_settings(*options.MODEL, "adapters", "config")
def segment(
    image: Annotated[Path, typer.Argument(help="The volume.")],
    out: outputs.MaskFile,
    click: Annotated[
        list[str] | None, typer.Option(metavar="I,J,K", help="Click in the organ; may be repeated.")
    ] = None,
    background: Annotated[
        list[str] | None, typer.Option(metavar="I,J,K", help="Click beside it; may be repeated.")
    ] = None,
    box: Annotated[str, typer.Option(metavar="I0,I1,J0,J1,K0,K1", help="First and last voxels of the organ.")] = "",
    plane: Annotated[
        str, typer.Option(help="How to cut: as-stored (across K), axial, coronal, sagittal, or across I, J or K.")
    ] = "as-stored",
    label: Annotated[str, typer.Option(help="The organ, whose adapter is used. Default: the shared adapter.")] = "",
    adapter: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Adapter of baps adapt, used instead of those of --adapters.")
    ] = None,
    unadapted: Annotated[bool, typer.Option("--unadapted", help="Use the unadapted model.")] = False,
    whole_organ: Annotated[
        bool, typer.Option("--whole-organ", help="Segment all slices of the organ, starting from the clicked ones.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="With --whole-organ: stop after so long and keep the slices so far.", show_default="no limit"
        ),
    ] = None,
    *,
    settings: dict[str, str],
) -> None:
    """Segment the clicked slice of a volume. The mask has the shape of the volume and is zero outside that slice.

    Points are voxel indices of the file. The last click selects the slice. With --whole-organ, clicks may be on any
    number of slices across K, and the mask covers the organ on all of its slices; a box limits them.
    """
    outputs.check_mask_file(out, image)
    if adapter and ("adapters" in settings or unadapted):
        raise InputError("--adapter goes with neither --adapters nor --unadapted. Give one of them.")
    if seconds is not None and not (whole_organ and seconds > 0):
        raise InputError("--seconds goes with --whole-organ, and must be positive.")
    if whole_organ and plane != "as-stored":
        raise InputError("--whole-organ works on the slices as they are stored. Omit --plane.")
    request = {
        "foreground": [_parse_numbers("--click", text, 3) for text in click or []],
        "background": [_parse_numbers("--background", text, 3) for text in background or []],
        "roi": _parse_numbers("--box", box, 6) if box else [],
        "plane": plane.replace("-", " "),
        "label": label,
    }

    from baps.adapters.adapter_file import check_trained_for, read_adapter
    from baps.inference.segmenter import LoadedAdapter, Segmenter
    from baps.registry.store import AdapterStore

    loaded, record = read_adapter(adapter) if adapter else (None, None)
    site, model = options.load_site(settings)
    if record is not None:
        check_trained_for(record, model.capabilities.name, *model.capabilities.identity)
    segmenter, labels = Segmenter(model, AdapterStore(site.adapters)), list(site.labels)

    def load_adapter(label: str) -> LoadedAdapter | None:
        if loaded:
            return LoadedAdapter((str(adapter), ""), loaded, str(adapter))
        return None if unadapted else segmenter.load_adapter(label)

    if whole_organ:
        try:
            mask, notes, lines = _whole_organ(segmenter, image, request, labels, load_adapter, seconds)
        except KeyboardInterrupt:
            raise BapsError("Interrupted; nothing was written.") from None
    else:
        mask, notes, lines = _one_slice(segmenter, image, request, labels, load_adapter)
    outputs.write_mask(out, mask)

    for note in notes:
        console.print(note, style="yellow", markup=False)
    for name, value in {"mask": f"{out}, {int(mask.voxels.sum())} voxels", **lines}.items():
        console.print(f"{name:<8}{value}", markup=False)


SegmentOutput = tuple["Volume", list[str], dict[str, str]]
"""The mask, notes, and other lines to print, by name."""

LoadAdapter = Callable[[str], "LoadedAdapter | None"]
"""Returns the adapter of a label, or None for the unadapted model."""


def _one_slice(
    segmenter: Segmenter, image: Path, request: Mapping[str, Any], labels: list[str], load_adapter: LoadAdapter
) -> SegmentOutput:
    import numpy as np

    from baps.imaging.volume import Volume
    from baps.inference.requests.click import read_click

    click = read_click(request, segmenter.volume(image)[0], labels)
    result = segmenter.segment(image, click.plane, click.prompt, load_adapter(click.label))
    volume = result.volume
    mask = np.zeros(volume.shape, np.uint8)
    click.plane.insert(mask, result.mask)
    lines = {
        "label": click.label or "none",
        "slice": f"{click.plane.index} across {'IJK'[click.plane.axis]}",
        "adapter": _format_adapter(result.adapter),
        "window": f"{result.window.low:g} to {result.window.high:g} ({result.window.source})",
        "time": f"{result.seconds:.2f} s",
    }
    return Volume(mask, volume.affine), [*click.notes, *volume.notes], lines


def _whole_organ(
    segmenter: Segmenter,
    image: Path,
    request: Mapping[str, Any],
    labels: list[str],
    load_adapter: LoadAdapter,
    seconds: float | None,
) -> SegmentOutput:
    from baps.imaging.volume import Volume
    from baps.inference.requests.click import read_organ_clicks
    from baps.inference.whole_organ import format_slices, segment_organ

    clicks = read_organ_clicks(request, segmenter.volume(image)[0], labels)
    deadline = time.monotonic() + seconds if seconds else float("inf")
    columns = (TextColumn("slices"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("slices", total=None)
        result = segment_organ(
            segmenter,
            image,
            clicks,
            load_adapter(clicks.label),
            should_continue=lambda: time.monotonic() < deadline,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    volume = result.volume
    notes = [*clicks.notes, *result.notes, *volume.notes]
    if result.stopped:
        notes.append(f"The {seconds:g} seconds have passed: the mask ends at {format_slices(result.stopped)}.")
    lines = {
        "label": clicks.label or "none",
        "slices": f"{result.slices[0]} to {result.slices[-1]} across K, {len(result.slices)} of them"
        if result.slices
        else "none",
        "adapter": _format_adapter(result.adapter),
        "window": f"{result.window.low:g} to {result.window.high:g} ({result.window.source})",
        "time": f"{result.seconds:.2f} s",
    }
    return Volume(result.mask, volume.affine), notes, lines


def _format_adapter(adapter: tuple[str, str] | None) -> str:
    return f"{adapter[0] or 'shared'} {adapter[1]}".rstrip() if adapter else "none, the unadapted model"


def _parse_numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        form = "i,j,k" if count == 3 else "i0,i1,j0,j1,k0,k1"
        raise InputError(f"{option} takes {count} numbers, {form}, with commas and no spaces between; got {text!r}.")
    return numbers
