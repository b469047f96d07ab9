"""Infer task of 3D Slicer's section Scribbles, which segments an organ from strokes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.imaging.canvas import SLICE_AXIS, Plane
from baps.imaging.volume import Volume
from baps.inference.requests.scribbles import read_scribbles
from baps.inference.scribbles import keep_strokes, strokes_to_prompt
from baps.inference.segmenter import Segmenter
from baps.inference.whole_organ import format_slices
from baps.io import write_nrrd
from baps.server.infer.base import Save, SegmentingInfer, named
from baps.server.jobs import Jobs


class ScribblesInfer(SegmentingInfer[Segmenter]):
    """Segments each slice with strokes as from clicks, with the adapter of the label.

    3D Slicer replaces the whole segment by the mask, which therefore includes the segment on other slices.

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
            InferType.SCRIBBLES,
            dimension=3,
            description="Strokes as prompts, adapted to this site",
            config={},
            segmenter=segmenter,
            clicks=clicks,
            labels=labels,
            save=save,
        )
        self._jobs = jobs

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, window = segmenter.volume(path)
        scribbles, save_as = read_scribbles(request, volume), self._save_as(request)
        prompted, beside = (
            np.flatnonzero(strokes.any((0, 1))) for strokes in (scribbles.foreground, scribbles.background)
        )
        mask = np.asfortranarray(scribbles.segmented)  # As files have it; the other order is slow to write.
        i, j, _ = scribbles.inside
        inside = np.zeros(mask.shape[1::-1], bool)
        inside[j, i] = True
        notes, served, used_fallback, done = list(scribbles.notes), None, [], []
        with self._jobs.running("scribbles") as job:
            for k in prompted.tolist():
                if job.cancelled:
                    notes.append(f"It was cancelled: what was found so far ends before slice {k}.")
                    break
                plane = Plane(SLICE_AXIS, k)
                foreground, background = plane.extract(scribbles.foreground), plane.extract(scribbles.background)
                prompt = strokes_to_prompt(foreground, background, segmenter.black_box.capabilities, scribbles.box)
                found = segmenter.segment(path, plane, prompt, scribbles.label)
                painted = keep_strokes(found.mask, foreground, background)
                plane.insert(mask, np.where(inside, painted, plane.extract(mask)))
                if found.used_fallback:
                    used_fallback.append(k)
                served = served or found.adapter
                done.append(k)
                job.report(len(done), len(prompted))
        if alone := sorted(set(beside.tolist()) - set(prompted.tolist())):
            notes.append(f"Only background strokes on {format_slices(alone)}: left as they were.")
        if used_fallback:
            notes.append(
                f"The adapted answer went against strokes on {format_slices(used_fallback)}, given with less of it."
            )
        if save_as and len(done) == len(prompted):
            notes.append(self._keep(request, volume, save_as, mask, done))
        notes += volume.notes
        name = self._new_reply()
        reply = Volume(mask.view(np.uint8), volume.affine)
        write_nrrd(Path(name), reply, compress=bool(request.get("result_compress", True)))
        return name, {
            "label": scribbles.label,
            "slices": done,
            "axis": "IJK"[SLICE_AXIS],
            "notes": notes,
            "adapter": named(served),
            "window": window.to_dict(),
            "latencies": {"total_ms": round((time.perf_counter() - begun) * 1000, 1)},
        }
