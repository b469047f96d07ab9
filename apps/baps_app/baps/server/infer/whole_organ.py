"""Infer task that segments a whole organ from clicks on one or more slices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.inference.requests.click import PACKED, read_organ_clicks
from baps.inference.segmenter import Segmenter
from baps.inference.whole_organ import format_slices, segment_organ
from baps.io import write_nrrd
from baps.server.infer.base import NO_LABEL, Save, SegmentingInfer, named
from baps.server.jobs import Jobs

SECONDS = 60
"""Default time limit of a request."""


class WholeOrganInfer(SegmentingInfer[Segmenter]):
    """Segments an organ on all slices from clicks on one or more slices.

    Viewers replace the whole segment by the mask, because the dimension of the task is 3.

    Args:
        segmenter: See ``SegmentingInfer``.
        clicks: See ``SegmentingInfer``.
        labels: See ``SegmentingInfer``.
        save: See ``SegmentingInfer``.
        jobs: Lists the request while it runs, so that it can be cancelled.
    """

    def __init__(
        self, segmenter: Callable[[], Segmenter], clicks: Path, labels: dict[str, int], save: Save, jobs: Jobs
    ) -> None:
        super().__init__(
            InferType.DEEPGROW,
            dimension=3,
            description="A whole organ from clicks on one slice or more, adapted to this site",
            config={"seconds": SECONDS, "adapter": [NO_LABEL, *labels]},
            segmenter=segmenter,
            clicks=clicks,
            labels=labels,
            save=save,
        )
        self._jobs = jobs

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, _ = segmenter.volume(path)
        clicks = read_organ_clicks(request, volume, self._names)
        label, seconds = clicks.label or self._chosen(request, "adapter", NO_LABEL), _seconds(request.get("seconds"))
        save_as = self._save_as(request)
        with self._jobs.running("whole_organ") as job:

            def should_continue() -> bool:
                return job.seconds < seconds and not job.cancelled

            found = segment_organ(segmenter, path, clicks, label, True, should_continue, job.report)
            notes = [*clicks.notes, *found.notes]
            if found.stopped:
                why = "It was cancelled" if job.cancelled else f"The {seconds:g} seconds (option seconds) were spent"
                notes.append(f"{why}: what was found so far ends at {format_slices(found.stopped)}.")
        if save_as and job.cancelled:
            notes.append(f"It was not saved as {save_as}, for it was cancelled.")
        elif save_as:
            slices = found.slices if found.stopped else range(clicks.first, clicks.last + 1)
            notes.append(self._keep(request, volume, save_as, found.mask > 0, slices))
        notes += volume.notes
        name = self._new_reply()
        compress = bool(request.get("result_compress", True))
        write_nrrd(Path(name), Volume(found.mask, volume.affine), compress, bool(request.get(PACKED)))
        return name, {
            "label": label,
            "slices": list(found.slices),
            "stopped": list(found.stopped),
            "notes": notes,
            "adapter": named(found.adapter),
            "window": found.window.to_dict(),
            "latencies": {
                "segment_ms": round(found.seconds * 1000, 1),
                "total_ms": round((time.perf_counter() - begun) * 1000, 1),
            },
        }


def _seconds(option: object) -> float:
    """Return the option in seconds; 3D Slicer sends it as text."""
    if option in (None, ""):
        return SECONDS
    try:
        seconds = float(str(option))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"The option seconds must be a positive number, such as {SECONDS}, not {option!r}.")
    return seconds
