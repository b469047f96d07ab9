"""Train task that adapts the organ model to the labelled volumes; the evidence decides what serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baps.errors import InputError
from baps.evaluation.cases import Case, label_versions_by_patient
from baps.fseft.choices import MAX_EPOCHS, METHOD_NAMES
from baps.server.train.base import ALL_LABELS, SiteTrainer
from baps.server.train.stats import Stats
from baps.utils.throttle import wait_for_idle

if TYPE_CHECKING:
    from baps.fseft.adaptation import OrganSettings
    from baps.fseft.predictor import OrganSegmenter

logger = logging.getLogger(__name__)

_STEPS = 1000
"""Steps of each organ's training that are reported to the viewers. The number of epochs depends on the patients."""


class OrgansTrainer(SiteTrainer["OrganSettings"]):
    """Trains one adapter for each label that has volumes.

    Args:
        segmenter: Loads the organ model, with the store of its adapters, when training starts.
        labels: Names and values of the site.
        lock_file: Lock file of inference.
        folder: Folder of the store of organ adapters.
        patients: CSV file of image and patient, or None.
        serve_trials: Whether adapters on trial serve.
    """

    def __init__(
        self,
        segmenter: Callable[[], OrganSegmenter],
        labels: dict[str, int],
        lock_file: Path,
        folder: Path,
        patients: Path | None,
        serve_trials: bool = True,
    ) -> None:
        description = "Adapts the organ model, which needs no click, to the saved labels of this site"
        super().__init__(
            description, labels, patients, folder, ("method", "decoder", "epochs", "learning_rate", "seed")
        )
        self._segmenter, self._lock_file, self._serve_trials = segmenter, lock_file, serve_trials

    def config(self) -> dict[str, Any]:
        """Return the options for the viewers, with their choices or defaults."""
        return {
            "label": [ALL_LABELS, *self._labels],
            "method": list(METHOD_NAMES),
            "decoder": False,
            "epochs": MAX_EPOCHS,
            "learning_rate": 0.0,
            "seed": 0,
        }

    def _defaults(self) -> OrganSettings:
        from baps.fseft.adaptation import OrganSettings

        return OrganSettings()

    def _check_settings(self, settings: OrganSettings) -> None:
        from baps.fseft.adapters import unsupported_reason

        if reason := unsupported_reason(settings.method, self._segmenter().model.network):
            raise InputError(reason)

    def _train(self, cases: dict[str, list[Case]], settings: OrganSettings, stats: Stats) -> None:
        from baps.fseft.publishing import adapt_and_publish_organ
        from baps.fseft.volumes import load_volumes

        segmenter, wait = self._segmenter(), wait_for_idle(self._lock_file)
        for number, (label, label_cases) in enumerate(cases.items()):
            # Only the volumes of one label are in memory at a time.
            volumes, skipped = load_volumes(label_cases, segmenter.model)
            stats.add_skipped({f"{label}, {name}": reason for name, reason in skipped.items()})
            if not volumes:
                continue

            def report(epoch: int, epochs: int, dice: float, number: int = number, label: str = label) -> None:
                step = _STEPS * number + _STEPS * epoch // epochs
                stats.report(label, step, _STEPS * len(cases), dice)

            logger.info("Adapting the organ model to %s from labels of %d patients", label, len(volumes))
            versions = label_versions_by_patient(label_cases)
            record = adapt_and_publish_organ(
                segmenter, label, volumes, settings, report, wait, self._serve_trials, versions
            )
            # Most fits stop before their last epoch.
            stats.values.update(epoch=_STEPS * (number + 1), total_epochs=_STEPS * len(cases))
            stats.add(label, record)
        if not stats.values["adapters"]:
            raise InputError(f"None of the saved labels can be used. {next(iter(stats.values['skipped'].values()))}")
