"""``baps labels``: the versions of labels that were saved, back to one of them; from other programs, and to them."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from baps.cli import options
from baps.cli.audit_log import note, private_files
from baps.cli.console import Console
from baps.cli.options import Adapters

if TYPE_CHECKING:
    from baps.annotations.history import LabelHistory, Version

app = typer.Typer(
    no_args_is_help=True,
    callback=private_files,
    help="List, show, restore, confirm, import, export, prune and remove labels.",
)

Studies = Annotated[Path, typer.Argument(help="Folder of images that is served, or was.")]
Image = Annotated[str, typer.Argument(help="The image's name.")]
Name = Annotated[str, typer.Argument(metavar="VERSION", help="As `baps labels list` shows it.")]
Tag = Annotated[str, typer.Option(help="final, draft or original.")]
console = Console(soft_wrap=True, highlight=False)


def _history(studies: Path) -> LabelHistory:
    from baps.annotations.history import LabelHistory
    from baps.errors import InputError

    if not studies.is_dir():
        raise InputError(f"There is no folder {studies}. A PACS keeps the versions of its labels itself.")
    return LabelHistory(studies)


@app.command("list")
def list_labels(
    studies: Studies, image: Annotated[str, typer.Option(help="One image alone; by default all.")] = ""
) -> None:
    """List every version, who saved it, and the slices of each organ; the newest of each label is served."""
    history = _history(studies)
    version_column = Column("version", no_wrap=True, min_width=23)  # Whole, to be copied.
    table = Table("image", "label", version_column, "served", "author", "organs and their slices", "remarks")
    for name, tag in history.labels():
        if image not in ("", name):
            continue
        versions = history.versions(name, tag)
        for version in versions:
            said = version.info
            served = "yes" if version is versions[-1] else ""
            cells = (name, tag, version.name, served, _authors(said), _organs(said), _remarks(version))
            table.add_row(*map(escape, cells))
        for gone in history.removed(name, tag):
            table.add_row(*map(escape, (name, tag, gone["version"], "", "", "", f"removed: {gone['why']}")))
    console.print(table)


@app.command()
def show(studies: Studies, image: Image, version: Name, tag: Tag = "final") -> None:
    """All that is known of one version, and where its file is."""
    found = _history(studies).version(image, tag, version)
    console.print_json(json.dumps({"file": str(found.file), "sha256": found.sha256, **found.info}))


@app.command()
def restore(studies: Studies, image: Image, version: Name, tag: Tag = "final", adapters: Adapters = "") -> None:
    """Serve an earlier version again, also in a server that runs; the one that it replaces is kept too."""
    history = _history(studies)
    name = history.restore(image, tag, version, partial(history.check_fits, image))
    note("restore a label", image, adapters=adapters, version=version)
    console.print(f"The label {tag} of {image} is that of {version} again, as version {name}.", markup=False)


@app.command()
def confirm(
    studies: Studies,
    image: Image,
    organ: Annotated[list[str] | None, typer.Option(help="One organ alone; may be given again.")] = None,
    tag: Tag = "final",
    adapters: Adapters = "",
) -> None:
    """Have organs count in trainings that were taken away from another annotator, as the newest version has them."""
    confirmed = _history(studies).confirm(image, tag, organ or [], by="the command line")
    note("confirm a label", image, adapters=adapters, tag=tag, organs=confirmed)
    console.print(f"Of the label {tag} of {image} {', '.join(confirmed)} counts now.", markup=False)


@app.command()
def prune(
    studies: Studies,
    image: Annotated[str, typer.Argument(help="The image's name; without it, --all.")] = "",
    all_images: Annotated[bool, typer.Option("--all", help="Of all images.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="So many of the newest of each label stay.")] = 0,
    older_than: Annotated[
        int, typer.Option(min=0, metavar="DAYS", help="What was replaced less than so many days ago stays.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option(help="Remove nothing; say what would be.")] = False,
    adapters: Adapters = "",
) -> None:
    """Remove old versions of labels for good. What is served stays, and so does what a training has used.

    What trainings of earlier releases have used is told from the adapters: name their folder as for the server.
    """
    from baps.annotations.retention import RetentionRule
    from baps.annotations.retention import prune as prune_versions
    from baps.cli.options import given
    from baps.errors import InputError
    from baps.registry.store import adapter_times
    from baps.site.settings import read_settings

    if bool(image) == all_images:
        raise InputError("Name an image, or say --all.")
    if not keep and not older_than:
        raise InputError("Say which versions stay: --keep, with how many of each label, or --older-than, or both.")
    history, folder = _history(studies), read_settings(given(adapters=adapters)).adapters
    count = 0
    for name, tag, versions in prune_versions(
        history, RetentionRule(keep, older_than), adapter_times(folder), image, dry_run
    ):
        count += len(versions)
        if not dry_run:
            note("prune a label", name, adapters=adapters, tag=tag, versions=versions)
        console.print(f"{name}, {tag}: {', '.join(versions)}", markup=False)
    console.print(f"{count} versions {'would be' if dry_run else 'were'} removed.")


@app.command()
def remove(
    studies: Studies,
    image: Image,
    version: Annotated[str, typer.Argument(help="As `baps labels list` shows it; without it, --all.")] = "",
    tag: Tag = "final",
    all_versions: Annotated[bool, typer.Option("--all", help="Every version, and the label that is served.")] = False,
    although_used: Annotated[
        bool, typer.Option(help="Also what a training has used: the adapter cannot be checked by it any more.")
    ] = False,
    adapters: Adapters = "",
) -> None:
    """Remove a version of a label for good, as where a patient wants to be forgotten. Backups keep theirs."""
    from baps.errors import InputError, NotFoundError

    history = _history(studies)
    if bool(version) == all_versions:
        raise InputError("Name a version, or say --all.")
    versions = [one for one in history.versions(image, tag) if all_versions or one.name == version]
    if not versions:
        raise NotFoundError(f"The label {tag} of {image} has no version {version}. See `baps labels list`.")
    if not although_used and (used := [one.name for one in versions if one.used_in_training]):
        raise InputError(
            f"A training has used the version {used[0]}, or may have. Nothing was removed. To remove it nevertheless, "
            "say --although-used."
        )
    history.remove(image, tag, [one.name for one in versions], "on request", served=all_versions)
    note("remove a label", image, adapters=adapters, tag=tag, versions=[one.name for one in versions])
    console.print(f"Removed: {', '.join(one.name for one in versions)}", markup=False)


@app.command()
def export(
    studies: Studies,
    image: Image,
    rtstruct: Annotated[Path, typer.Option(metavar="FILE", help="For radiotherapy: a DICOM RTSTRUCT.")],
    tag: Tag = "final",
    adapters: Adapters = "",
) -> None:
    """Write the label of a DICOM series as FILE, which is not there yet; it belongs to the study of the series."""
    from baps.annotations.export import label_to_rtstruct
    from baps.errors import InputError
    from baps.utils.atomic_write import atomic_write

    if rtstruct.exists():
        raise InputError(f"There is a file {rtstruct} already. Give another name.")
    if not rtstruct.parent.is_dir():
        raise InputError(f"There is no folder {rtstruct.parent}. Make it first.")
    made = label_to_rtstruct(_history(studies), image, tag)
    with atomic_write(rtstruct) as partly:
        made.save_as(partly, write_like_original=False)
    note("export a label", image, adapters=adapters)
    names = ", ".join(str(one.ROIName) for one in made.StructureSetROISequence)
    console.print(f"The label {tag} of {image} is in {rtstruct}: {names}.", markup=False)


@app.command("import")
def import_labels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of labels, named as their images.")],
    studies: Annotated[Path, typer.Argument(help="Folder of images that is served, or will be.")],
    labels: options.Labels = "",
    author: Annotated[str, typer.Option(help="Who drew them.")] = "",
    confirmed: Annotated[
        bool, typer.Option(help="Whether a person stands by them; no training takes the others.")
    ] = True,
    replace: Annotated[bool, typer.Option(help="Also where there is a label already; that one is kept.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Read and check all, and save nothing.")] = False,
    config: options.Config = "",
    adapters: Adapters = "",
) -> None:
    """Have labels of other programs served and trained on, as if they had been submitted; DIR stays as it is.

    A label is called as its image, or as nnU-Net and 3D Slicer call it: a_0000.nii.gz has the label a.nii.gz; a.nrrd
    has a.seg.nrrd or a-label.nrrd. Each is read on its image and rejected if it cannot be used. Where a file does not
    name its segments, --labels (or the settings file) says what their values mean, as for the server.

    The exit status is 1 if a label was rejected.
    """
    from baps.annotations.label_files import TAG_FOLDERS, match_labels
    from baps.errors import InputError
    from baps.io import list_images
    from baps.site.settings import Settings, read_settings

    site = read_settings(options.given(labels=labels, config=config))
    for place in (folder, studies):
        if not place.is_dir():
            raise InputError(f"There is no folder {place}.")
    files = [path for path in list_images(folder) if not (path.is_dir() and path.name in TAG_FOLDERS)]
    if not files:
        raise InputError(f"There are no labels directly in {folder}.")
    if not os.access(studies, os.W_OK):
        raise InputError(f"The folder {studies} cannot be written to, so no label can be saved there.")
    from baps.site.server_command import check_installed

    check_installed()
    from baps.server.datastores.folder import StudiesDatastore
    from baps.server.labels.import_labels import (  # MONAI Label's datastore, which takes seconds.
        Import,
        Imported,
        import_labels,
    )

    datastore = StudiesDatastore(str(studies.absolute()), auto_reload=False, read_only=False)
    known = {} if site.labels == Settings().labels else site.labels
    done = "can be imported" if dry_run else "imported"

    def told(one: Imported) -> None:
        if one.why_not:
            console.print(f"rejected: {one.file.name}. {one.why_not}", style="yellow", markup=False)
            return
        console.print(f"{done}: {one.file.name} as the label of {one.image}, {', '.join(one.organs)}", markup=False)
        if not dry_run:
            note("import a label", one.image, adapters=adapters, config=config)

    how = Import(known, author, confirmed, replace, dry_run)
    results = import_labels(datastore, match_labels(files, datastore.list_images()), how, told)
    options.print_notes(dict.fromkeys(sentence for one in results for sentence in one.notes))
    rejected = sum(bool(one.why_not) for one in results)
    after = "can be imported; nothing was saved" if dry_run else "were imported"
    console.print(f"{len(results) - rejected} of {len(results)} labels {after}.")
    if rejected:
        raise typer.Exit(1)


def _authors(said: dict[str, object]) -> str:
    authors = said.get("authors")
    names = [str(said.get("author") or ""), *(authors.values() if isinstance(authors, dict) else ())]
    return ", ".join(dict.fromkeys(filter(None, names)))


def _organs(said: dict[str, object]) -> str:
    annotated = said.get("annotated_slices")
    if not isinstance(annotated, dict):
        return "all"
    return ", ".join(f"{organ} {len(slices)}" for organ, slices in annotated.items())


def _remarks(version: Version) -> str:
    said = version.info
    remarks = [f"made by {said['model']}"] if said.get("model") else []
    remarks += ["damaged: take it from your backup"] if said.get("damaged") else []
    remarks += ["not confirmed"] if said.get("confirmed") is False else []
    remarks += ["found in the folder"] if said.get("found") else []
    remarks += [f"that of {said['restored']} again"] if said.get("restored") else []
    for organ, standing in (said.get("disputed") or {}).items():
        before = f"that by {standing['author'] or 'nobody named'} ({standing['version']})"
        remarks.append(f"{organ} is disputed: trainings take {before} until `baps labels confirm`")
    confirmed = said.get("confirmed_by") or {}
    remarks += [f"{organ} confirmed by {who}" for organ, who in confirmed.items()]
    return ", ".join(remarks)
