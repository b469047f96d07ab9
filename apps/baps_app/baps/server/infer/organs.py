"""Infer task that segments all known organs of a volume without a prompt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume
from baps.server.infer.volume import VolumeInfer

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

UNADAPTED = "unadapted"
"""Version of an organ that the organ model segments without an adapter."""


class OrgansInfer(VolumeInfer["OrganSegmenter"]):
    """Segments the site's organs with the organ model and its adapters. OHIF reads the organs from the values."""

    model = "organs"
    kind = InferType.SEGMENTATION
    summary = "All organs of a volume without a click, adapted to this site"
    needs_clicks = False

    def _answer(
        self, segmenter: OrganSegmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        save_as = self._save_as(request)
        if save_as and segmenter.served(save_as) is None:
            raise InputError(
                f"The organ model does not know {save_as}, so there is no mask to save. Label it in a volume or more, "
                "and train `organs`."
            )
        volume = read_volume(path)
        with self._running(request) as job:
            result = segmenter.segment(volume, self._values, lambda: not job.cancelled, job.report)
        notes = []
        if result.unknown:
            notes.append(
                f"There is no model for {', '.join(result.unknown)}: neither an organ of the organ model nor a "
                "readable adapter. Use clicks, and train `organs` when volumes are labelled."
            )
        if result.stopped:
            notes.append(f"It was cancelled: {', '.join(result.stopped)} were not segmented.")
        present = {name: value for name, value in self._values.items() if (result.labelmap == value).any()}
        if missing := [name for name in result.served if name not in present]:
            notes.append(f"Not found in this volume: {', '.join(missing)}.")
        if save_as and job.cancelled:
            notes.append(f"It was not saved as {save_as}, because it was cancelled.")
        elif save_as in result.served:
            mask = result.labelmap == self._values[save_as]
            notes.append(self._save_mask(request, volume, save_as, mask, range(volume.shape[2])))
        elif save_as:
            notes.append(f"It was not saved as {save_as}, because there is no mask of it.")
        return self._write_reply(request, Volume(result.labelmap, volume.affine)), {
            # Slicer names the segments of the reply in the order of their values, and counts only those present.
            "label_names": dict(sorted(present.items(), key=lambda item: item[1])),
            "adapter": {organ: version or UNADAPTED for organ, version in result.served.items()},
            "notes": [*notes, *volume.notes],
            "latencies": {"total_ms": round((time.perf_counter() - begun) * 1000, 1)},
        }
