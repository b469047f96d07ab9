"""Adapt an organ model: from a few labelled volumes to a candidate adapter that was compared on held-out patients."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baps.blackbox.local import convert_out_of_memory
from baps.errors import InputError
from baps.evaluation.comparison import PairedComparison, describe_training
from baps.evaluation.patient_scores import PatientScores
from baps.evaluation.splits import patient_hash, split_patients
from baps.fseft.adapter_file import adapter_record
from baps.fseft.adapters import DECODER_RATE, FewShotAdapter, build_adapter, get_method, unsupported_reason
from baps.fseft.choices import MAX_EPOCHS, METHOD_NAMES, MIN_DICE
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.fitting import Checkpoint, Example, FitResult, FitSettings, fit
from baps.fseft.folds import train_folds
from baps.fseft.inference import segment
from baps.fseft.models import OrganModel
from baps.fseft.predictor import unadapted
from baps.fseft.volumes import LabelledVolume, VolumesByPatient
from baps.training.plan import AdaptationPlan, ServedAdapter

_STEPS_PER_VOLUME = 4
"""Steps per volume and epoch where single voxels are drawn instead of cubes."""

_CUBES, _CPU_CUBES = (96, 6), (64, 2)
"""Side and number of the cubes of a step: as published, and on a CPU."""

_METHOD_VERSION = 6
"""Increase it whenever the same data, settings and seeds give another result than before."""


@dataclass(frozen=True)
class OrganSettings:
    """Everything that a few-shot adaptation depends on besides the data and the model.

    Attributes:
        method: one of ``METHODS``.
        decoder: whether the decoder is trained too, in addition to a method that changes the encoder.
        learning_rate: initial learning rate; 0 for the method's own.
        epochs: maximum number of epochs.
        crop: side of the training cubes, voxels; None for 96, as published, or 64 on a CPU, see ``for_device``.
        crops: number of cubes per step, half of them around the organ; None for 6, as published, or 2 on a CPU. An
            epoch has one step per volume; four if single voxels are drawn instead.
        seed: seed of everything random.

    Raises:
        InputError: if a value is unknown or out of range.
    """

    method: str = METHOD_NAMES[0]
    decoder: bool = False
    learning_rate: float = 0.0
    epochs: int = MAX_EPOCHS
    crop: int | None = None
    crops: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not get_method(self.method).tunes_encoder and self.decoder:
            raise InputError(f"The method {self.method} cannot train the decoder in addition. Omit the decoder.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 on, below 2^63, not {self.seed}.")
        self.fit_settings()

    def for_device(self, device: torch.device) -> OrganSettings:
        """Fill in the cubes that are not set.

        A step on six cubes of 96 voxels through the bundled model takes 39 s on one core, eleven times as long as one
        on two cubes of 64: five patients would take two days.

        Args:
            device: the device of the model.

        Returns:
            The settings, with cubes.
        """
        crop, crops = self._cubes(_CPU_CUBES if device.type == "cpu" else _CUBES)
        return replace(self, crop=crop, crops=crops)

    def fit_settings(self) -> FitSettings:
        """Return the settings of the training loop.

        Returns:
            The settings, with the published learning rate and cubes unless there are others.
        """
        method, (crop, crops) = get_method(self.method), self._cubes(_CUBES)
        return FitSettings(
            self.learning_rate or (DECODER_RATE if self.decoder else method.rate),
            self.epochs,
            crop,
            crops,
            method.points,
            steps=_STEPS_PER_VOLUME if method.points else 1,
            seed=self.seed,
        )

    def _cubes(self, default: tuple[int, int]) -> tuple[int, int]:
        """Return side and number of the cubes, those of the default where they are not set."""
        return default[0] if self.crop is None else self.crop, default[1] if self.crops is None else self.crops


@dataclass(frozen=True)
class OrganAdaptation:
    """The result of an adaptation.

    Attributes:
        adapter: the candidate.
        comparison: comparison with the unadapted model, or None if there is only one patient.
        scores: scores of every patient that judged; empty if there is only one patient.
        record: everything needed to audit it; patients appear as hashes.
    """

    adapter: FewShotAdapter
    comparison: PairedComparison | None
    scores: PatientScores
    record: dict[str, Any]

    def sentence(self) -> str:
        """Describe what the training measured.

        Returns:
            The comparison, or that there was only one patient.
        """
        return describe_training(self.comparison)


OrganProgress = Callable[[int, int, float], None]
"""Called with the epochs done and in total, over all fits, and the last soft Dice."""


def plan_organ_adaptation(
    model: OrganModel,
    organ: str,
    volumes: VolumesByPatient,
    settings: OrganSettings,
) -> AdaptationPlan:
    """Split the patients, and record what the result will depend on.

    Args:
        model: the organ model.
        organ: one of its classes, or a new one.
        volumes: labelled volumes of each patient.
        settings: the settings of the adaptation.

    Returns:
        The plan, to be given to ``adapt_organ``.

    Raises:
        InputError: if there is nothing to train on, or the method does not apply to the model.
    """
    if not volumes:
        raise InputError(f"There are no labels of {organ} to train on. Segment a volume, save it, and train again.")
    if reason := unsupported_reason(settings.method, model.network):
        raise InputError(reason)
    split = split_patients(volumes)
    content = hashlib.sha256()
    for patient in sorted(volumes):
        content.update(patient_hash(patient).encode())
        for volume in volumes[patient]:
            for part in (volume.image, volume.target, volume.labelled):
                content.update(b"none" if part is None else part.numpy().tobytes())
    facts = {
        "method": _METHOD_VERSION,
        "black_box": model.to_dict(),
        "organ": organ,
        "settings": asdict(settings.for_device(model.device)),
        "training_patients": [patient_hash(p) for p in split.patients],
        "volumes": sum(map(len, volumes.values())),
        "volumes_sha256": content.hexdigest(),
    }
    return AdaptationPlan(split, facts)


@convert_out_of_memory
def adapt_organ(
    model: OrganModel,
    organ: str,
    volumes: VolumesByPatient,
    settings: OrganSettings,
    plan: AdaptationPlan | None = None,
    feature_cache: FeatureCache | None = None,
    unlabelled: Sequence[torch.Tensor] = (),
    served: ServedAdapter[FewShotAdapter] | None = None,
    progress: OrganProgress = lambda epoch, epochs, dice: None,
    wait: Callable[[], None] = lambda: None,
    checkpoint_folder: Path | None = None,
) -> OrganAdaptation:
    """Adapt an organ model, and evaluate the procedure on every patient by cross-fitting.

    Each patient, or a quarter of them, is left out in turn, and the candidate is then trained on all. With one patient
    there is no evaluation. Dice is computed over all annotated slices, at the voxels
    of the model. The candidate is compared with the model's own answer; for an organ that the model does not know, that
    answer is empty, and the candidate must reach a Dice of 0.5.

    Args:
        model: the organ model; it is not changed.
        organ: one of its classes, or a new one.
        volumes: labelled volumes of each patient.
        settings: the settings of the adaptation.
        plan: the plan of these volumes and settings, or None to make one.
        feature_cache: cache of the model's features, or None.
        unlabelled: images (1, H, W, D) of unlabelled volumes, in which the organ should be about as large; only for a
            method that reads the frozen model's output.
        served: the adapter that is served now, or None; the candidate is compared with it on patients that are new to
            both.
        progress: called after every epoch.
        wait: called before every step, see ``fit``.
        checkpoint_folder: folder that keeps an unfinished run, which an interrupted adaptation continues from, or None.

    Returns:
        The candidate, its comparison with the unadapted model, its scores, and its record.

    Raises:
        InputError: if there is nothing to train on, or the method does not apply to the model, or does not support
            unlabelled volumes.
        BapsError: if the folder cannot be written to, or the GPU is out of memory.
    """
    start = time.monotonic()
    settings = settings.for_device(model.device)
    plan = plan or plan_organ_adaptation(model, organ, volumes, settings)
    feature_cache = feature_cache or FeatureCache(None)
    split, runs = plan.split, len(plan.split.groups) + 1
    run_facts = f"{plan.fingerprint} {[_digest(image) for image in unlabelled]}"

    def train_run(number: int, patients: Sequence[str]) -> tuple[FewShotAdapter, FitResult]:
        adapter = build_adapter(settings.method, model.network, organ, decoder=settings.decoder, seed=settings.seed).to(
            model.device
        )
        if unlabelled and adapter.input_kind == "images":
            raise InputError(
                f"The method {settings.method} changes the model itself, which sees parts of a volume, so that "
                "sizes of whole organs cannot be constrained. Omit the unlabelled volumes, or train spatial or "
                "landmarks."
            )

        def get_inputs(image: torch.Tensor) -> torch.Tensor:
            return feature_cache.get(model, adapter.input_kind, image)

        examples = [Example(get_inputs(v.image), v.target, v.labelled) for p in patients for v in volumes[p]]
        checkpoint = Checkpoint(checkpoint_folder / f"run-{number + 1}.pt", run_facts) if checkpoint_folder else None

        def report(epoch: int, dice: float) -> None:
            progress(number * settings.epochs + epoch, runs * settings.epochs, dice)

        unlabelled_inputs = [get_inputs(image) for image in unlabelled]
        return adapter, fit(adapter, examples, settings.fit_settings(), unlabelled_inputs, report, wait, checkpoint)

    def score_patient(patient: str, adapter: FewShotAdapter | None) -> NDArray[np.float64]:
        scores = []
        for volume in volumes[patient]:
            wait()
            scores.append([volume.dice(segment_volume(model, organ, adapter, feature_cache, volume))])
        return np.array(scores)

    (adapter, result), scores = train_folds(split, train_run, score_patient, served)
    min_dice = MIN_DICE if model.network.index(organ) is None else 0.0
    comparison, against_served = scores.comparison(), scores.comparison_with_served()
    by_patient = scores.by_patient(min_dice)
    trained_on = {*map(patient_hash, split.patients), *(served.trained_on if served else ())}
    record = {
        "adapter": adapter_record(settings.method, organ, settings.decoder, settings.seed),
        **plan.facts,
        "fingerprint": plan.fingerprint,
        "seen_patients": sorted(trained_on),
        "check": split.evaluation,
        "verdict": comparison.to_dict() if comparison else None,
        "against_served": against_served.to_dict() if against_served else None,
        "scores": by_patient.to_dict(),
        "curve": [[epoch, round(dice, 4)] for epoch, dice in enumerate(result.dices, 1)],
        "penalties": [round(penalty, 4) for penalty in result.penalties],
        "parameters": sum(value.numel() for value in adapter.trainable_parameters().values()),
        "queries": len(unlabelled),
        "seconds": round(time.monotonic() - start, 1),
    }
    return OrganAdaptation(adapter, comparison, by_patient, record)


def segment_volume(
    model: OrganModel,
    organ: str,
    adapter: FewShotAdapter | None,
    feature_cache: FeatureCache,
    volume: LabelledVolume,
) -> torch.Tensor:
    """Segment a labelled volume.

    Args:
        model: the organ model.
        organ: the organ.
        adapter: an adapter, or None for the unadapted model.
        feature_cache: cache of the model's features.
        volume: the volume.

    Returns:
        The mask, (1, H, W, D) bool; empty if the model does not know the organ and there is no adapter.
    """
    adapter = adapter or unadapted(model, organ)
    if adapter is None:
        return torch.zeros_like(volume.target)
    return segment(adapter, feature_cache.get(model, adapter.input_kind, volume.image), model.side) > 0.5


def _digest(image: torch.Tensor) -> str:
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16]
