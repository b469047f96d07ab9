"""The train task of the organ model: adapt it to the labelled volumes, check, and publish what is better."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.fseft.choices import MAX_EPOCHS, METHOD_NAMES
from baps.registry.store import AdapterStore
from baps.server.train.base import ALL_LABELS, SiteTrainer
from baps.server.train.stats import Stats
from baps.utils.throttle import wait_for_idle

if TYPE_CHECKING:
    from baps.fseft.adaptation import OrganSettings
    from baps.fseft.predictor import OrganSegmenter

logger = logging.getLogger(__name__)

_STEPS = 1000
"""Of each organ's training, as the viewers are told; how many epochs there are differs with the number of patients."""


class OrgansTrainer(SiteTrainer["OrganSettings"]):
    """Trains one adapter for each label that has volumes.

    Args:
        segmenter: loads the organ model when training starts; tells where candidates go.
        labels, patients: see ``SiteTrainer``.
        site: the store of the other method: the same patients are held back for both, and it has the clicks' lock.
        folder: of this method's store.
    """

    def __init__(
        self,
        segmenter: Callable[[], OrganSegmenter],
        labels: dict[str, int],
        site: AdapterStore,
        folder: Path,
        patients: Path | None,
    ) -> None:
        description = "Adapts the organ model, which needs no click, to the saved labels of this site"
        super().__init__(
            description, labels, patients, folder, ("method", "decoder", "epochs", "learning_rate", "seed")
        )
        self._segmenter, self._site = segmenter, site

    def config(self) -> dict[str, Any]:
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

        segmenter, pause = self._segmenter(), wait_for_idle(self._site.clicks)
        for number, (label, found) in enumerate(cases.items()):
            volumes, skipped = load_volumes(found, segmenter.model)  # Those of one label are in memory at a time.
            stats.leave_out({f"{label}, {name}": reason for name, reason in skipped.items()})
            if not volumes:
                continue

            def told(epoch: int, epochs: int, dice: float, number: int = number, label: str = label) -> None:
                step = _STEPS * number + _STEPS * epoch // epochs
                stats.report(label, step, _STEPS * len(cases), dice)

            logger.info("Adapting the organ model to %s from labels of %d patients", label, len(volumes))
            memory = self._site.split_memory
            said = adapt_and_publish_organ(segmenter, label, volumes, settings, memory, told, pause)
            # Few fits need all their epochs.
            stats.values.update(epoch=_STEPS * (number + 1), total_epochs=_STEPS * len(cases))
            stats.add(label, said)
        if not stats.values["adapters"]:
            raise InputError(f"None of the saved labels can be used. {next(iter(stats.values['skipped'].values()))}")
