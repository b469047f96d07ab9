"""``baps organs``: adapt a volumetric organ model to a few labelled volumes, segment with it, and evaluate it."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baps.cli import options, outputs
from baps.cli.audit_log import add_audit_line
from baps.cli.console import Console
from baps.cli.old_options import CommandWithOldOptions
from baps.errors import InputError
from baps.fseft.choices import METHOD_NAMES

if TYPE_CHECKING:
    from baps.fseft.adapters import FewShotAdapter
    from baps.fseft.models import OrganModel

app = typer.Typer(
    no_args_is_help=True, help="Segment organs in whole volumes without a click, adapted to a few labels."
)
console = Console(soft_wrap=True, highlight=False)

Label = Annotated[str, typer.Option(metavar="N", help="Value of the organ in the labels, or the name of its segment.")]
Organ = Annotated[
    str, typer.Option(metavar="NAME", help="The organ. One that the model knows starts from the model's mask.")
]
AdapterFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Adapter of baps organs adapt. Default: the unadapted model.")
]
Model = Annotated[str, typer.Option(help="The organ model: bundled, or the name of a published checkpoint.")]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="Checkpoint of a published model.")]


@app.command(cls=CommandWithOldOptions)
def adapt(
    images: options.Images,
    labels: options.LabelFolder,
    label: Label,
    organ: Organ,
    out: outputs.AdapterFile,
    method: Annotated[
        str, typer.Option(help="What to train, as in spatial, lora, full. An unknown name lists all.")
    ] = (METHOD_NAMES[0]),
    decoder: Annotated[
        bool, typer.Option(help="Also train the decoder, with a method that changes the encoder.")
    ] = False,
    epochs: Annotated[
        int, typer.Option(help="Maximum number of epochs. Training stops earlier on a plateau of the loss.")
    ] = 200,
    learning_rate: Annotated[float, typer.Option(help="Initial learning rate; 0 for the method's own.")] = 0.0,
    unlabelled: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Unlabelled volumes to adapt to: the organ should be about as large there."),
    ] = None,
    patients: options.Patients = None,
    seed: options.Seed = 0,
    model: Model = "bundled",
    weights: Weights = None,
    weights_sha256: options.WeightsSha256 = "",
    device: options.Device = "auto",
) -> None:
    """Adapt an organ model to labelled volumes, and check the adapter on patients that it was not trained on.

    FILE holds the adapter if it is likely to be better than the unadapted model, or if there is only one patient and it
    could not be checked. Otherwise the adapter is FILE.rejected, and FILE is not written. If the training is
    interrupted, the same command resumes it from FILE.unfinished.
    """
    import shutil

    from baps.adapters.adapter_file import write_adapter
    from baps.evaluation.folders import find_cases
    from baps.evaluation.gate import State, judge_training
    from baps.fseft.adaptation import OrganSettings, adapt_organ
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.models import load_organ_model
    from baps.fseft.volumes import load_volumes
    from baps.io import file_stem, list_images, read_volume

    settings = OrganSettings(method, decoder, learning_rate, epochs, seed=seed)
    outputs.make_adapter_folder(out)
    organs = load_organ_model(model, weights, weights_sha256, device)
    folders = find_cases(images, labels, options.parse_label(label), patients)
    add_audit_line("adapt to labels", images=sorted({file_stem(case.image) for case in folders.cases}))
    volumes, skipped = load_volumes(folders.cases, organs)
    options.print_notes(folders.notes)
    options.print_skipped({**folders.skipped, **skipped})
    if not volumes:
        raise InputError(f"None of the labels can be used. {next(iter(skipped.values()), '')}")
    new_images = []
    if unlabelled is not None:
        new_images = [organs.prepare(read_volume(path)).image for path in list_images(unlabelled)]
        if not new_images:
            raise InputError(f"There is no image in {unlabelled}. Give --unlabelled a folder of volumes, or omit it.")
    count = sum(map(len, volumes.values()))
    knows = "knows" if organs.network.index(organ) is not None else "does not know"
    console.print(f"{count} labelled volumes of {len(volumes)} patients; the model {organs.name} {knows} {organ}")
    unfinished = out.with_name(f"{out.name}.unfinished")
    columns = (TextColumn("adapting"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, status="")

        def report(epoch: int, total: int, dice: float) -> None:
            bar.update(task, total=total, completed=epoch, status=f"training Dice {dice:.3f}")

        cache = FeatureCache(unfinished / "readings")
        result = adapt_organ(
            organs, organ, volumes, settings, None, cache, new_images, progress=report, checkpoint_folder=unfinished
        )
        bar.update(task, total=1, completed=1)
    status = judge_training(result.scores.differences)
    record: dict[str, Any] = {**result.record, "status": status.state.value}
    candidate = out.with_name(f"{out.name}.rejected")
    rejected = result.comparison is not None and not status.serves
    candidate.unlink(missing_ok=True)
    write_adapter(candidate if rejected else out, result.adapter, record)
    shutil.rmtree(unfinished, ignore_errors=True)
    if result.comparison is None:
        console.print(f"{result.sentence()} The adapter is {out}. It may help or harm.", style="yellow", markup=False)
        return
    style = "green" if status.state is State.PUBLISHED else "yellow"
    console.print(f"{status.sentence()}.", style=style, markup=False)
    if rejected:
        state = f"{out} is still the earlier adapter" if out.exists() else f"{out} was not written"
        console.print(f"{result.sentence()} The candidate is {candidate}; {state}.", markup=False)
    else:
        console.print(f"{result.sentence()} The adapter is {out}.", markup=False)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="The volume.")],
    organ: Annotated[str, typer.Argument(help="The organ. Without an adapter, one that the model knows.")],
    out: outputs.MaskFile,
    adapter: AdapterFile = None,
    model: Model = "bundled",
    weights: Weights = None,
    weights_sha256: options.WeightsSha256 = "",
    device: options.Device = "auto",
) -> None:
    """Segment an organ of a volume without a click. The mask has the shape of the volume."""
    from baps.api import load_organ_model, segment_organ

    outputs.check_mask_file(out, image)
    organs = load_organ_model(model, weights, weights_sha256, device)
    mask = segment_organ(image, organ, _read_adapter(adapter, organs, organ) if adapter else None, model=organs)
    outputs.write_mask(out, mask)
    console.print(f"mask    {out}, {int(mask.voxels.sum())} voxels", markup=False)
    console.print(f"adapter {adapter or 'none, the unadapted model'}", markup=False)


@app.command()
def evaluate(
    images: options.Images,
    labels: options.LabelFolder,
    label: Label,
    organ: Organ,
    json_file: outputs.FiguresFile,
    adapter: AdapterFile = None,
    model: Model = "bundled",
    weights: Weights = None,
    weights_sha256: options.WeightsSha256 = "",
    device: options.Device = "auto",
) -> None:
    """Measure Dice, the 95th percentile of the Hausdorff distance and the average surface distance of whole volumes.

    FILE gets the results of each volume, and their mean and standard deviation over volumes. A distance is null where
    the mask is empty; the mean omits these volumes.
    """
    from baps.evaluation.folders import find_cases
    from baps.fseft.evaluation import evaluate_organ
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.models import load_organ_model
    from baps.fseft.predictor import unadapted

    outputs.check_figures_file(json_file)
    organs = load_organ_model(model, weights, weights_sha256, device)
    loaded = _read_adapter(adapter, organs, organ) if adapter else unadapted(organs, organ)
    if loaded is None:
        console.print(f"The model {organs.name} does not know {organ}: its mask is empty.", style="yellow")
    folders = find_cases(images, labels, options.parse_label(label))
    columns = (TextColumn("evaluating"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        cases = bar.track(folders.cases, total=len(folders.cases))
        scored, unusable = evaluate_organ(organs, loaded, cases, FeatureCache(None))
    skipped = {**folders.skipped, **unusable}
    options.print_notes(folders.notes)
    options.print_skipped(skipped)
    if not scored:
        raise InputError(f"None of the volumes can be measured. {next(iter(skipped.values()), '')}")
    figures: dict[str, Any] = {"organ": organ, "model": organs.to_dict(), "cases": {}, "skipped": skipped}
    for name, one in scored.items():
        figures["cases"][name] = {
            key: value if math.isfinite(value) else None for key, value in asdict(one).items() if key != "patient"
        }
    table = Table("volume", "Dice", "HD95, mm", "surface distance, mm")
    for name, one in figures["cases"].items():
        table.add_row(name, *(f"{value:.3f}" if value is not None else "none" for value in one.values()))
    table.add_section()
    cells = []
    for key in ("dice", "hd95", "surface"):
        values = [one[key] for one in figures["cases"].values() if one[key] is not None]
        figures[key] = fmean(values) if values else None
        figures[f"{key}_std"] = pstdev(values) if values else None
        cells.append(f"{fmean(values):.3f} ± {pstdev(values):.3f}" if values else "none")
    table.add_row("mean", *cells)
    outputs.write_figures(json_file, figures)
    console.print(table)
    console.print(f"Results: {json_file}")


def _read_adapter(file: Path, model: OrganModel, organ: str) -> FewShotAdapter:
    """Read an adapter, and check that it was trained for the organ."""
    from baps.fseft.adapter_file import read_organ_adapter

    adapter, record = read_organ_adapter(file, model)
    if record["adapter"]["organ"] != organ:
        raise InputError(f"The adapter was trained for {record['adapter']['organ']}, not for {organ}. Give that organ.")
    return adapter
