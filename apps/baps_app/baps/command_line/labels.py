"""``baps labels``: the versions of labels that were saved, back to one of them; from other programs, and to them."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..label_import import USED
from . import options
from .noting import note

if TYPE_CHECKING:
    from ..label_history import LabelHistory, Version

app = typer.Typer(no_args_is_help=True, help="List, show, restore, import and export labels.")

Studies = Annotated[Path, typer.Argument(help="Folder of images that is served, or was.")]
Image = Annotated[str, typer.Argument(help="The image's name.")]
Name = Annotated[str, typer.Argument(metavar="VERSION", help="As `baps labels list` shows it.")]
Tag = Annotated[str, typer.Option(help="final, draft or original.")]
console = Console(soft_wrap=True, highlight=False)


def _history(studies: Path) -> LabelHistory:
    from ..errors import InputError
    from ..label_history import LabelHistory

    if not studies.is_dir():
        raise InputError(f"There is no folder {studies}. A PACS keeps the versions of its labels itself.")
    return LabelHistory(studies)


@app.command("list")
def list_labels(
    studies: Studies, image: Annotated[str, typer.Option(help="One image alone; by default all.")] = ""
) -> None:
    """Every version, who saved it, and what it covers; the newest of each label is served."""
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
    console.print(table)


@app.command()
def show(studies: Studies, image: Image, version: Name, tag: Tag = "final") -> None:
    """All that is known of one version, and where its file is."""
    found = _history(studies).version(image, tag, version)
    console.print_json(json.dumps({"file": str(found.file), "sha256": found.sha256, **found.info}))


@app.command()
def restore(studies: Studies, image: Image, version: Name, tag: Tag = "final") -> None:
    """Serve an earlier version again, also in a server that runs; the one that it replaces is kept too."""
    history = _history(studies)
    name = history.restore(image, tag, version, partial(history.check_fits, image))
    console.print(f"The label {tag} of {image} is that of {version} again, as version {name}.", markup=False)


@app.command()
def export(
    studies: Studies,
    image: Image,
    rtstruct: Annotated[Path, typer.Option(metavar="FILE", help="For radiotherapy: a DICOM RTSTRUCT.")],
    tag: Tag = "final",
) -> None:
    """Write the label of a DICOM series as FILE, which is not there yet; it belongs to the study of the series."""
    from ..errors import InputError
    from ..label_export import label_as_rtstruct
    from ..replacing import replacing

    if rtstruct.exists():
        raise InputError(f"There is a file {rtstruct} already. Give another name.")
    if not rtstruct.parent.is_dir():
        raise InputError(f"There is no folder {rtstruct.parent}. Make it first.")
    made = label_as_rtstruct(_history(studies), image, tag)
    with replacing(rtstruct) as partly:
        made.save_as(partly, write_like_original=False)
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
) -> None:
    """Have labels of other programs served and trained on, as if they had been submitted; DIR stays as it is.

    A label is called as its image, or as nnU-Net and 3D Slicer call it: a_0000.nii.gz has the label a.nii.gz; a.nrrd
    has a.seg.nrrd or a-label.nrrd. Each is read on its image and refused where it cannot be used. Where a file does not
    name its segments, --labels (or the settings file) says what their values mean, as for the server.

    Ends with 1 if a label was refused.
    """
    from ..errors import InputError
    from ..formats import list_images
    from ..label_import import match_labels
    from ..settings import Settings, read_settings

    site = read_settings(options.given(labels=labels, config=config))
    for place in (folder, studies):
        if not place.is_dir():
            raise InputError(f"There is no folder {place}.")
    files = [path for path in list_images(folder) if not (path.is_dir() and path.name in USED)]
    if not files:
        raise InputError(f"There are no labels directly in {folder}.")
    if not os.access(studies, os.W_OK):
        raise InputError(f"The folder {studies} cannot be written to, so no label can be saved there.")
    from lib.importing import Import, Imported, import_labels  # MONAI Label's datastore, which takes seconds.
    from lib.studies import StudiesDatastore

    datastore = StudiesDatastore(str(studies.absolute()), auto_reload=False, read_only=False)
    known = {} if site.labels == Settings().labels else site.labels
    done = "can be imported" if dry_run else "imported"

    def told(one: Imported) -> None:
        if one.why_not:
            console.print(f"refused: {one.file.name}. {one.why_not}", style="yellow", markup=False)
            return
        console.print(f"{done}: {one.file.name} as the label of {one.image}, {', '.join(one.organs)}", markup=False)
        if not dry_run:
            note("import a label", one.image)

    how = Import(known, author, confirmed, replace, dry_run)
    results = import_labels(datastore, match_labels(files, datastore.list_images()), how, told)
    options.print_notes(dict.fromkeys(sentence for one in results for sentence in one.notes))
    refused = sum(bool(one.why_not) for one in results)
    after = "can be imported; nothing was saved" if dry_run else "were imported"
    console.print(f"{len(results) - refused} of {len(results)} labels {after}.")
    if refused:
        raise typer.Exit(1)


def _authors(said: dict[str, object]) -> str:
    authors = said.get("authors")
    names = [str(said.get("author") or ""), *(authors.values() if isinstance(authors, dict) else ())]
    return ", ".join(dict.fromkeys(filter(None, names)))


def _organs(said: dict[str, object]) -> str:
    covers = said.get("covers")
    return (
        ", ".join(f"{organ} {len(slices)}" for organ, slices in covers.items()) if isinstance(covers, dict) else "all"
    )


def _remarks(version: Version) -> str:
    said = version.info
    remarks = [f"made by {said['model']}"] if said.get("model") else []
    remarks += ["damaged: take it from your backup"] if said.get("damaged") else []
    remarks += ["not confirmed"] if said.get("confirmed") is False else []
    remarks += ["found in the folder"] if said.get("found") else []
    remarks += [f"that of {said['restored']} again"] if said.get("restored") else []
    return ", ".join(remarks)
