"""What commands change is noted in the audit file, as what the server does."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def note(what: str, image: str = "", adapter: str = "", adapters: str = "", **more: Any) -> None:
    """Add a line to the audit file of the site; where that fails, say so: what was done stays done.

    The file is that of the settings: ``BAPS_AUDIT``, or ``audit.jsonl`` in the folder of adapters.

    Args:
        what: was done, as in ``restore a label``.
        image: to which image, or "".
        adapter: to which adapter, as in ``spleen/v0002``, or "".
        adapters: the folder of adapters, if it was given.
        more: what else the line says; no names of patients or images.
    """
    from ..audit import AuditFile, command
    from ..errors import BapsError
    from ..settings import read_settings
    from .options import given

    site = read_settings(given(adapters=adapters))
    audit = AuditFile(site.audit_file, site.audit_max_mb, site.audit_keep)
    try:
        audit.check()
        hashed = audit.hashed(image) if image else None
        audit.add({**command(what), "image": hashed, "adapter": adapter or None, "status": None, **more})
    except (OSError, BapsError) as error:
        why = str(error) if isinstance(error, BapsError) else f"{error.strerror}."
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"This was not noted in the audit file {site.audit_file}. {why} Name the server's one (BAPS_AUDIT).",
            style="yellow",
            markup=False,
        )
