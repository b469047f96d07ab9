"""Infer task of 3D Slicer's section Scribbles, which segments an organ from strokes."""

from __future__ import annotations

import time
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
from baps.server.infer.base import format_adapter
from baps.server.infer.volume import VolumeInfer


class ScribblesInfer(VolumeInfer[Segmenter]):
    """Segments each slice with strokes as from clicks, with the adapter of the label.

    The mask includes the segment on other slices, because 3D Slicer replaces the whole segment.
    """

    model = "scribbles"
    kind = InferType.SCRIBBLES
    summary = "Strokes as prompts, adapted to this site"

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, window = segmenter.volume(path)
        scribbles, save_as = read_scribbles(request, volume), self._save_as(request)
        prompted = np.flatnonzero(scribbles.foreground.any((0, 1))).tolist()
        background_only = sorted(set(np.flatnonzero(scribbles.background.any((0, 1))).tolist()) - set(prompted))
        mask = np.asfortranarray(scribbles.segmented)  # As files have it; the other order is slow to write.
        i, j, _ = scribbles.inside
        inside = np.zeros(mask.shape[1::-1], bool)
        inside[j, i] = True
        notes, adapter, used_fallback, done = list(scribbles.notes), None, [], []
        loaded = segmenter.load_adapter(scribbles.label)
        with self._running(request) as job:
            for k in prompted:
                if job.cancelled:
                    notes.append(f"It was cancelled: the mask so far ends before slice {k}.")
                    break
                plane = Plane(SLICE_AXIS, k)
                foreground, background = plane.extract(scribbles.foreground), plane.extract(scribbles.background)
                prompt = strokes_to_prompt(foreground, background, segmenter.black_box.capabilities, scribbles.box)
                result = segmenter.segment(path, plane, prompt, loaded)
                painted = keep_strokes(result.mask, foreground, background)
                plane.insert(mask, np.where(inside, painted, plane.extract(mask)))
                if result.used_fallback:
                    used_fallback.append(k)
                adapter = adapter or result.adapter
                done.append(k)
                job.report(len(done), len(prompted))
        if background_only:
            notes.append(f"Only background strokes on {format_slices(background_only)}: not segmented.")
        if used_fallback:
            notes.append(
                f"The adapted mask violated a stroke on {format_slices(used_fallback)}; the mask there is less adapted."
            )
        if save_as and len(done) == len(prompted):
            notes.append(self._save_mask(request, volume, save_as, mask, done))
        return self._write_reply(request, Volume(mask.view(np.uint8), volume.affine)), {
            "label": scribbles.label,
            "slices": done,
            "axis": "IJK"[SLICE_AXIS],
            "notes": [*notes, *volume.notes],
            "adapter": format_adapter(adapter),
            "window": window.to_dict(),
            "latencies": {"total_ms": round((time.perf_counter() - begun) * 1000, 1)},
        }
