"""Train task that adapts the 3D black box to the labelled volumes; the evidence decides what serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from baps.errors import InputError
from baps.evaluation.cases import Case, label_versions_by_patient
from baps.evaluation.labelled_volumes import load_volumes
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.prompts.simulated import PROMPTS
from baps.server.train.base import ALL_LABELS, SiteTrainer
from baps.server.train.stats import Stats
from baps.training.adapt import ProgressReport
from baps.training.settings import OPTIMISERS
from baps.training.volumes.publishing import adapt_and_publish_volumes
from baps.training.volumes.settings import (
    VOLUME_HEADS,
    VOLUME_PROMPTS,
    VOLUME_ZOOMS,
    VolumeSettings,
)
from baps.utils.throttle import wait_for_idle

logger = logging.getLogger(__name__)

_OPTIONS = tuple(field.name for field in fields(VolumeSettings))


class VolumeTrainer(SiteTrainer[VolumeSettings]):
    """Trains one adapter of the 3D black box for each label that has volumes.

    Args:
        segmenter: Returns the 3D black box, with the store of its adapters, when training starts.
        labels: Names and values of the site.
        lock_file: Lock file of inference.
        patients: CSV file of image and patient, or None.
        serve_trials: Whether adapters on trial serve.
    """

    def __init__(
        self,
        segmenter: Callable[[], VolumeSegmenter],
        labels: dict[str, int],
        lock_file: Path,
        patients: Path | None,
        serve_trials: bool = True,
    ) -> None:
        description = "Adapts the 3D model to the saved labels of this site, without its weights or gradients"
        super().__init__(description, labels, patients, segmenter().store.root, _OPTIONS)
        self._segmenter, self._lock_file, self._serve_trials = segmenter, lock_file, serve_trials

    def config(self) -> dict[str, Any]:
        """Return the options for the viewers, with their choices or defaults."""
        return {
            "label": [ALL_LABELS, *self._labels],
            "zoom": list(VOLUME_ZOOMS),
            "visual_prompt": list(VOLUME_PROMPTS),
            "head": list(VOLUME_HEADS),
            "optimiser": list(OPTIMISERS),
            "prompt": list(PROMPTS),
            "max_predictions": VolumeSettings.max_predictions,
            "seed": VolumeSettings.seed,
        }

    def _defaults(self) -> VolumeSettings:
        return VolumeSettings()

    def _check_settings(self, settings: VolumeSettings) -> None:
        capabilities = self._segmenter().black_box.capabilities
        if not (capabilities.boxes if settings.prompt == "box" else capabilities.points):
            raise InputError(
                f"{capabilities.name} does not understand the prompt {settings.prompt!r}. Choose the other one."
            )

    def _train(self, cases: dict[str, list[Case]], settings: VolumeSettings, stats: Stats) -> None:
        segmenter = self._segmenter()
        black_box, store = segmenter.black_box, segmenter.store
        black_box.wait = wait_for_idle(self._lock_file)
        for number, (label, label_cases) in enumerate(cases.items()):
            volumes, skipped = load_volumes(label_cases, store.root)
            stats.add_skipped({f"{label}, {name}": reason for name, reason in skipped.items()})
            if not volumes:
                continue

            def report(progress: ProgressReport, number: int = number, label: str = label) -> None:
                step, steps = progress.steps * number + progress.step, progress.steps * len(cases)
                stats.report(label, step, steps, progress.dice, black_box_images=progress.images)

            logger.info("Adapting the 3D model to %s from labels of %d patients", label, len(volumes))
            versions = label_versions_by_patient(label_cases)
            record = adapt_and_publish_volumes(
                store, label, black_box, volumes, settings, report, self._serve_trials, versions
            )
            stats.add(label, record)
        if not stats.values["adapters"]:
            raise InputError(f"None of the saved labels can be used. {next(iter(stats.values['skipped'].values()))}")
