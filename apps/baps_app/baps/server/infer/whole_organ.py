"""Infer task that segments a whole organ from clicks on one or more slices."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.inference.requests.click import read_organ_clicks
from baps.inference.segmenter import Segmenter
from baps.inference.whole_organ import format_slices, segment_organ
from baps.server.infer.base import NO_LABEL, format_adapter
from baps.server.infer.volume import VolumeInfer

SECONDS = 60
"""Default time limit of a request."""


class WholeOrganInfer(VolumeInfer[Segmenter]):
    """Segments an organ on all slices from clicks on one or more slices."""

    model = "whole_organ"
    kind = InferType.DEEPGROW
    summary = "A whole organ from clicks on one slice or more, adapted to this site"

    def _options(self, labels: Mapping[str, int]) -> dict[str, Any]:
        return {"seconds": SECONDS, "adapter": [NO_LABEL, *labels]}

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, _ = segmenter.volume(path)
        clicks = read_organ_clicks(request, volume, self._names)
        label = clicks.label or self._label_choice(request, "adapter", NO_LABEL)
        seconds = _seconds(request.get("seconds"))
        save_as = self._save_as(request)
        with self._running(request) as job:

            def should_continue() -> bool:
                return job.seconds < seconds and not job.cancelled

            adapter = segmenter.load_adapter(label)
            result = segment_organ(segmenter, path, clicks, adapter, should_continue, job.report)
            notes = [*clicks.notes, *result.notes]
            if result.stopped:
                why = "It was cancelled" if job.cancelled else f"The {seconds:g} seconds (option seconds) have passed"
                notes.append(f"{why}: the mask so far ends at {format_slices(result.stopped)}.")
        volume = result.volume  # The file may have been replaced since the clicks were read.
        if save_as and job.cancelled:
            notes.append(f"It was not saved as {save_as}, because it was cancelled.")
        elif save_as:
            slices = result.slices if result.stopped else range(clicks.first, clicks.last + 1)
            notes.append(self._save_mask(request, volume, save_as, result.mask > 0, slices))
        return self._write_reply(request, Volume(result.mask, volume.affine)), {
            "label": label,
            "slices": list(result.slices),
            "stopped": list(result.stopped),
            "notes": [*notes, *volume.notes],
            "adapter": format_adapter(result.adapter),
            "window": result.window.to_dict(),
            "latencies": {
                "segment_ms": round(result.seconds * 1000, 1),
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
