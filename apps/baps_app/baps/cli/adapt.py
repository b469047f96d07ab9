"""``baps adapt``: train an adapter on folders of images and labels."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from baps.cli import options, outputs
from baps.cli.audit_log import add_audit_line
from baps.cli.console import Console
from baps.cli.volumes import adapt_volume_model, names_volume_model
from baps.errors import InputError

console = Console(soft_wrap=True, highlight=False)

Label = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Value of the label, or the name of its segment. By default every label is a target."
    ),
]
Prompt = Annotated[str, typer.Option(help="Kind of prompt: click or box.")]


@options.with_settings(*options.MODEL, "config")
def adapt(
    images: options.Images,
    labels: options.LabelFolder,
    out: outputs.AdapterFile,
    label: Label = None,
    optimiser: Annotated[str, typer.Option(help="prompt_space (ours) or spsa_gc (as published).")] = "prompt_space",
    prompt: Prompt = "click",
    max_images: Annotated[int, typer.Option(help="Maximum number of images sent to the model in all.")] = 4000,
    max_predictions: Annotated[
        int,
        typer.Option(help="Maximum number of predictions of bundled3d or nninteractive."),
    ] = 400,
    patients: options.Patients = None,
    seed: options.Seed = 0,
    zoom: Annotated[
        str, typer.Option(help="Crop around the prompt and upscale: chosen (ours) or none (as published).")
    ] = "chosen",
    head: Annotated[
        str, typer.Option(help="Output head that refines the masks: convolutional (ours) or none (as published).")
    ] = "convolutional",
    visual_prompt: Annotated[
        str,
        typer.Option(
            help="Visual prompt: tone (ours, by the click), basis (ours, by the image), concat (as published) or none."
        ),
    ] = "tone",
    condition: Annotated[
        str, typer.Option(help="What basis and concat depend on beside the image: label or click.")
    ] = "label",
    correction_ratio: Annotated[
        float, typer.Option(help="Share of training prompts with corrective clicks: 0.5 (ours) or 0 (as published).")
    ] = 0.5,
    encoder: Annotated[str, typer.Option(help="Frozen encoder: statistics, clip, vit_mae or dino.")] = "statistics",
    encoder_source: Annotated[str, typer.Option(help="Weights of the encoder: a local path or a hub's name.")] = "",
    *,
    settings: dict[str, str],
) -> None:
    """Adapt a model to labelled images, and check the adapter on patients that it was not trained on.

    FILE holds what to serve: the adapter if it is likely to help (on trial) or proven to (published), otherwise one
    that changes nothing; the candidate is then beside it, as FILE.rejected. If the training is interrupted, the same
    command resumes it from FILE.training.jsonl. The models bundled3d and nninteractive answer in 3D and
    are adapted by volume.
    """
    if names_volume_model(settings):
        from baps.training.volumes.settings import VolumeSettings

        volume_settings = VolumeSettings(
            zoom=zoom,
            visual_prompt=visual_prompt,
            head=head,
            optimiser=optimiser,
            prompt=prompt,
            max_predictions=max_predictions,
            seed=seed,
        )
        adapt_volume_model(settings, images, labels, out, label, patients, volume_settings)
        return

    from baps.adapters.adapter import identity_adapter
    from baps.cli.outcome import write_outcome
    from baps.evaluation.cases import load_cases
    from baps.evaluation.folders import find_cases
    from baps.io import file_stem
    from baps.training.adapt import ProgressReport
    from baps.training.adapt import adapt as adapt_to
    from baps.training.budget import check_max_images
    from baps.training.settings import AdaptationSettings

    adaptation = AdaptationSettings(
        visual_prompt=visual_prompt,
        condition=condition,
        correction_ratio=correction_ratio,
        encoder=encoder,
        encoder_source=encoder_source,
        optimiser=optimiser,
        zoom=zoom,
        head=head,
        prompt=prompt,
        max_images=max_images,
        seed=seed,
    )
    outputs.make_adapter_folder(out)
    _, model = options.load_site(settings)
    folders = find_cases(images, labels, options.parse_label(label), patients)
    check_max_images(folders.cases, adaptation, resends=model.capabilities.resends)
    folder = out.parent
    names = sorted({file_stem(case.image) for case in folders.cases})
    add_audit_line("adapt to labels", images=names, config=settings.get("config", ""))
    slices, skipped = load_cases(folders.cases, model.capabilities.input_size, adaptation.slices_per_volume, folder)
    options.print_notes(folders.notes)
    options.print_skipped({**folders.skipped, **skipped})
    if not slices:
        raise InputError(f"None of the labels can be used. {next(iter(skipped.values()), '')}")
    count = sum(map(len, slices.values()))
    console.print(f"{count} labelled slices of {len(slices)} patients; the model is {model.capabilities.name}")

    log = out.with_name(f"{out.name}.training.jsonl")
    columns = (TextColumn("adapting"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1000, status="")

        def show_progress(report: ProgressReport) -> None:
            status = f"{report.images} of {max_images} images, training Dice {report.dice:.3f}"
            bar.update(task, total=report.steps, completed=report.step, status=status)

        result = adapt_to(model, slices, adaptation, progress=show_progress, log=log)

    if replayed := result.record["replayed_images"]:
        console.print(f"The masks of {replayed} images were read from {log}, the log of an earlier, interrupted run.")
    record = write_outcome(console, out, result, identity_adapter())
    console.print(f"{record['black_box_images']} images were sent to the model. The adapter is {out}.")
