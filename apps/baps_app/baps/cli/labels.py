"""``baps labels``: list and restore versions of labels; import and export labels."""

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
from baps.cli.audit_log import add_audit_line, private_files
from baps.cli.console import Console
from baps.cli.options import Adapters

if TYPE_CHECKING:
    from baps.annotations.history import LabelHistory

app = typer.Typer(
    no_args_is_help=True,
    callback=private_files,
    help="List, show, restore, confirm, import, export, prune and remove labels.",
)

Studies = Annotated[Path, typer.Argument(help="Folder of images that is or was served.")]
Image = Annotated[str, typer.Argument(help="Name of the image.")]
Name = Annotated[str, typer.Argument(metavar="VERSION", help="Version, as in `baps labels list`.")]
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
    studies: Studies, image: Annotated[str, typer.Option(help="Name of one image. Default: all.")] = ""
) -> None:
    """List every version, who saved it, and the slices of each organ; the newest of each label is served."""
    from baps.annotations.remarks import describe

    history = _history(studies)
    version_column = Column("version", no_wrap=True, min_width=23)  # Not wrapped, so that it can be copied.
    table = Table("image", "label", version_column, "served", "author", "organs and their slices", "remarks")
    for name, tag in history.labels():
        if image not in ("", name):
            continue
        versions = history.versions(name, tag)
        for version in versions:
            info = version.info
            served = "yes" if version is versions[-1] else ""
            cells = (name, tag, version.name, served, _authors(info), _organs(info), ", ".join(describe(version)))
            table.add_row(*map(escape, cells))
        for removed in history.removed(name, tag):
            table.add_row(*map(escape, (name, tag, removed["version"], "", "", "", f"removed: {removed['why']}")))
    console.print(table)


@app.command()
def show(studies: Studies, image: Image, version: Name, tag: Tag = "final") -> None:
    """Show the record of one version, and the path of its file."""
    record = _history(studies).version(image, tag, version)
    console.print_json(json.dumps({"file": str(record.file), "sha256": record.sha256, **record.info}))


@app.command()
def restore(studies: Studies, image: Image, version: Name, tag: Tag = "final", adapters: Adapters = "") -> None:
    """Serve an earlier version again, also in a running server. The version that it replaces is kept."""
    history = _history(studies)
    name = history.restore(image, tag, version, partial(history.check_fits, image), by="the command line")
    add_audit_line("restore a label", image, adapters=adapters, version=version)
    console.print(f"The label {tag} of {image} is {version} again, saved as version {name}.", markup=False)


@app.command()
def confirm(
    studies: Studies,
    image: Image,
    organ: Annotated[list[str] | None, typer.Option(help="One organ; may be repeated. Default: all.")] = None,
    tag: Tag = "final",
    adapters: Adapters = "",
) -> None:
    """Accept the newest version of organs that one annotator changed after another, so that trainings use it."""
    confirmed = _history(studies).confirm(image, tag, organ or [], by="the command line")
    add_audit_line("confirm a label", image, adapters=adapters, tag=tag, organs=confirmed)
    console.print(f"Trainings now use {', '.join(confirmed)} of the label {tag} of {image}.", markup=False)


@app.command()
def prune(
    studies: Studies,
    image: Annotated[str, typer.Argument(help="Name of the image; or use --all.")] = "",
    all_images: Annotated[bool, typer.Option("--all", help="All images.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Number of newest versions of each label to keep.")] = 0,
    older_than: Annotated[
        int, typer.Option(min=0, metavar="DAYS", help="Keep versions that were replaced less than so many days ago.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option(help="Remove nothing; print what would be removed.")] = False,
    adapters: Adapters = "",
) -> None:
    """Remove old versions of labels for good, except those that are served or that a training has used.

    Trainings of earlier releases are known from the adapters: give their folder as for the server.
    """
    from baps.annotations.retention import RetentionRule
    from baps.annotations.retention import prune as prune_versions
    from baps.errors import InputError
    from baps.registry.store import adapter_times
    from baps.site.settings import read_settings

    if bool(image) == all_images:
        raise InputError("Name an image, or use --all.")
    if not keep and not older_than:
        raise InputError("Choose which versions to keep: --keep, the number for each label, or --older-than, or both.")
    history, folder = _history(studies), read_settings(options.given_settings(adapters=adapters)).adapters
    count = 0
    for name, tag, versions in prune_versions(
        history, RetentionRule(keep, older_than), adapter_times(folder), image, dry_run
    ):
        count += len(versions)
        if not dry_run:
            add_audit_line("prune a label", name, adapters=adapters, tag=tag, versions=versions)
        console.print(f"{name}, {tag}: {', '.join(versions)}", markup=False)
    console.print(f"{count} versions {'would be' if dry_run else 'were'} removed.")


@app.command()
def remove(
    studies: Studies,
    image: Image,
    version: Annotated[str, typer.Argument(help="Version, as in `baps labels list`; or use --all.")] = "",
    tag: Tag = "final",
    all_versions: Annotated[bool, typer.Option("--all", help="Every version, also the one that is served.")] = False,
    although_used: Annotated[
        bool, typer.Option(help="Remove it also if a training has used it. Its adapter can then no longer be audited.")
    ] = False,
    adapters: Adapters = "",
) -> None:
    """Remove a version of a label for good, for example at a patient's request. Backups are not changed."""
    from baps.errors import InputError, NotFoundError

    history = _history(studies)
    if bool(version) == all_versions:
        raise InputError("Name a version, or use --all.")
    versions = [one for one in history.versions(image, tag) if all_versions or one.name == version]
    if not versions:
        raise NotFoundError(f"The label {tag} of {image} has no version {version}. See `baps labels list`.")
    if not although_used and (used := [one.name for one in versions if one.used_in_training]):
        raise InputError(
            f"A training has used the version {used[0]}, or may have. Nothing was removed. To remove it anyway, add "
            "--although-used."
        )
    history.remove(image, tag, [one.name for one in versions], "on request", served=all_versions)
    add_audit_line("remove a label", image, adapters=adapters, tag=tag, versions=[one.name for one in versions])
    console.print(f"Removed: {', '.join(one.name for one in versions)}", markup=False)


@app.command()
def export(
    studies: Studies,
    image: Image,
    rtstruct: Annotated[Path, typer.Option(metavar="FILE", help="File to write: a DICOM RTSTRUCT, for radiotherapy.")],
    tag: Tag = "final",
    adapters: Adapters = "",
) -> None:
    """Write the label of a DICOM series to FILE, which must not exist. It belongs to the study of the series."""
    from baps.annotations.export import label_to_rtstruct
    from baps.errors import InputError
    from baps.utils.atomic_write import atomic_write

    if rtstruct.exists():
        raise InputError(f"There is a file {rtstruct} already. Give another name.")
    if not rtstruct.parent.is_dir():
        raise InputError(f"There is no folder {rtstruct.parent}. Make it first.")
    structures = label_to_rtstruct(_history(studies), image, tag)
    with atomic_write(rtstruct) as partial_file:
        structures.save_as(partial_file, write_like_original=False)
    add_audit_line("export a label", image, adapters=adapters)
    names = ", ".join(str(one.ROIName) for one in structures.StructureSetROISequence)
    console.print(f"The label {tag} of {image} is in {rtstruct}: {names}.", markup=False)


@app.command("import")
def import_labels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of labels that are named like their images.")],
    studies: Annotated[Path, typer.Argument(help="Folder of images that is or will be served.")],
    labels: options.Labels = "",
    author: Annotated[str, typer.Option(help="Name of the person who drew them.")] = "",
    confirmed: Annotated[
        bool, typer.Option(help="Whether a person has checked them. Trainings use only those.")
    ] = True,
    replace: Annotated[bool, typer.Option(help="Replace existing labels, which are kept as versions.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Read and check all labels, and save nothing.")] = False,
    config: options.Config = "",
    adapters: Adapters = "",
) -> None:
    """Import labels of other programs, as if they had been submitted. DIR is not changed.

    A label is named like its image, or as nnU-Net and 3D Slicer name it: a_0000.nii.gz has the label a.nii.gz; a.nrrd
    has a.seg.nrrd or a-label.nrrd. Each is read on its image and rejected if it cannot be used. If a file does not
    name its segments, --labels or the settings file defines their values, as for the server.

    The exit status is 1 if a label was rejected.
    """
    from baps.annotations.label_files import TAG_FOLDERS, match_labels
    from baps.errors import InputError
    from baps.io import list_images
    from baps.site.settings import Settings, read_settings

    site = read_settings(options.given_settings(labels=labels, config=config))
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
        ImportOptions,
        ImportResult,
        import_labels,
    )

    datastore = StudiesDatastore(str(studies.absolute()), auto_reload=False, read_only=False)
    known = {} if site.labels == Settings().labels else site.labels
    done = "can be imported" if dry_run else "imported"

    def report(one: ImportResult) -> None:
        if one.reason:
            console.print(f"rejected: {one.file.name}. {one.reason}", style="yellow", markup=False)
            return
        console.print(f"{done}: {one.file.name} as the label of {one.image}, {', '.join(one.organs)}", markup=False)
        if not dry_run:
            add_audit_line("import a label", one.image, adapters=adapters, config=config)

    import_options = ImportOptions(known, author, confirmed, replace, dry_run)
    results = import_labels(datastore, match_labels(files, datastore.list_images()), import_options, report)
    options.print_notes(dict.fromkeys(sentence for one in results for sentence in one.notes))
    rejected = sum(bool(one.reason) for one in results)
    after = "can be imported; nothing was saved" if dry_run else "were imported"
    console.print(f"{len(results) - rejected} of {len(results)} labels {after}.")
    if rejected:
        raise typer.Exit(1)


def _authors(info: dict[str, object]) -> str:
    authors = info.get("authors")
    names = [str(info.get("author") or ""), *(authors.values() if isinstance(authors, dict) else ())]
    return ", ".join(dict.fromkeys(filter(None, names)))


def _organs(info: dict[str, object]) -> str:
    annotated = info.get("annotated_slices")
    if not isinstance(annotated, dict):
        return "all"
    return ", ".join(f"{organ} {len(slices)}" for organ, slices in annotated.items())
