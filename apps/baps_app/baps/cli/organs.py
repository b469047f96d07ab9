"""``baps organs``: adapt a volumetric organ model to a few labelled volumes, segment with it, and evaluate it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from baps.cli import options, outputs
from baps.cli.audit_log import add_audit_line
from baps.cli.console import Console
from baps.cli.old_options import CommandWithOldOptions
from baps.errors import InputError
from baps.fseft.choices import METHOD_NAMES

if TYPE_CHECKING:
    from baps.fseft.adaptation import OrganAdaptation
    from baps.fseft.adapters import FewShotAdapter
    from baps.fseft.evaluation import OrganScores
    from baps.fseft.models import OrganModel

app = typer.Typer(
    no_args_is_help=True, help="Segment organs in whole volumes without a click, adapted to a few labels."
)
console = Console(soft_wrap=True, highlight=False)

OrganLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="N",
        help="Value of the organ in the labels, or the name of its segment; one per --organ, in their order. Default: "
        "the segment with the organ's name.",
    ),
]
Organs = Annotated[
    list[str] | None,
    typer.Option(
        "--organ",
        metavar="NAME",
        help="The organ. One that the model knows starts from the model's mask. Repeat it for several organs. Default: "
        "all segments that the labels name.",
    ),
]
AdapterFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Adapter of baps organs adapt. Default: the unadapted model.")
]
AdapterFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        metavar="FILE",
        help="Adapter of baps organs adapt, or a folder of them; repeat it for several organs. Default: the unadapted "
        "model.",
    ),
]
Model = Annotated[
    str, typer.Option(help="The organ model: bundled, totalsegmentator, or the name of a published checkpoint.")
]
Weights = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Checkpoint of a published model, or TotalSegmentator's folder.")
]

_SUFFIX = ".organ"
"""Suffix of the adapters in a folder."""


@app.command(cls=CommandWithOldOptions)
def adapt(
    images: options.Images,
    labels: options.LabelFolder,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File for the adapter; for several organs, folder of the adapters.")
    ],
    organ: Organs = None,
    label: OrganLabels = None,
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

    Unless you give exactly one organ, FILE is a folder with one adapter per organ, as in FILE/spleen.organ. Every
    volume is read once for all organs, and the model computes its features once.
    """
    import shutil

    from baps.evaluation.folders import find_organ_cases
    from baps.fseft.adaptation import OrganSettings, adapt_organ
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.models import load_organ_model
    from baps.fseft.volumes import load_volumes_of_organs
    from baps.io import file_stem, list_images, read_volume

    settings = OrganSettings(method, decoder, learning_rate, epochs, seed=seed)
    values = _label_values(organ or [], label or [])
    if len(values) == 1:
        outputs.make_adapter_folder(out)
    else:
        outputs.make_folder(out)
    organ_model = load_organ_model(model, weights, weights_sha256, device)
    folders = find_organ_cases(images, labels, values, patients)
    add_audit_line("adapt to labels", images=sorted({file_stem(case.image) for case in folders.cases}))
    volumes_by_organ, skipped = load_volumes_of_organs(folders.cases, organ_model)
    options.print_notes(folders.notes)
    options.print_skipped({**folders.skipped, **skipped})
    if not volumes_by_organ:
        raise InputError(f"None of the labels can be used. {next(iter(skipped.values()), '')}")
    new_images = []
    if unlabelled is not None:
        new_images = [organ_model.prepare(read_volume(path)).image for path in list_images(unlabelled)]
        if not new_images:
            raise InputError(f"There is no image in {unlabelled}. Give --unlabelled a folder of volumes, or omit it.")
    unfinished = out.with_name(f"{out.name}.unfinished")
    cache = FeatureCache(unfinished / "readings")
    columns = (TextColumn("adapting"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    for name, volumes in volumes_by_organ.items():
        count = sum(map(len, volumes.values()))
        knows = "knows" if organ_model.network.index(name) is not None else "does not know"
        console.print(
            f"{count} labelled volumes of {len(volumes)} patients; the model {organ_model.name} {knows} {name}"
        )
        file, checkpoint_folder = out, unfinished
        if len(values) != 1:
            file_name = f"{quote(name, safe=' ')}{_SUFFIX}"
            file, checkpoint_folder = out / file_name, unfinished / file_name
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=None, status="")

            def report(epoch: int, total: int, dice: float, bar: Progress = bar, task: TaskID = task) -> None:
                bar.update(task, total=total, completed=epoch, status=f"training Dice {dice:.3f}")

            result = adapt_organ(
                organ_model,
                name,
                volumes,
                settings,
                None,
                cache,
                new_images,
                progress=report,
                checkpoint_folder=checkpoint_folder,
            )
            bar.update(task, total=1, completed=1)
        _write_result(file, result)
    shutil.rmtree(unfinished, ignore_errors=True)


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
    organ_model = load_organ_model(model, weights, weights_sha256, device)
    loaded = _read_adapters([adapter] if adapter else [], organ_model, [organ])
    mask = segment_organ(image, organ, loaded.get(organ), model=organ_model)
    outputs.write_mask(out, mask)
    console.print(f"mask    {out}, {int(mask.voxels.sum())} voxels", markup=False)
    console.print(f"adapter {adapter or 'none, the unadapted model'}", markup=False)


@app.command()
def evaluate(
    images: options.Images,
    labels: options.LabelFolder,
    json_file: outputs.FiguresFile,
    organ: Organs = None,
    label: OrganLabels = None,
    adapter: AdapterFiles = None,
    model: Model = "bundled",
    weights: Weights = None,
    weights_sha256: options.WeightsSha256 = "",
    device: options.Device = "auto",
) -> None:
    """Measure Dice, the 95th percentile of the Hausdorff distance and the average surface distance of whole volumes.

    FILE gets the results of each volume, and their mean and standard deviation over volumes. A distance is null where
    the mask is empty; the mean omits these volumes.

    Without --organ, all organs are measured that the labels name and the model or an adapter knows. The model looks at
    every volume once for all organs.
    """
    from baps.evaluation.folders import find_organ_cases
    from baps.fseft.evaluation import evaluate_organs
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.models import load_organ_model
    from baps.fseft.predictor import unadapted

    outputs.check_figures_file(json_file)
    values = _label_values(organ or [], label or [])
    organ_model = load_organ_model(model, weights, weights_sha256, device)
    adapters = _read_adapters(adapter or [], organ_model, tuple(values))
    folders = find_organ_cases(images, labels, values)
    cases, skipped = folders.cases, dict(folders.skipped)
    loaded: dict[str, FewShotAdapter | None] = {}
    for name in dict.fromkeys(case.organ for case in cases):
        loaded[name] = adapters.get(name) or unadapted(organ_model, name)
        if loaded[name] is None and values:
            console.print(f"The model {organ_model.name} does not know {name}: its mask is empty.", style="yellow")
        elif loaded[name] is None:
            cases = [case for case in cases if case.organ != name]
            skipped[name] = f"Neither the model {organ_model.name} nor an adapter knows it. Give its --adapter."
    columns = (TextColumn("evaluating"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        scores, unusable = evaluate_organs(organ_model, loaded, bar.track(cases, total=len(cases)), FeatureCache(None))
    skipped |= unusable
    options.print_notes(folders.notes)
    options.print_skipped(skipped)
    if not scores:
        raise InputError(f"None of the volumes can be measured. {next(iter(skipped.values()), '')}")
    table = Table("volume", "Dice", "HD95, mm", "surface distance, mm")
    results = {name: _summarise(scored, table, name if len(values) != 1 else "") for name, scored in scores.items()}
    common = {"model": organ_model.to_dict(), "skipped": skipped}
    if len(values) == 1:
        (name,) = values
        outputs.write_figures(json_file, {"organ": name, **common, **results[name]})
    else:
        outputs.write_figures(json_file, {**common, "organs": results})
    console.print(table)
    console.print(f"Results: {json_file}")


def _label_values(organs: Sequence[str], labels: Sequence[str]) -> dict[str, int | str]:
    """Pair organs with their values in the labels, or with the names of their segments."""
    if len(set(organs)) < len(organs):
        raise InputError("An organ is given twice. Give each --organ once.")
    if not labels:
        return {organ: organ for organ in organs}
    if len(labels) != len(organs):
        raise InputError(
            f"There are {len(organs)} --organ and {len(labels)} --label. Give one --label per --organ, in the same "
            "order, or none if the labels name their segments as you name the organs."
        )
    pairs = zip(organs, map(options.parse_label, labels), strict=True)
    return {organ: value for organ, value in pairs if value is not None}


def _write_result(out: Path, result: OrganAdaptation) -> None:
    """Write the adapter of an organ, as rejected if it is, and print the result."""
    from baps.adapters.adapter_file import write_adapter
    from baps.evaluation.gate import State, judge_training

    status = judge_training(result.scores.differences)
    record: dict[str, Any] = {**result.record, "status": status.state.value}
    candidate = out.with_name(f"{out.name}.rejected")
    rejected = result.comparison is not None and not status.serves
    candidate.unlink(missing_ok=True)
    write_adapter(candidate if rejected else out, result.adapter, record)
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


def _summarise(scored: Mapping[str, OrganScores], table: Table, organ: str) -> dict[str, Any]:
    """Return the results of an organ as JSON, with their means, and add them to the table."""
    figures: dict[str, Any] = {"cases": {}}
    for name, one in scored.items():
        figures["cases"][name] = {
            key: value if math.isfinite(value) else None for key, value in asdict(one).items() if key != "patient"
        }
        cells = [f"{value:.3f}" if value is not None else "none" for value in figures["cases"][name].values()]
        table.add_row(f"{name}, {organ}" if organ else name, *cells)
    table.add_section()
    cells = []
    for key in ("dice", "hd95", "surface"):
        values = [one[key] for one in figures["cases"].values() if one[key] is not None]
        figures[key] = fmean(values) if values else None
        figures[f"{key}_std"] = pstdev(values) if values else None
        cells.append(f"{fmean(values):.3f} ± {pstdev(values):.3f}" if values else "none")
    table.add_row(f"mean, {organ}" if organ else "mean", *cells)
    table.add_section()
    return figures


def _read_adapters(paths: Sequence[Path], model: OrganModel, organs: Sequence[str]) -> dict[str, FewShotAdapter]:
    """Read adapters by organ, and check that they were trained for the organs, if there are any."""
    from baps.fseft.adapter_file import read_organ_adapter

    adapters: dict[str, FewShotAdapter] = {}
    for path in paths:
        files = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"There is no adapter *{_SUFFIX} in {path}. Give --adapter a file of baps organs adapt.")
        found = {}
        for file in files:
            adapter, record = read_organ_adapter(file, model)
            found[record["adapter"]["organ"]] = adapter
        if organs and not found.keys() & set(organs):
            raise InputError(
                f"The adapter was trained for {', '.join(found)}, not for {', '.join(organs)}. Give that organ."
            )
        if twice := found.keys() & adapters.keys():
            raise InputError(f"Two adapters were trained for {', '.join(twice)}. Give one of them.")
        adapters |= found
    return adapters
