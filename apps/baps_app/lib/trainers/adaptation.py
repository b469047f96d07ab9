"""The train task: adapt the black box to the saved labels, check, and publish what is better."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from baps.adaptation.adapt import ProgressReport
from baps.adaptation.cases import Case, load_cases
from baps.adaptation.folders import read_patient_table
from baps.adaptation.publishing import adapt_and_publish
from baps.adaptation.settings import HEADS, OPTIMISERS, ZOOMS, AdaptationSettings
from baps.adaptation.slices import AnySlice, SlicesByPatient
from baps.blackbox import BlackBox
from baps.errors import BapsError, InputError
from baps.simulated_prompts import PROMPTS
from baps.store import SHARED, AdapterStore
from baps.visual_prompt import CONDITIONS
from baps.yielding import barrier, step_back
from lib.labelled import labelled_cases
from lib.trainers.stats import read_stats, write_stats

logger = logging.getLogger(__name__)

ALL_LABELS = "all"

_OPTIONS = tuple(f.name for f in fields(AdaptationSettings) if not f.name.startswith("encoder"))
"""What a request may choose."""

_HOST_OPTIONS = frozenset(
    ("model", "client_id", "name", "device", "gpus", "multi_gpu", "local_rank", "logging", "pretrained", "max_epochs",
     "dataset", "train_batch_size", "val_batch_size", "early_stop_patience", "val_split")
)  # fmt: skip
"""What MONAI Label or a viewer's own settings add to any training request; it means nothing here."""


class AdaptationTrainer(TrainTask):
    """Trains one adapter for each label that has volumes, and a shared one; runs in a process of its own.

    Args:
        black_box: loads the model when training starts.
        labels: of the site.
        store: where candidates go.
        patients: CSV file of image and patient, or None.
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
        super().__init__("Adapts the model to the saved labels of this site, without its weights or gradients")
        self._black_box, self._labels, self._store = black_box, labels, store
        self._patients, self._defaults = patients, defaults

    @property
    def _stats_file(self) -> Path:
        return self._store.root / "train_stats.json"

    def config(self) -> dict[str, Any]:
        defaults = self._defaults
        return {
            "label": [ALL_LABELS, *self._labels],
            "optimiser": list(OPTIMISERS),
            "zoom": list(ZOOMS),
            "head": list(HEADS),
            "condition": list(CONDITIONS),
            "prompt": list(PROMPTS),
            "max_images": defaults.max_images,
            "seed": defaults.seed,
        }

    def stats(self) -> dict[str, Any]:
        return read_stats(self._stats_file)

    def read_options(self, request: dict[str, Any]) -> dict[str, Any]:
        """The options of a request that are ours.

        Raises:
            InputError: on one that is neither ours nor the host's; the message lists ours.
        """
        known = {"label", *_OPTIONS}
        unknown = sorted(set(request) - known - _HOST_OPTIONS)
        if unknown:
            raise InputError(f"Unknown training options: {', '.join(unknown)}. Known ones: {', '.join(sorted(known))}.")
        return {name: value for name, value in request.items() if name in known}

    def prepare(self, request: dict[str, Any], datastore: Datastore) -> None:
        """Refuse what cannot be trained, before a process is started for it, and forget the last run's stats.

        Raises:
            InputError: as ``read_request``.
        """
        self.read_request(request, datastore)
        write_stats(self._stats_file, _fresh_stats())

    def read_request(
        self, request: dict[str, Any], datastore: Datastore
    ) -> tuple[dict[str, list[Case]], AdaptationSettings, dict[str, str]]:
        """What a request asks for: cases by label, settings, and the images that are left out, with reasons.

        Raises:
            InputError: on a value that cannot be used, an unknown label, or if there is nothing to train on.
        """
        settings = _settings(request, self._defaults)
        chosen = str(_first(request.get("label")) or ALL_LABELS)
        if chosen != ALL_LABELS and chosen not in self._labels:
            raise InputError(f"There is no label {chosen!r}. Known ones: {', '.join(self._labels)}.")
        by_label, left_out = labelled_cases(datastore, self._labels, read_patient_table(self._patients))
        cases = {name: found for name, found in by_label.items() if found and chosen in (ALL_LABELS, name)}
        if not cases:
            raise InputError(
                f"There are no saved labels of {'any organ' if chosen == ALL_LABELS else chosen} to train on. Segment "
                f"a volume, submit the label, and train again. {next(iter(left_out.values()), '')}".rstrip()
            )
        return cases, settings, left_out

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        step_back()
        begun = time.time()
        stats = _fresh_stats()
        write_stats(self._stats_file, stats)
        try:
            cases, settings, stats["left_out"] = self.read_request(request, datastore)
            black_box = self._black_box()
            black_box.wait = barrier(self._store.clicks)
            side = black_box.capabilities.input_side
            jobs, left_out = _jobs(cases, side, settings.slices_per_volume, self._store.root)
            stats["left_out"].update(left_out)
            for number, (label, found) in enumerate(jobs):

                def report(now: ProgressReport, number: int = number, label: str = label) -> None:
                    stats.update(
                        epoch=number * now.steps + now.step,
                        total_epochs=len(jobs) * now.steps,
                        best_metric=round(max(stats["best_metric"], now.dice), 4),
                        label=label or "shared",
                        black_box_images=now.images,
                    )
                    write_stats(self._stats_file, stats)

                logger.info("Adapting to %s from labels of %d patients", label or "all labels", len(found))
                # The adapter of the only label that a site has also serves clicks without a label.
                names = (label, SHARED) if len(self._labels) == 1 else (label,)
                said = adapt_and_publish(self._store, names, black_box, found, settings, report)
                stats["adapters"][label or "shared"] = said
                logger.info("%s: %s; %s", label or "shared", said["status"], said["reason"])
        except BapsError as error:
            stats["error"] = str(error)
            raise
        except Exception as error:
            stats["error"] = (
                f"The training broke off ({type(error).__name__}: {error}). The log of the server has more."
            )
            raise
        finally:
            stats["total_time"] = f"{time.time() - begun:.0f} s"
            write_stats(self._stats_file, stats)
        return stats


def _jobs(
    cases: dict[str, list[Case]], side: int, most: int, folder: Path
) -> tuple[list[tuple[str, SlicesByPatient]], dict[str, str]]:
    """What to train: an adapter a label and, with several labels, a shared one; and the volumes left out, with reasons.

    Raises:
        InputError: if no volume can be used.
    """
    jobs: list[tuple[str, SlicesByPatient]] = []
    left_out: dict[str, str] = {}
    shared: dict[str, list[AnySlice]] = {}
    for label, found in cases.items():
        slices, refused = load_cases(found, side, most, folder)
        left_out.update({f"{label}, {name}": reason for name, reason in refused.items()})
        if slices:
            jobs.append((label, slices))
        for patient, pieces in slices.items():
            shared.setdefault(patient, []).extend(pieces)
    for reason in left_out.values():
        logger.warning("Left out: %s", reason)
    if not jobs:
        raise InputError(f"None of the saved labels can be used. {next(iter(left_out.values()))}")
    if len(jobs) > 1:
        jobs.append((SHARED, shared))
    return jobs, left_out


def _fresh_stats() -> dict[str, Any]:
    """What the viewers show before the first step; Slicer divides by ``total_epochs``."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"start_time": now, "epoch": 0, "total_epochs": 1, "best_metric": 0.0, "adapters": {}}


def _first(value: Any) -> Any:
    """Slicer sends the list of choices when the user chose none."""
    return value[0] if isinstance(value, list) and value else value


def _settings(request: dict[str, Any], settings: AdaptationSettings) -> AdaptationSettings:
    for name in _OPTIONS:
        value = _first(request.get(name))
        if value in (None, ""):
            continue
        kind = type(getattr(settings, name))
        try:
            settings = replace(settings, **{name: kind(value)})
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"The training option {name} must be of type {kind.__name__}, not {value!r}.") from None
    return settings
