"""Infer task that segments all known organs of a volume without a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.inference.requests.click import PACKED
from baps.io import read_volume, write_nrrd
from baps.server.infer.base import Save, SegmentingInfer
from baps.server.jobs import Jobs

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

UNADAPTED = "unadapted"
"""Name of the version of an organ that the organ model segments without an adapter."""


class OrgansInfer(SegmentingInfer["OrganSegmenter"]):
    """Segments the site's organs with the organ model and its adapters.

    Args:
        segmenter: See ``SegmentingInfer``.
        clicks: See ``SegmentingInfer``.
        labels: See ``SegmentingInfer``.
        save: See ``SegmentingInfer``.
        jobs: Lists the request while it runs, so that it can be cancelled.
    """

    def __init__(
        self, segmenter: Callable[[], OrganSegmenter], clicks: Path, labels: dict[str, int], save: Save, jobs: Jobs
    ) -> None:
        super().__init__(
            InferType.SEGMENTATION,
            dimension=3,
            description="All organs of a volume without a click, adapted to this site",
            config={},
            segmenter=segmenter,
            clicks=clicks,
            labels=labels,
            save=save,
        )
        # It needs no click, so Next Sample may run it. OHIF reads the organs from the values.
        self.labels = labels
        self._jobs = jobs

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
        with self._jobs.running("organs") as job:
            found = segmenter.segment(volume, self.labels, lambda: not job.cancelled, job.report)
        notes = []
        if found.unknown:
            notes.append(
                f"Nothing answers for {', '.join(found.unknown)}: no organ of the organ model, and no adapter that can "
                "be read. Use clicks, and train `organs` when volumes are labelled."
            )
        if found.stopped:
            notes.append(f"It was cancelled: {', '.join(found.stopped)} were not looked for.")
        present = {name: value for name, value in self.labels.items() if (found.labelmap == value).any()}
        if missing := [name for name in found.served if name not in present]:
            notes.append(f"Found nowhere in this volume: {', '.join(missing)}.")
        if save_as and job.cancelled:
            notes.append(f"It was not saved as {save_as}, for it was cancelled.")
        elif save_as in found.served:
            mask = found.labelmap == self.labels[save_as]
            notes.append(self._keep(request, volume, save_as, mask, range(volume.shape[2])))
        elif save_as:
            notes.append(f"It was not saved as {save_as}, for there is no mask of it.")
        notes += volume.notes
        name = self._new_reply()
        compress = bool(request.get("result_compress", True))
        write_nrrd(Path(name), Volume(found.labelmap, volume.affine), compress, bool(request.get(PACKED)))
        return name, {
            # Slicer names the segments of the reply in the order of their values, and counts those that are there.
            "label_names": dict(sorted(present.items(), key=lambda item: item[1])),
            "adapter": {organ: version or UNADAPTED for organ, version in found.served.items()},
            "notes": notes,
            "latencies": {"total_ms": round((time.perf_counter() - begun) * 1000, 1)},
        }
