"""Add lines to the audit file for changes by commands, as the server does for requests."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import typer
from rich.console import Console


def add_audit_line(
    what: str,
    image: str = "",
    adapter: str = "",
    images: Collection[str] = (),
    adapters: str = "",
    config: str = "",
    **more: Any,
) -> None:
    """Add a line to the audit file of the site. If that fails, print a warning; the action is not undone.

    The file is that of the settings: ``BAPS_AUDIT``, or ``audit.jsonl`` in the folder of adapters.

    Args:
        what: The action, as in ``restore a label``.
        image: The image, or "".
        adapter: The adapter, as in ``spleen/v0002``, or "".
        images: The images, if there are several.
        adapters: The option ``--adapters``, or "".
        config: The option ``--config``, or "".
        **more: Other entries of the line; no names of patients or images.
    """
    from baps.cli.options import given_settings
    from baps.errors import BapsError
    from baps.site.audit import AuditFile, command
    from baps.site.settings import read_settings

    site = read_settings(given_settings(adapters=adapters, config=config))
    file = site.audit_file
    is_below = site.adapters.name in ("organs", "volumes")  # The organ model's and the 3D model's adapters.
    if site.audit is None and is_below and (above := site.adapters.parent / file.name).exists():
        file = above
    audit = AuditFile(file, site.audit_max_mb, site.audit_keep)
    try:
        audit.check()
        entries = {"image": audit.hashed(image) if image else None, "adapter": adapter or None, "status": None, **more}
        if images:
            entries |= {"images": [audit.hashed(one) for one in images], "count": len(images)}
        audit.add({**command(what), **entries})
    except (OSError, BapsError) as error:
        why = str(error) if isinstance(error, BapsError) else f"{error.strerror}."
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"This was not noted in the audit file {file}. {why} Set BAPS_AUDIT to the server's audit file.",
            style="yellow",
            markup=False,
        )


def private_files(context: typer.Context) -> None:
    """Make the files of a command readable by the user only, as those of the server are. Exports are an exception.

    Args:
        context: The context of the command.
    """
    if context.invoked_subcommand != "export":
        before = os.umask(0o077)
        context.call_on_close(lambda: os.umask(before))
