"""The infer task: clicks on some slices in, a mask of the whole organ out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baps.click import PACKED, read_organ_clicks
from baps.errors import InputError
from baps.formats import write_nrrd
from baps.jobs import Jobs
from baps.segmenter import Segmenter
from baps.volume import Volume
from baps.whole_organ import name_slices, segment_organ
from lib.infers.prompted import PromptedInfer, named

SECONDS = 60
"""That an answer takes at the most, unless the request says otherwise."""


class WholeOrganInfer(PromptedInfer):
    """Clicks on one slice or more, answered with a mask of the organ on all slices.

    The viewers replace the segment by the reply, for the task's dimension is 3.

    Args:
        segmenter, labels: as for ``PromptedInfer``.
        jobs: where it is listed while it runs, and can be cancelled.
    """

    def __init__(self, segmenter: Callable[[], Segmenter], labels: dict[str, int], jobs: Jobs) -> None:
        super().__init__(
            segmenter,
            labels,
            adapted=True,
            dimension=3,
            description="A whole organ from clicks on one slice or more, adapted to this site",
            options={"seconds": SECONDS},
        )
        self._jobs = jobs

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, _ = segmenter.volume(path)
        clicks = read_organ_clicks(request, volume, self._names)
        label, seconds = self._label(request, clicks.label), _seconds(request.get("seconds"))
        with self._jobs.running("whole_organ") as job:

            def go_on() -> bool:
                return job.seconds < seconds and not job.cancelled

            found = segment_organ(segmenter, path, clicks, label, True, go_on, job.report)
            notes = [*clicks.notes, *found.notes]
            if found.stopped:
                why = "It was cancelled" if job.cancelled else f"The {seconds:g} seconds (option seconds) were spent"
                notes.append(f"{why}: what was found so far ends at {name_slices(found.stopped)}.")
        name = self._new_reply()
        compress = bool(request.get("result_compress", True))
        write_nrrd(Path(name), Volume(found.mask, volume.affine), compress, bool(request.get(PACKED)))
        return name, {
            "label": label,
            "slices": list(found.slices),
            "stopped": list(found.stopped),
            "notes": notes,
            "adapter": named(found.adapter),
            "window": found.window.record(),
            "latencies": {
                "segment_ms": round(found.seconds * 1000, 1),
                "total_ms": round((time.perf_counter() - begun) * 1000, 1),
            },
        }


def _seconds(option: object) -> float:
    """The option, which Slicer sends as text."""
    if option in (None, ""):
        return SECONDS
    try:
        seconds = float(str(option))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"The option seconds must be a positive number, such as {SECONDS}, not {option!r}.")
    return seconds
