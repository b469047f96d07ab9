"""Take up the runs that a results file holds, so that a benchmark resumes and reports in a fresh checkout too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from baps.utils.atomic_write import atomic_write


def restore_runs(out: Path, file_of: Callable[[Mapping[str, Any]], Path]) -> int:
    """Write every run of a results file to the file of its own, unless that exists.

    Args:
        out: the results file, with a list ``runs``; it may be missing.
        file_of: returns the file of a run.

    Returns:
        The number of files that were written.
    """
    restored = 0
    for run in json.loads(out.read_text())["runs"] if out.exists() else []:
        file = file_of(run)
        if not file.exists():
            with atomic_write(file) as partial:
                partial.write_text(json.dumps(run, indent=1))
            restored += 1
    return restored
