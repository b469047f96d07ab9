"""``baps evaluate``: measure the accuracy of masks on folders of images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baps.cli import options, outputs
from baps.cli.adapt import Label, Prompt
from baps.cli.console import Console
from baps.cli.volumes import evaluate_volume_model, names_volume_model

console = Console(soft_wrap=True, highlight=False)


@options.with_settings(*options.MODEL, "config")
def evaluate(
    images: options.Images,
    labels: options.LabelFolder,
    json_file: outputs.FiguresFile,
    adapter: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Adapter of baps adapt. Default: the unadapted model.")
    ] = None,
    label: Label = None,
    prompt: Prompt = "click",
    seed: options.Seed = 0,
    clicks: Annotated[
        int,
        typer.Option(
            metavar="N", help="Clicks per slice, up to 10. Each further click corrects the largest error of the mask."
        ),
    ] = 1,
    *,
    settings: dict[str, str],
) -> None:
    """Measure Dice with one click (or box) on up to 12 slices of each image, repeated with five sets of clicks.

    FILE gets ``mean`` (over labels, then cases), ``std`` (of the mean over the five sets of clicks), ``cases`` (their
    number), ``black_box_images``, and the results of each case. With more clicks, these results are still those of the
    first click (or box), and FILE also gets ``by_clicks``, ``by_clicks_std``, ``noc_85`` (number of clicks to Dice
    0.85, or ten if they do not reach it) and ``noc_85_failures`` (the share of slices that do not reach it).

    The models bundled3d and nninteractive answer in 3D: they are measured by volume, with ``by_clicks`` and
    ``hd95_by_clicks`` (95th percentile of the Hausdorff distance, mm).
    """
    from baps.adapters.adapter_file import check_trained_for, read_adapter
    from baps.evaluation.evaluate import evaluate as measure
    from baps.evaluation.folders import find_cases
    from baps.prompts.simulated import check_prompts

    check_prompts(prompt, seed, clicks)
    outputs.check_figures_file(json_file)
    if names_volume_model(settings):
        evaluate_volume_model(settings, images, labels, json_file, adapter, label, prompt, seed, clicks)
        return
    loaded, record = read_adapter(adapter) if adapter else (None, None)
    _, model = options.load_site(settings)
    if record is not None:
        check_trained_for(record, model.capabilities.name, *model.capabilities.identity)
    folders = find_cases(images, labels, options.parse_label(label))
    options.print_notes(folders.notes)
    options.print_skipped(folders.skipped)
    columns = (TextColumn("evaluating"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(folders.cases))
        result = measure(
            model, folders.cases, loaded, prompt, seed, lambda done, _: bar.update(task, completed=done), clicks
        )
    options.print_skipped(result.skipped)
    outputs.write_figures(json_file, result.to_dict())
    table = Table("case", "Dice")
    for name, value in result.by_case.items():
        table.add_row(name, f"{value:.3f}")
    table.add_section()
    table.add_row("mean", f"{result.mean:.3f} ± {result.std:.3f}")
    console.print(table)
    if corrections := result.corrections:
        table = Table("clicks" if prompt == "click" else "box and clicks", "Dice")
        for number, (mean, std) in enumerate(
            zip(corrections.by_clicks, corrections.by_clicks_std, strict=True), start=1
        ):
            table.add_row(str(number), f"{mean:.3f} ± {std:.3f}")
        console.print(table)
        console.print(
            f"Clicks to Dice 0.85: {corrections.noc_85:.1f}, or ten for slices that do not reach it "
            f"({corrections.noc_85_failures:.0%} of the slices)."
        )
    console.print(f"{result.black_box_images} images were sent to the model. Results: {json_file}")
