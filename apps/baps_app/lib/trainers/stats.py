"""What Slicer and OHIF show of a training: a small JSON file between the training process and the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baps.replacing import replacing


def write_stats(path: Path, stats: dict[str, Any]) -> None:
    """Replace the file; a reader sees the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(stats, allow_nan=False))


def read_stats(path: Path) -> dict[str, Any]:
    """What was written last, or nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
