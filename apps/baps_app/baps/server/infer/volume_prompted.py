"""Infer task that segments a whole organ with a 3D black box, from clicks on any slices or a box."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.adapters.volumes.adapter import ShownVolume
from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.inference.requests.volume_prompts import read_volume_request
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.server.infer.base import NO_LABEL, format_adapter
from baps.server.infer.volume import VolumeInfer


class VolumePromptedInfer(VolumeInfer[VolumeSegmenter]):
    """Segments an organ with the site's 3D model, one prediction for the clicks that are new."""

    model = "volume"
    kind = InferType.DEEPGROW
    summary = "A whole organ from clicks or a box by the 3D model, adapted to this site"

    def _options(self, labels: Mapping[str, int]) -> dict[str, Any]:
        return {"adapter": [NO_LABEL, *labels]}

    def _answer(
        self, segmenter: VolumeSegmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, window = segmenter.read(path)
        if volume.colour:
            raise InputError("The image has colours; the 3D model takes grey values. Use the model baps.")
        prompted = read_volume_request(request, volume, self._names)
        label = prompted.label or self._label_choice(request, "adapter", NO_LABEL)
        save_as = self._save_as(request)
        loaded = segmenter.load_adapter(label)
        with self._running(request) as job:
            mask = segmenter.segment_all(path, ShownVolume.of(volume, window), prompted.prompts, loaded)
            cancelled = job.cancelled
        seconds = time.perf_counter() - begun
        notes = list(prompted.notes)
        if save_as and cancelled:
            notes.append(f"It was not saved as {save_as}, because it was cancelled.")
        elif save_as:
            notes.append(self._save_mask(request, volume, save_as, mask, range(volume.shape[2])))
        return self._write_reply(request, Volume(mask.astype("uint8"), volume.affine)), {
            "label": label,
            "notes": [*notes, *volume.notes],
            "adapter": format_adapter(loaded.name if loaded else None),
            "window": window.to_dict(),
            "latencies": {
                "segment_ms": round(seconds * 1000, 1),
                "total_ms": round((time.perf_counter() - begun) * 1000, 1),
            },
        }
