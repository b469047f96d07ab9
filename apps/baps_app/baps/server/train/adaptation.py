"""Train task that adapts the black box to the saved labels; the evidence decides what serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.evaluation.cases import Case, label_versions_by_patient, load_cases
from baps.evaluation.slices import AnySlice, SlicesByPatient
from baps.prompts.simulated import PROMPTS
from baps.registry.store import SHARED, AdapterStore
from baps.server.train.base import ALL_LABELS, SiteTrainer
from baps.server.train.stats import Stats
from baps.training.adapt import ProgressReport
from baps.training.budget import check_max_images
from baps.training.publishing import adapt_and_publish
from baps.training.settings import HEADS, OPTIMISERS, VISUAL_PROMPTS, ZOOMS, AdaptationSettings
from baps.utils.throttle import wait_for_idle

logger = logging.getLogger(__name__)

_OPTIONS = tuple(f.name for f in fields(AdaptationSettings) if not f.name.startswith("encoder"))
"""Settings that a request may set."""


class AdaptationTrainer(SiteTrainer[AdaptationSettings]):
    """Trains one adapter for each label that has volumes, and a shared one.

    Args:
        black_box: Loads the model when training starts.
        labels: Names and values of the site.
        store: Store of the adapters.
        patients: CSV file of image and patient, or None.
        defaults: Settings of a request without options. Only the operator can choose the encoder, because its source is
            a path on this machine.
        serve_trials: Whether adapters on trial serve.
    """

    def __init__(
        self,
        black_box: Callable[[], BlackBox],
        labels: dict[str, int],
        store: AdapterStore,
        patients: Path | None,
        defaults: AdaptationSettings,
        serve_trials: bool = True,
    ) -> None:
        description = "Adapts the model to the saved labels of this site, without its weights or gradients"
        super().__init__(description, labels, patients, store.root, _OPTIONS)
        self._black_box, self._store, self._site_defaults = black_box, store, defaults
        self._serve_trials = serve_trials

    def config(self) -> dict[str, Any]:
        """Return the options for the viewers, with their choices or defaults."""
        return {
            "label": [ALL_LABELS, *self._labels],
            "optimiser": list(OPTIMISERS),
            "zoom": list(ZOOMS),
            "head": list(HEADS),
            "visual_prompt": list(VISUAL_PROMPTS),
            "prompt": list(PROMPTS),
            "max_images": self._site_defaults.max_images,
            "seed": self._site_defaults.seed,
        }

    def _defaults(self) -> AdaptationSettings:
        return self._site_defaults

    def _check_settings(self, settings: AdaptationSettings) -> None:
        capabilities = self._black_box().capabilities
        if not (capabilities.boxes if settings.prompt == "box" else capabilities.clicks):
            raise InputError(
                f"{capabilities.name} does not understand the prompt {settings.prompt!r}. Choose the other one."
            )

    def _check_cases(self, cases: dict[str, list[Case]], settings: AdaptationSettings) -> None:
        capabilities = self._black_box().capabilities
        jobs = dict(cases)
        if len(jobs) > 1:
            jobs[SHARED] = [case for label_cases in cases.values() for case in label_cases]
        for label, label_cases in jobs.items():
            arms = 3 if self._store.served(label, *capabilities.identity) else 2
            check_max_images(label_cases, settings, arms, capabilities.resends)

    def _train(self, cases: dict[str, list[Case]], settings: AdaptationSettings, stats: Stats) -> None:
        black_box = self._black_box()
        black_box.wait = wait_for_idle(self._store.inference_lock_file)
        image_size = black_box.capabilities.input_size
        jobs, skipped = _load_jobs(cases, image_size, settings.slices_per_volume, self._store.root)
        stats.add_skipped(skipped)
        for number, (label, slices) in enumerate(jobs):
            name = label or "shared"

            def report(now: ProgressReport, number: int = number, name: str = name) -> None:
                epoch, epochs = number * now.steps + now.step, len(jobs) * now.steps
                stats.report(name, epoch, epochs, now.dice, black_box_images=now.images)

            logger.info("Adapting to %s from labels of %d patients", label or "all labels", len(slices))
            # If the site has one label, its adapter is also used for clicks without a label.
            names = (label, SHARED) if len(self._labels) == 1 else (label,)
            versions = label_versions_by_patient(cases.get(label, ()))
            outcome = adapt_and_publish(
                self._store, names, black_box, slices, settings, report, self._serve_trials, versions
            )
            stats.add(name, outcome)


def _load_jobs(
    cases: dict[str, list[Case]], image_size: int, max_slices: int, folder: Path
) -> tuple[list[tuple[str, SlicesByPatient]], dict[str, str]]:
    """Load the slices of each adapter to train: one per label and, if there are several labels, a shared one.

    Args:
        cases: Cases by label.
        image_size: Side of the black box's input, in pixels.
        max_slices: Maximum number of slices of a volume.
        folder: Folder for slices that do not fit into memory.

    Returns:
        Label and slices of each adapter, and the reasons by label and image for the volumes that were skipped.

    Raises:
        InputError: If no volume can be used.
    """
    jobs: list[tuple[str, SlicesByPatient]] = []
    skipped: dict[str, str] = {}
    shared: dict[str, list[AnySlice]] = {}
    for label, label_cases in cases.items():
        slices, reasons = load_cases(label_cases, image_size, max_slices, folder)
        skipped.update({f"{label}, {name}": reason for name, reason in reasons.items()})
        if slices:
            jobs.append((label, slices))
        for patient, patient_slices in slices.items():
            shared.setdefault(patient, []).extend(patient_slices)
    if not jobs:
        raise InputError(f"None of the saved labels can be used. {next(iter(skipped.values()))}")
    if len(jobs) > 1:
        jobs.append((SHARED, shared))
    return jobs, skipped
