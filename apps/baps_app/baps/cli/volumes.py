"""``baps adapt`` and ``baps evaluate`` with a 3D black box: the same folders, whole volumes instead of slices."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baps.blackbox.choices import VOLUME_BLACK_BOXES
from baps.cli import options, outputs
from baps.cli.audit_log import add_audit_line
from baps.cli.console import Console
from baps.errors import InputError

if TYPE_CHECKING:
    from baps.blackbox.volumes import VolumeBlackBox
    from baps.training.volumes.settings import VolumeSettings

console = Console(soft_wrap=True, highlight=False)


def names_volume_model(settings: Mapping[str, str]) -> bool:
    """Return whether the option ``--black-box`` names a 3D black box.

    Args:
        settings: Values of the options that were set, by the name of the setting.

    Returns:
        Whether it does.
    """
    return settings.get("black_box") in VOLUME_BLACK_BOXES


def load_volume_model(settings: Mapping[str, str]) -> VolumeBlackBox:
    """Read the settings and load their 3D black box.

    Args:
        settings: Values by the name of the setting; ``black_box`` and ``remote`` name the model and its address.

    Returns:
        The 3D black box.

    Raises:
        InputError: If the settings or the model cannot be used.
    """
    from baps.blackbox.volumes.loading import load_volume_black_box
    from baps.site.settings import check_settings, read_settings

    renamed = {"black_box": "volume_black_box", "remote": "volume_remote"}
    if "weights" in settings or "weights_sha256" in settings:
        raise InputError(f"The 3D black box {settings['black_box']} has its own weights. Omit --weights.")
    site = read_settings({renamed.get(name, name): value for name, value in settings.items()})
    check_settings(site)
    return load_volume_black_box(site.volume_black_box, site.volume_remote_model, device=site.device)


def adapt_volume_model(
    settings: Mapping[str, str],
    images: Path,
    labels: Path,
    out: Path,
    label: str | None,
    patients: Path | None,
    adaptation: VolumeSettings,
) -> None:
    """Adapt a 3D black box to labelled volumes, and write what to serve, as ``baps adapt`` does.

    Args:
        settings: See ``load_volume_model``.
        images: Folder of images.
        labels: Folder of labels.
        out: File for the adapter.
        label: Value of the label or name of its segment, or None for every label.
        patients: CSV file of image and patient, or None.
        adaptation: The settings of the adaptation.

    Raises:
        InputError: If nothing can be trained on.
        BapsError: If the model cannot be reached.
    """
    from baps.adapters.volumes.adapter import VolumeAdapter
    from baps.cli.outcome import write_outcome
    from baps.evaluation.folders import find_cases
    from baps.evaluation.labelled_volumes import load_volumes
    from baps.io import file_stem
    from baps.training.adapt import ProgressReport
    from baps.training.volumes.adapt import adapt_volumes

    outputs.make_adapter_folder(out)
    folders = find_cases(images, labels, options.parse_label(label), patients)
    names = sorted({file_stem(case.image) for case in folders.cases})
    with closing(load_volume_model(settings)) as model:
        add_audit_line("adapt to labels", images=names, config=settings.get("config", ""))
        volumes, skipped = load_volumes(folders.cases, out.parent)
        options.print_notes(folders.notes)
        options.print_skipped({**folders.skipped, **skipped})
        if not volumes:
            raise InputError(f"None of the labels can be used. {next(iter(skipped.values()), '')}")
        count, name = sum(map(len, volumes.values())), model.capabilities.name
        console.print(f"{count} labelled volumes of {len(volumes)} patients; the model is {name}", markup=False)
        columns = (TextColumn("adapting"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=1000, status="")

            def show_progress(report: ProgressReport) -> None:
                status = f"{report.images} of {adaptation.max_predictions} predictions, Dice {report.dice:.3f}"
                bar.update(task, total=report.steps, completed=report.step, status=status)

            log = out.with_name(f"{out.name}.training.jsonl")
            result = adapt_volumes(model, volumes, adaptation, progress=show_progress, log=log)
    if replayed := result.record["replayed_images"]:
        console.print(f"{replayed} answers were read from {log}, the log of an earlier, interrupted run.")
    record = write_outcome(console, out, result, VolumeAdapter())
    console.print(f"{record['black_box_images']} predictions were made. The adapter is {out}.")


def evaluate_volume_model(
    settings: Mapping[str, str],
    images: Path,
    labels: Path,
    json_file: Path,
    adapter: Path | None,
    label: str | None,
    prompt: str,
    seed: int,
    clicks: int,
) -> None:
    """Measure Dice and the Hausdorff distance of a 3D black box by volume.

    Args:
        settings: See ``load_volume_model``.
        images: Folder of images.
        labels: Folder of labels.
        json_file: File for the results, see ``VolumeEvaluation.to_dict``.
        adapter: File of an adapter, or None.
        label: Value of the label or name of its segment, or None for every label.
        prompt: Kind of the first prompt.
        seed: Seed of the prompts.
        clicks: Number of clicks on a volume.

    Raises:
        InputError: If nothing can be evaluated, or the adapter is of another model.
    """
    from baps.adapters.adapter_file import check_trained_for
    from baps.adapters.volumes.adapter_file import read_volume_adapter
    from baps.evaluation.evaluate_volumes import evaluate_volumes
    from baps.evaluation.folders import find_cases

    loaded, record = read_volume_adapter(adapter) if adapter else (None, None)
    folders = find_cases(images, labels, options.parse_label(label))
    options.print_notes(folders.notes)
    options.print_skipped(folders.skipped)
    with closing(load_volume_model(settings)) as model:
        if record is not None:
            check_trained_for(record, model.capabilities.name, *model.capabilities.identity)
        columns = (TextColumn("evaluating"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=len(folders.cases))
            result = evaluate_volumes(
                model, folders.cases, loaded, prompt, seed, lambda done, _: bar.update(task, completed=done), clicks
            )
    options.print_skipped(result.skipped)
    outputs.write_figures(json_file, result.to_dict())
    table = Table("patient", *(f"Dice, {n + 1} click{'s' if n else ''}" for n in range(clicks)))
    by_clicks = [result.by_patient(n + 1) for n in range(clicks)]
    for patient in by_clicks[0]:
        table.add_row(patient, *(f"{one[patient]:.3f}" for one in by_clicks))
    console.print(table)
    console.print(f"{result.predictions} predictions were made. Results: {json_file}")
