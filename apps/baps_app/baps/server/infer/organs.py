"""Infer task that segments all known organs of a volume without a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_volume
from baps.server.infer.base import IMAGE_ID, Save
from baps.server.infer.volume import VolumeInfer
from baps.server.jobs import LongRequests

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

UNADAPTED = "unadapted"
"""Version of an organ that the organ model segments without an adapter."""


class OrgansInfer(VolumeInfer["OrganSegmenter"]):
    """Segments the site's organs with the organ model and its adapters. OHIF reads the organs from the values.

    An organ that a person drew and saved is returned as it was saved: OHIF replaces all segments by the reply, so that
    an organ that is left out would be lost there, and the model's mask would overwrite it.

    Args:
        segmenter: See ``VolumeInfer``.
        lock_file: See ``VolumeInfer``.
        labels: Names and values of the site's labels.
        save: See ``VolumeInfer``.
        jobs: See ``VolumeInfer``.
        find_drawn: Returns the confirmed labels of an image by organ, given its name, and None for an organ whose label
            cannot be read.
        min_dice: Dice (0 to 1) below which an organ is not offered, by its evidence; nor is one without evidence. 0
            offers all.
        loaded: Returns the segmenter if it has been loaded, or None.
    """

    model = "organs"
    kind = InferType.SEGMENTATION
    summary = "All organs of a volume without a click, adapted to this site"
    needs_clicks = False

    def __init__(
        self,
        segmenter: Callable[[], OrganSegmenter],
        lock_file: Path,
        labels: Mapping[str, int],
        save: Save,
        jobs: LongRequests,
        find_drawn: Callable[[str], Mapping[str, Case | None]],
        min_dice: float = 0.0,
        loaded: Callable[[], OrganSegmenter | None] = lambda: None,
    ) -> None:
        super().__init__(segmenter, lock_file, labels, save, jobs)
        self._find_drawn, self._min_dice, self._loaded = find_drawn, min_dice, loaded

    def info(self) -> dict[str, Any]:
        """Return what the viewers show, and for which organs the task offers itself, once the model is loaded."""
        segmenter = self._loaded()
        offer: dict[str, Any] = {"expected_dice": None, "not_offered": None}
        if segmenter is not None:
            expected = self._expected_dice(segmenter)
            offer = {"expected_dice": expected, "not_offered": self._not_offered(expected)}
        return {**super().info(), "min_dice": self._min_dice, **offer}

    def _expected_dice(self, segmenter: OrganSegmenter) -> dict[str, float | None]:
        """Return the Dice that is expected of each organ that can be segmented, or None where nothing was measured."""
        known = [name for name in self._values if segmenter.served(name) is not None]
        expected = {name: segmenter.expected_dice(name) for name in known}
        return {name: None if dice is None else round(dice, 3) for name, dice in expected.items()}

    def _not_offered(self, expected: Mapping[str, float | None]) -> list[str]:
        return [name for name, dice in expected.items() if (dice or 0) < self._min_dice]

    def _answer(
        self, segmenter: OrganSegmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        from baps.fseft.predictor import OrganMasks

        save_as = self._save_as(request)
        if save_as and segmenter.served(save_as) is None:
            raise InputError(
                f"The organ model does not know {save_as}, so there is no mask to save. Label it in a volume or more, "
                "and train `organs`."
            )
        volume = read_volume(path)
        drawn, unreadable = self._read_drawn(str(request.get(IMAGE_ID) or ""), volume)
        expected = self._expected_dice(segmenter)
        not_offered = [name for name in self._not_offered(expected) if name not in {*drawn, *unreadable}]
        without = {*drawn, *unreadable, *not_offered}
        asked = {name: value for name, value in self._values.items() if name not in without}
        result = OrganMasks(np.zeros(volume.shape, np.uint8), {}, tuple(asked), ())
        with self._running(request) as job:
            if any(name in expected for name in asked) or not without:
                result = segmenter.segment(volume, asked, lambda: not job.cancelled, job.report)
        labelmap = result.labelmap
        for name, mask in drawn.items():
            labelmap[mask] = self._values[name]
        notes = []
        if drawn:
            notes.append(f"Left as drawn, because a person saved it: {', '.join(drawn)}.")
        if overlapped := [name for name, mask in drawn.items() if (labelmap[mask] != self._values[name]).any()]:
            notes.append(
                "Drawn organs overlap, and the reply has one label per voxel: it lacks a part of "
                f"{', '.join(overlapped)}."
            )
        if unreadable:
            notes.append(f"Left out, because the saved label cannot be read: {', '.join(unreadable)}.")
        if not_offered:
            reasons = [
                f"{name} ({'not measured' if (dice := expected[name]) is None else f'{dice:.2f}'})"
                for name in not_offered
            ]
            notes.append(
                f"Left out, because the Dice that is expected is below {self._min_dice:.2f}, the site's "
                f"organ_min_dice: {', '.join(reasons)}. Use clicks, and train `organs` when volumes are labelled."
            )
        if result.unknown:
            notes.append(
                f"There is no model for {', '.join(result.unknown)}: neither an organ of the organ model nor a "
                "readable adapter. Use clicks, and train `organs` when volumes are labelled."
            )
        if result.stopped:
            notes.append(f"It was cancelled: {', '.join(result.stopped)} were not segmented.")
        millilitres = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000
        counts = np.bincount(labelmap.ravel(), minlength=256)
        present = {name: value for name, value in self._values.items() if counts[value]}
        if missing := [name for name in result.served if name not in present]:
            notes.append(f"Not found in this volume: {', '.join(missing)}.")
        if save_as in {*drawn, *unreadable}:
            notes.append(f"It was not saved as {save_as}, because a person saved that organ of this image before.")
        elif save_as and job.cancelled:
            notes.append(f"It was not saved as {save_as}, because it was cancelled.")
        elif save_as in result.served:
            mask = labelmap == self._values[save_as]
            notes.append(self._save_mask(request, volume, save_as, mask, range(volume.shape[2])))
        elif save_as:
            notes.append(f"It was not saved as {save_as}, because there is no mask of it.")
        return self._write_reply(request, Volume(labelmap, volume.affine)), {
            # Slicer names the segments of the reply in the order of their values, and counts only those present.
            "label_names": dict(sorted(present.items(), key=lambda item: item[1])),
            "volumes_ml": {name: round(int(counts[value]) * millilitres, 2) for name, value in present.items()},
            "left_as_drawn": list(drawn),
            "expected_dice": expected,
            "not_offered": not_offered,
            "adapter": {organ: version or UNADAPTED for organ, version in result.served.items()},
            "notes": [*notes, *volume.notes],
            "latencies": {"total_ms": round((time.perf_counter() - begun) * 1000, 1)},
        }

    def _read_drawn(self, image: str, volume: Volume) -> tuple[dict[str, NDArray[np.bool_]], list[str]]:
        """Read the organs that a person drew on an image.

        Returns:
            The mask of each organ, (I, J, K), and the organs whose labels cannot be read.
        """
        drawn: dict[str, NDArray[np.bool_]] = {}
        unreadable = []
        read: dict[Path, LabelMap] = {}
        for organ, case in self._find_drawn(image).items():
            if case is None:
                unreadable.append(organ)
                continue
            try:
                if case.labels not in read:
                    read[case.labels] = read_label_map(case.labels, volume, case.source or case.image)
            except InputError:
                unreadable.append(organ)
                continue
            mask = read[case.labels].mask(case.value)
            if mask.any():
                drawn[organ] = mask
        return drawn, unreadable
