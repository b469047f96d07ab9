"""The whole of a few-shot adaptation: labelled volumes in, a checked candidate out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baps.blackbox.local import convert_out_of_memory
from baps.errors import InputError
from baps.evaluation.acceptance import Acceptance, check
from baps.evaluation.splits import most_few_of, patient_hash, split_patients
from baps.fseft.adapter_file import adapter_record
from baps.fseft.adapters import FewShotAdapter, build_adapter, method_named, why_not
from baps.fseft.choices import METHOD_NAMES, MOST_EPOCHS
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.fitting import Checkpoint, Example, FitSettings, Fitted, fit
from baps.fseft.inference import segment
from baps.fseft.models import OrganModel
from baps.fseft.predictor import unadapted
from baps.fseft.volumes import LabelledVolume, VolumesByPatient
from baps.training.adapt import Plan

_LEAST = 0.5
"""Dice that an adapter must reach where the model answers with nothing: any mask at all is better than that."""

_DRAWS = 4
"""Of single voxels, instead of one cube."""

_VERSION = 3
"""To be raised whenever the same data, settings and seeds come to another result than before."""


@dataclass(frozen=True)
class OrganSettings:
    """Everything that a few-shot adaptation depends on beside the data and the model.

    Attributes:
        method: one of ``METHODS``.
        decoder: whether the decoder is trained too, beside a method that changes the encoder.
        learning_rate: Learning rate to begin with; 0 for the method's own.
        epochs: at the most.
        crop, crops: sides of the cubes that are trained on, voxels, and how many a step has, half of them around the
            organ. There is a step for each volume an epoch; four where single voxels are drawn instead.
        seed: of everything random.

    Raises:
        InputError: on a value that is unknown or out of range.
    """

    method: str = METHOD_NAMES[0]
    decoder: bool = False
    learning_rate: float = 0.0
    epochs: int = MOST_EPOCHS
    crop: int = 64
    crops: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not method_named(self.method).of_encoder and self.decoder:
            raise InputError(f"The method {self.method} does not take the decoder beside it. Leave it away.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 on, below 2^63, not {self.seed}.")
        self.fit_settings()

    def fit_settings(self) -> FitSettings:
        """Of the training loop."""
        method = method_named(self.method)
        return FitSettings(
            self.learning_rate or method.rate,
            self.epochs,
            self.crop,
            self.crops,
            method.points,
            steps=_DRAWS if method.points else 1,
            seed=self.seed,
        )


@dataclass(frozen=True)
class ServedOrgan:
    """The adapter that is served while another one is trained.

    Attributes:
        adapter: it.
        record: of its training.
    """

    adapter: FewShotAdapter
    record: Mapping[str, Any]

    @property
    def trained_on(self) -> frozenset[str]:
        """Hashes of the patients that it or those before it were trained on."""
        return frozenset(self.record["seen_patients"])


@dataclass(frozen=True)
class OrganAdaptation:
    """What came out.

    Attributes:
        adapter: the candidate.
        check: whether it is to be served.
        record: everything needed to audit it; patients appear as hashes.
    """

    adapter: FewShotAdapter
    check: Acceptance
    record: dict[str, Any]


Report = Callable[[int, int, float], None]
"""Told epochs done and in all, of all fits together, and the last soft Dice."""


def plan_organ_adaptation(
    model: OrganModel,
    organ: str,
    volumes: VolumesByPatient,
    settings: OrganSettings,
    split_memory: Path | None = None,
    served: ServedOrgan | None = None,
) -> Plan:
    """Split the patients, and write down what the result will depend on.

    Args:
        model, organ, volumes, settings, served: see ``adapt_organ``.
        split_memory: file that keeps who is held back.

    Raises:
        InputError: if there is nothing to train on, or the method does not apply to the model.
    """
    if not volumes:
        raise InputError(f"There are no labels of {organ} to train on. Segment a volume, save it, and train again.")
    if reason := why_not(settings.method, model.network):
        raise InputError(reason)
    most_few = most_few_of(volumes)
    few = len(volumes) <= most_few
    # Of few patients everybody judges, also whom the served adapter knows: no fit begins from it. So nobody has a role
    # to keep, and for ``baps``, to which as many may not be few, none is taken.
    known = frozenset[str]() if few or not served else served.trained_on
    split = split_patients(volumes, None if few else split_memory, known, most_few)
    content = hashlib.sha256()
    for patient in sorted(volumes):
        content.update(patient_hash(patient).encode())
        for volume in volumes[patient]:
            for part in (volume.image, volume.truth, volume.labelled):
                content.update(b"none" if part is None else part.numpy().tobytes())
    facts = {
        "method": _VERSION,
        "black_box": model.record(),
        "organ": organ,
        "settings": asdict(settings),
        "training_patients": [patient_hash(p) for p in split.training],
        "held_back_patients": [patient_hash(p) for p in split.held_back],
        "volumes": sum(map(len, volumes.values())),
        "volumes_sha256": content.hexdigest(),
    }
    return Plan(split, facts)


@convert_out_of_memory
def adapt_organ(
    model: OrganModel,
    organ: str,
    volumes: VolumesByPatient,
    settings: OrganSettings,
    plan: Plan | None = None,
    readings: FeatureCache | None = None,
    queries: Sequence[torch.Tensor] = (),
    served: ServedOrgan | None = None,
    told: Report = lambda epoch, epochs, dice: None,
    pause: Callable[[], None] = lambda: None,
    unfinished: Path | None = None,
) -> OrganAdaptation:
    """Adapt an organ model and check the candidate on patients that it was not trained on.

    With five patients or more, some are held back for the check. With two to four (of one volume each, two to twelve),
    it leaves each, or a quarter of them, out in turn, and the candidate is then trained on all of them. With one there
    is no check. Dice is of all slices that were labelled, at the voxels of the model. Compared with the model's own
    answer; that is empty for an organ that it does not know, of which half must be found.

    Args:
        model: left as it is.
        organ: one of its classes, or a new one.
        volumes: labelled volumes of each patient.
        settings: see there.
        plan: of these volumes and settings, or None to make one.
        readings: where the model's features are kept.
        queries: images (1, H, W, D) of unlabelled volumes, whose organ is to be about as large; for a method that reads
            what the frozen model says.
        served: what is served now; the candidate is compared with it on patients that are new to both.
        told: of the progress.
        pause: called before every step, see ``fit``.
        unfinished: folder where a run is kept until it is whole, and goes on from if it was broken off.

    Raises:
        InputError: if there is nothing to train on, or the method does not apply to the model, or not to queries.
        BapsError: if the folder cannot be written to, or the GPU has not enough memory.
    """
    begun = time.monotonic()
    plan = plan or plan_organ_adaptation(model, organ, volumes, settings, served=served)
    readings = readings or FeatureCache(None)
    split, folds = plan.split, plan.split.folds
    checked_is_kept = bool(split.held_back)
    runs = len(folds) + (not checked_is_kept)
    about = f"{plan.fingerprint} {[_digest(image) for image in queries]}"

    def run(patients: Sequence[str], number: int) -> tuple[FewShotAdapter, Fitted]:
        adapter = build_adapter(settings.method, model.network, organ, decoder=settings.decoder, seed=settings.seed).to(
            model.device
        )
        if queries and adapter.reads == "images":
            raise InputError(
                f"The method {settings.method} changes the model itself, which sees parts of a volume, so that "
                "sizes of whole organs cannot be held. Leave the queries away, or train spatial or landmarks."
            )

        def reading(image: torch.Tensor) -> torch.Tensor:
            return readings.of(model, adapter.reads, image)

        examples = [Example(reading(v.image), v.truth, v.labelled) for p in patients for v in volumes[p]]
        checkpoint = Checkpoint(unfinished / f"run-{number + 1}.pt", about) if unfinished else None

        def report(epoch: int, dice: float) -> None:
            told(number * settings.epochs + epoch, runs * settings.epochs, dice)

        wanted = [reading(image) for image in queries]
        return adapter, fit(adapter, examples, settings.fit_settings(), wanted, report, pause, checkpoint)

    def score(adapter: FewShotAdapter | None, patient: str) -> NDArray[np.float64]:
        masks = (_mask(model, organ, adapter, readings, volume, pause) for volume in volumes[patient])
        return np.array([[volume.dice(mask)] for volume, mask in zip(volumes[patient], masks, strict=True)])

    before: dict[str, NDArray[np.float64]] = {}
    after: dict[str, NDArray[np.float64]] = {}
    now: dict[str, NDArray[np.float64]] = {}
    trained: tuple[FewShotAdapter, Fitted] | None = None
    for number, (training, judging) in enumerate(folds):
        trained = run(training, number)
        for patient in judging:
            before[patient], after[patient] = score(None, patient), score(trained[0], patient)
            if served and patient_hash(patient) not in served.trained_on:
                now[patient] = score(served.adapter, patient)
    if trained is None or not checked_is_kept:
        trained = run(split.training, runs - 1)
    least = _LEAST if model.network.index(organ) is None else 0.0
    checked = check(before, after, now, served.record["verdict"] if served else None, least, "volume")
    adapter, fitted = trained
    known = {*map(patient_hash, split.training), *(served.trained_on if served else ())}
    record = {
        "adapter": adapter_record(settings.method, organ, settings.decoder, settings.seed),
        **plan.facts,
        "fingerprint": plan.fingerprint,
        "seen_patients": sorted(known),
        "check": "held back" if split.held_back else "leave some out" if folds else "none, one patient only",
        **checked.record(),
        "curve": [[epoch, round(dice, 4)] for epoch, dice in enumerate(fitted.dices, 1)],
        "penalties": [round(penalty, 4) for penalty in fitted.penalties],
        "parameters": sum(value.numel() for value in adapter.trained().values()),
        "queries": len(queries),
        "seconds": round(time.monotonic() - begun, 1),
    }
    return OrganAdaptation(adapter, checked, record)


def _mask(
    model: OrganModel,
    organ: str,
    adapter: FewShotAdapter | None,
    readings: FeatureCache,
    volume: LabelledVolume,
    pause: Callable[[], None],
) -> torch.Tensor:
    """What an adapter, or the model as it is, answers for a volume: (1, H, W, D) bool."""
    pause()
    adapter = adapter or unadapted(model, organ)
    if adapter is None:
        return torch.zeros_like(volume.truth)
    return segment(adapter, readings.of(model, adapter.reads, volume.image), model.side) > 0.5


def _digest(image: torch.Tensor) -> str:
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16]
