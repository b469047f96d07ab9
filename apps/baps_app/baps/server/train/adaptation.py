"""The train task: adapt the black box to the saved labels, check, and publish what is better."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from baps.adapters.visual_prompt import CONDITIONS
from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.evaluation.cases import Case, load_cases
from baps.evaluation.slices import AnySlice, SlicesByPatient
from baps.prompts.simulated import PROMPTS
from baps.registry.store import SHARED, AdapterStore
from baps.server.train.base import ALL_LABELS, SiteTrainer
from baps.server.train.stats import Stats
from baps.training.adapt import ProgressReport
from baps.training.budget import check_max_images
from baps.training.publishing import adapt_and_publish
from baps.training.settings import HEADS, OPTIMISERS, ZOOMS, AdaptationSettings
from baps.utils.throttle import wait_for_idle

logger = logging.getLogger(__name__)

_OPTIONS = tuple(f.name for f in fields(AdaptationSettings) if not f.name.startswith("encoder"))
"""What a request may choose."""


class AdaptationTrainer(SiteTrainer[AdaptationSettings]):
    """Trains one adapter for each label that has volumes, and a shared one.

    Args:
        black_box: loads the model when training starts.
        labels, patients: see ``SiteTrainer``.
        store: where candidates go.
        defaults: what holds unless a request says otherwise. The encoder is the operator's to choose: its source is a
            path on this machine.
    """

    def __init__(
        self,
        black_box: Callable[[], BlackBox],
        labels: dict[str, int],
        store: AdapterStore,
        patients: Path | None,
        defaults: AdaptationSettings,
    ) -> None:
        description = "Adapts the model to the saved labels of this site, without its weights or gradients"
        super().__init__(description, labels, patients, store.root, _OPTIONS)
        self._black_box, self._store, self._site_defaults = black_box, store, defaults

    def config(self) -> dict[str, Any]:
        return {
            "label": [ALL_LABELS, *self._labels],
            "optimiser": list(OPTIMISERS),
            "zoom": list(ZOOMS),
            "head": list(HEADS),
            "condition": list(CONDITIONS),
            "prompt": list(PROMPTS),
            "max_images": self._site_defaults.max_images,
            "seed": self._site_defaults.seed,
        }

    def _defaults(self) -> AdaptationSettings:
        return self._site_defaults

    def _check_settings(self, settings: AdaptationSettings) -> None:
        able = self._black_box().capabilities
        if not (able.boxes if settings.prompt == "box" else able.clicks):
            raise InputError(f"{able.name} does not understand the prompt {settings.prompt!r}. Choose the other one.")

    def _check_cases(self, cases: dict[str, list[Case]], settings: AdaptationSettings) -> None:
        able = self._black_box().capabilities
        jobs = dict(cases)
        if len(jobs) > 1:
            jobs[SHARED] = [case for found in cases.values() for case in found]
        for label, found in jobs.items():
            arms = 3 if self._store.served(label, *able.identity) else 2
            check_max_images(found, settings, arms, able.resends)

    def _train(self, cases: dict[str, list[Case]], settings: AdaptationSettings, stats: Stats) -> None:
        black_box = self._black_box()
        black_box.wait = wait_for_idle(self._store.clicks)
        side = black_box.capabilities.input_size
        jobs, skipped = _jobs(cases, side, settings.slices_per_volume, self._store.root)
        stats.leave_out(skipped)
        for number, (label, found) in enumerate(jobs):
            name = label or "shared"

            def report(now: ProgressReport, number: int = number, name: str = name) -> None:
                epoch, epochs = number * now.steps + now.step, len(jobs) * now.steps
                stats.report(name, epoch, epochs, now.dice, black_box_images=now.images)

            logger.info("Adapting to %s from labels of %d patients", label or "all labels", len(found))
            # The adapter of the only label that a site has also serves clicks without a label.
            names = (label, SHARED) if len(self._labels) == 1 else (label,)
            stats.add(name, adapt_and_publish(self._store, names, black_box, found, settings, report))


def _jobs(
    cases: dict[str, list[Case]], side: int, most: int, folder: Path
) -> tuple[list[tuple[str, SlicesByPatient]], dict[str, str]]:
    """What to train: an adapter a label and, with several labels, a shared one; and the volumes left out, with reasons.

    Raises:
        InputError: if no volume can be used.
    """
    jobs: list[tuple[str, SlicesByPatient]] = []
    skipped: dict[str, str] = {}
    shared: dict[str, list[AnySlice]] = {}
    for label, found in cases.items():
        slices, refused = load_cases(found, side, most, folder)
        skipped.update({f"{label}, {name}": reason for name, reason in refused.items()})
        if slices:
            jobs.append((label, slices))
        for patient, pieces in slices.items():
            shared.setdefault(patient, []).extend(pieces)
    if not jobs:
        raise InputError(f"None of the saved labels can be used. {next(iter(skipped.values()))}")
    if len(jobs) > 1:
        jobs.append((SHARED, shared))
    return jobs, skipped
