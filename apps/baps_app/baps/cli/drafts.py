"""``baps drafts``: list, confirm and delete the masks that nnInteractive's viewers left behind on the server."""

from __future__ import annotations

import os
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
    from baps.annotations.drafts import DraftStore
    from baps.site.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    callback=private_files,
    help="List, confirm and delete the masks that nnInteractive's viewers left behind on the server.",
)

Name = Annotated[str, typer.Argument(metavar="DRAFT", help="Name of the draft, as in `baps drafts list`.")]
console = Console(soft_wrap=True, highlight=False)


@app.command("list")
def list_drafts(adapters: Adapters = "", config: options.Config = "") -> None:
    """List the drafts, the newest first: who drew which organ when."""
    from baps.annotations.drafts import DamagedDraft

    _, drafts = _open(adapters=adapters, config=config)
    table = Table(Column("draft", no_wrap=True, min_width=25), "drawn", "organ", "by", "voxels", "ml")
    problems = []
    for draft in drafts.all():
        if isinstance(draft, DamagedDraft):
            problems.append(draft.problem)
            continue
        volume = f"{draft.millilitres:.1f}" if draft.millilitres is not None else ""
        drawn = f"{draft.saved.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(*map(escape, (draft.name, drawn, draft.label, draft.user, f"{draft.voxels:,}", volume)))
    console.print(table)
    for problem in problems:
        console.print(problem, style="yellow", markup=False)


@app.command()
def confirm(
    studies: Annotated[Path, typer.Argument(help="Folder of images that is or was served.")],
    draft: Name,
    image: Annotated[str, typer.Option(help="Name of the image. Default: the one that has the draft's voxels.")] = "",
    labels: options.Labels = "",
    config: options.Config = "",
    adapters: Adapters = "",
) -> None:
    """Save a draft as the final label of its image, also in a running server. Other organs of the label stay.

    The image must have exactly the voxels that the draft was drawn on, in any order and direction of its axes. Drafts
    on images of a PACS are confirmed on the page of the server.
    """
    from baps.errors import InputError
    from baps.site.server_command import check_installed

    site, drafts = _open(labels=labels, config=config, adapters=adapters)
    if not studies.is_dir():
        raise InputError(f"There is no folder {studies}. For images of a PACS, use the page of the server.")
    if not os.access(studies, os.W_OK):
        raise InputError(f"The folder {studies} cannot be written to, so no label can be saved there.")
    drafts.get(draft)  # Before imports that take seconds.
    check_installed()
    from functools import partial

    from baps.server.datastores.folder import StudiesDatastore
    from baps.server.labels.drafts import DraftImages, confirm_draft
    from baps.server.labels.save_labels import save_mask

    datastore = StudiesDatastore(str(studies.absolute()), auto_reload=False, read_only=False)
    images, save = DraftImages(lambda: datastore), partial(save_mask, datastore, site.labels)
    saved = confirm_draft(drafts, images, save, draft, image, confirms=True, complete_labels=site.complete_labels)
    add_audit_line(
        "confirm a draft",
        saved.image,
        adapters=adapters,
        config=config,
        draft=draft,
        drawn_by=saved.draft.user,
        organs=[saved.draft.label],
    )
    console.print(f"The draft belongs to {saved.image}. {saved.note}", markup=False)


@app.command()
def delete(draft: Name, adapters: Adapters = "", config: options.Config = "") -> None:
    """Delete a draft for good, even a damaged one."""
    _, drafts = _open(adapters=adapters, config=config)
    drafts.discard(draft)
    add_audit_line("delete a draft", adapters=adapters, config=config, draft=draft)
    console.print(f"The draft {draft} is deleted.", markup=False)


def _open(**given: str) -> tuple[Settings, DraftStore]:
    """Read the settings and open the drafts."""
    from baps.site.drafts import open_drafts
    from baps.site.settings import read_settings

    site = read_settings(options.given_settings(**given))
    return site, open_drafts(site)
