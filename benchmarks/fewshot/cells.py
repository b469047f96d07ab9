"""The experiments and arms that ``benchmarks/fewshot/few_shot.py`` compares, and one run of an arm on an organ."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from baps.evaluation.cases import Case, CaseReader
from baps.fseft.adaptation import OrganSettings
from baps.fseft.adapters import METHODS, FewShotAdapter, InputKind, build_adapter, unsupported_reason
from baps.fseft.evaluation import OrganScores, evaluate_organ
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.fitting import Example, fit
from baps.fseft.models import OrganModel, load_organ_model
from baps.fseft.predictor import unadapted
from baps.fseft.volumes import load_volumes
from baps.io import read_volume
from benchmarks.fewshot.nnunet import NNUNET, NnunetSettings, train_nnunet
from benchmarks.fewshot.nnunet_process import peak_mib
from benchmarks.fewshot.protocol import draw_shots
from benchmarks.fewshot.scores import to_json
from benchmarks.real_data import Domain, cases, sha256_of_set

VERSION, CHANGED_VERSION = 2, 3
"""Increase them whenever the same cell gives another result than before; the second is that of arms that train inside
the model or on test volumes."""

Settings = Mapping[InputKind, OrganSettings]
"""Settings of fits, by the kind of input that an adapter reads."""

FIT: Settings = {
    "features": OrganSettings(epochs=100, crop=32, crops=8),
    "probabilities": OrganSettings(epochs=100, crop=32, crops=8),
    "landmarks": OrganSettings(crop=64, crops=2),  # Single voxels are drawn instead of cubes.
    # Two cubes of 64 voxels in place of six of 96, and 40 steps in place of 200 epochs of as many as there are volumes:
    # as published, a fit would take two hours per volume on one core.
    "images": OrganSettings(epochs=40, crop=64, crops=2),
}
_CACHED_KINDS: tuple[InputKind, ...] = ("features", "probabilities", "landmarks")
"""Inputs of each volume that are computed before anything is measured."""

QUICK_FIT: Settings = {input_kind: replace(settings, epochs=30) for input_kind, settings in FIT.items()}


SEEDS = 3
"""Number of seeds of the arms of an experiment that are not run ``once``."""


@dataclass(frozen=True)
class Arm:
    """A method to compare.

    Attributes:
        method: one of ``METHODS``; "" for the unadapted model; ``nnunet`` for nnU-Net's own training.
        decoder: whether the decoder is trained too.
        queries: transductive inference on the test volumes: a fit for ``each`` of them, as published, or one for
            ``all``.
        annotated_only: whether labels count only on slices on which the organ is marked, as labels that viewers submit
            do in the app (unless ``complete_labels`` is set).
    """

    method: str
    decoder: bool = False
    queries: Literal["", "each", "all"] = ""
    annotated_only: bool = False


ARMS = {
    "unadapted": Arm(""),
    **{name: Arm(name) for name in METHODS},
    "spatial_ti_each": Arm("spatial", queries="each"),
    "spatial_ti_all": Arm("spatial", queries="all"),
    "landmarks_marked": Arm("landmarks", annotated_only=True),
    "lora_decoder": Arm("lora", decoder=True),
    NNUNET: Arm(NNUNET),
}


@dataclass(frozen=True)
class Experiment:
    """Organs of one data set.

    Attributes:
        title: title of the table.
        organs: a domain for each organ.
        shots: numbers of patients to train on.
        arms: names of ``ARMS``.
        once: arms that are run with one seed, after all others.
        rates: learning rates of methods, chosen on the validation patients; the others use their own.
    """

    title: str
    organs: tuple[Domain, ...]
    shots: tuple[int, ...]
    arms: tuple[str, ...]
    once: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)


def _btcv(**values: int) -> tuple[Domain, ...]:
    return tuple(Domain(name.replace("_", " "), "btcv_ct", (value,), 6, 2) for name, value in values.items())


def _chaos(**values: int) -> tuple[Domain, ...]:
    return tuple(Domain(name.replace("_", " "), "chaos_mr_t2", (value,), 3, 1) for name, value in values.items())


EXPERIMENTS = {
    "shift": Experiment(
        "Base organs under domain shift, CHAOS, T2 MR",
        _chaos(liver=1, right_kidney=2, left_kidney=3, spleen=4),
        (1, 3),
        ("unadapted", "linear_probe", "spatial", "landmarks", "landmarks_marked", "output", "lora", "bias", "full"),
        (
            "spatial_pointwise", "spatial_ti_each", "spatial_ti_all", "adaptformer", "compacter", "affine_ln",
            "decoder", "scratch", NNUNET,
        ),
        {
            "spatial": 1e-3, "spatial_pointwise": 1e-3, "lora": 5e-3, "adaptformer": 5e-3, "compacter": 5e-3,
            "affine_ln": 2e-2, "bias": 5e-3,
        },
    ),
    "novel": Experiment(
        "Novel organs, BTCV, CT",
        _btcv(gallbladder=4, oesophagus=5, inferior_vena_cava=9, pancreas=11),
        (1, 3, 5),
        ("linear_probe", "spatial", "landmarks", "landmarks_marked", "output", "full"),
        ("spatial_ti_each", "lora", "lora_decoder", "decoder", "scratch", NNUNET),
        {"spatial": 1e-3, "lora": 5e-3, "decoder": 3e-3, "full": 3e-3, "scratch": 3e-3},
    ),
    "known": Experiment(
        "Base organs, BTCV, CT",
        _btcv(spleen=1, right_kidney=2, left_kidney=3, liver=6, stomach=7, aorta=8),
        (),
        ("unadapted",),
    ),
}  # fmt: skip

_QUICK = {
    "shift": (
        "liver",
        ("unadapted", "linear_probe", "spatial", "spatial_ti_all", "landmarks", "output", "lora", "full"),
    ),
    "novel": ("pancreas", ("linear_probe", "spatial", "landmarks", "lora", "full", "scratch")),
    "known": ("spleen", ("unadapted",)),
}
"""One organ and a few arms of each experiment."""


@dataclass(frozen=True)
class Cell:
    """A run, and all that its result depends on.

    Attributes:
        experiment: name of the experiment.
        organ: name of the organ.
        arm: name of the arm.
        shots: number of patients to train on; 0 for the unadapted model.
        seed: seed of the draw of patients and of the fit.
        split: split whose patients are measured, ``test`` or ``validation``.
        settings: settings of the fit; None for the unadapted model; a dictionary if it is read from a file.
        model_sha256: SHA-256 of the foundation model's weights.
        set_sha256: hash of the data set, see ``sha256_of_set``.
        version: version of this benchmark for the arm.
    """

    experiment: str
    organ: str
    arm: str
    shots: int
    seed: int
    split: str
    settings: OrganSettings | NnunetSettings | Mapping[str, Any] | None
    model_sha256: str
    set_sha256: str
    version: int = VERSION

    @classmethod
    def of_run(cls, run: Mapping[str, Any]) -> Cell:
        """Return the cell of a result.

        Args:
            run: what ``run`` returned, or a file holds.

        Returns:
            The cell; its file is that of the result.
        """
        return cls(**{one.name: run[one.name] for one in fields(cls)})

    def file(self, folder: Path) -> Path:
        """Return the file of its result; each cell has its own.

        Args:
            folder: folder of the results.

        Returns:
            The path.
        """
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:10]
        organ = self.organ.replace(" ", "_")
        return folder / f"{self.experiment}-{organ}-{self.arm}-{self.shots}-{self.seed}-{digest}.json"

    @property
    def domain(self) -> Domain:
        """The domain of the organ."""
        return next(domain for domain in EXPERIMENTS[self.experiment].organs if domain.name == self.organ)


def plan(
    model: OrganModel,
    quick: bool = False,
    seeds: int = SEEDS,
    only: str = "",
    arms: Collection[str] = (),
    split: str = "test",
    shots: int = 0,
    learning_rate: float = 0,
) -> list[Cell]:
    """List the cells to run, the most informative first.

    Args:
        model: the foundation model.
        quick: one organ, one number of shots and few arms of each experiment, one seed, short fits.
        seeds: number of seeds; arms that are run ``once`` have one.
        only: text in the names of the experiments and organs, such as ``novel pancreas``.
        arms: names of the arms; empty for all.
        split: see ``Cell``.
        shots: a single number of shots; 0 for all.
        learning_rate: a learning rate instead of the experiment's and the methods' own; 0 for those.

    Returns:
        The cells, in the order in which they are to run.
    """
    fits, results = QUICK_FIT if quick else FIT, []
    for name, experiment in EXPERIMENTS.items():
        for domain in (domain for domain in experiment.organs if only in f"{name} {domain.name}"):
            organ, hashes = domain.name, (model.sha256, sha256_of_set(domain))
            for arm_name in (arm for arm in experiment.arms + experiment.once if not arms or arm in arms):
                if quick and (organ != _QUICK[name][0] or arm_name not in _QUICK[name][1]):
                    continue
                arm = ARMS[arm_name]
                if not arm.method:
                    results.append(Cell(name, organ, arm_name, 0, 0, split, None, *hashes))
                    continue
                if arm.method == NNUNET:
                    counts = [count for count in experiment.shots if shots in (0, count)]
                    results += [
                        Cell(name, organ, arm_name, count, 0, split, NnunetSettings(), *hashes) for count in counts
                    ]
                    continue
                changed = bool(arm.queries) or _input_kind(arm) == "images"
                rate = learning_rate or experiment.rates.get(arm.method, 0)
                settings = replace(fits[_input_kind(arm)], method=arm.method, decoder=arm.decoder, learning_rate=rate)
                for count in experiment.shots[:1] if quick else experiment.shots:
                    if shots not in (0, count):
                        continue
                    epochs = settings.epochs // (count if _input_kind(arm) == "images" else 1)
                    for seed in range(1 if quick or arm_name in experiment.once else seeds):
                        fit_settings = replace(settings, epochs=epochs, seed=seed)
                        version = CHANGED_VERSION if changed else VERSION
                        results.append(Cell(name, organ, arm_name, count, seed, split, fit_settings, *hashes, version))
    order = list(ARMS)  # An arm counts only if all its organs were run, so one arm follows the other.

    def priority(cell: Cell) -> tuple[bool, int, int, int]:
        """Run fits on the frozen model's output first, because they are cheap; of fits through the model, one shot
        first."""
        through_model = bool(ARMS[cell.arm].method) and _input_kind(ARMS[cell.arm]) == "images"
        return (
            cell.arm in EXPERIMENTS[cell.experiment].once,
            cell.shots * through_model,
            cell.seed,
            order.index(cell.arm),
        )

    return sorted(results, key=priority)


def _input_kind(arm: Arm) -> InputKind:
    """Return what an arm's adapter reads, from its method only."""
    if arm.method == NNUNET:
        return "images"
    if METHODS[arm.method].points:
        return "landmarks"
    if METHODS[arm.method].needs_classes:
        return "probabilities"
    return "features" if arm.method in ("linear_probe", "spatial", "spatial_pointwise") else "images"


@dataclass(frozen=True)
class Source:
    """How a process gets the foundation model and the cache of its inputs.

    Attributes:
        model: see ``load_organ_model``.
        weights: see ``load_organ_model``.
        feature_cache: folder of the cache.
    """

    model: str
    weights: Path | None
    feature_cache: Path

    def load(self) -> tuple[OrganModel, FeatureCache]:
        """Load the model and open the cache."""
        return load_organ_model(self.model, self.weights), FeatureCache(self.feature_cache)


def cache_inputs(cell: Cell, source: Source, threads: int) -> None:
    """Cache the frozen model's output for the volumes of a cell, so that no run computes it or is measured doing so."""
    torch.set_num_threads(threads)
    model, feature_cache = source.load()
    for case in [*cases(cell.domain, "train"), *cases(cell.domain, cell.split)]:
        image = _image(model, case)
        for input_kind in _CACHED_KINDS if model.network.classes else ("features",):
            feature_cache.get(model, input_kind, image)


def run(cell: Cell, source: Source) -> dict[str, Any]:
    """Run one cell in its own process; its peak memory is read before the test volumes are segmented."""
    torch.set_num_threads(1)
    model, feature_cache = source.load()
    arm, record = ARMS[cell.arm], asdict(cell)
    test = cases(cell.domain, cell.split)
    if cell.settings is None:
        scores, unscored = _score(model, [(unadapted(model, cell.organ), test)], feature_cache)
        return {**record, "scores": scores, "skipped": unscored}
    labelled = cases(cell.domain, "train")
    if isinstance(cell.settings, NnunetSettings):
        volumes, skipped = load_volumes(labelled, model)
        patients = draw_shots(volumes, cell.shots, cell.seed)
        trained = train_nnunet(model, [v for p in patients for v in volumes[p]], test, cell.settings, cell.seed)
        return {**record, "patients": patients, **trained, "skipped": {**skipped, **trained["skipped"]}}
    if not isinstance(cell.settings, OrganSettings):
        raise TypeError("A cell that was read from a file is not to be run.")
    if reason := unsupported_reason(arm.method, model.network):
        return {**record, "why_not": reason}
    volumes, skipped = load_volumes(map(_where_marked, labelled) if arm.annotated_only else labelled, model)
    patients = draw_shots(volumes, cell.shots, cell.seed)
    fits = [([case], [case]) for case in test] if arm.queries == "each" else [(test if arm.queries else [], test)]
    adapters: list[tuple[FewShotAdapter, Sequence[Case]]] = []
    epochs, seconds = [], 0.0
    for queries, test_cases in fits:
        adapter = build_adapter(arm.method, model.network, cell.organ, decoder=arm.decoder, seed=cell.seed)
        adapter.to(model.device)
        examples = [
            Example(feature_cache.get(model, adapter.input_kind, v.image), v.target, v.labelled)
            for p in patients
            for v in volumes[p]
        ]
        unlabelled = [feature_cache.get(model, adapter.input_kind, _image(model, case)) for case in queries]
        start = time.process_time()
        result = fit(adapter, examples, cell.settings.fit_settings(), unlabelled)
        seconds += time.process_time() - start
        epochs.append(len(result.losses))
        adapters.append((adapter, test_cases))
    memory = peak_mib()
    scores, unscored = _score(model, adapters, feature_cache)
    return {
        **record,
        "patients": patients,
        "skipped": {**skipped, **unscored},
        "scores": scores,
        "parameters": sum(value.numel() for value in adapters[0][0].trainable_parameters().values()),
        "seconds": round(seconds, 1),
        "epochs": epochs,
        "memory_mib": round(memory),
    }


def _image(model: OrganModel, case: Case) -> torch.Tensor:
    return model.prepare(read_volume(case.image)).image


def _where_marked(case: Case) -> Case:
    _, organ, _ = CaseReader().read(case)
    return replace(case, annotated_slices=frozenset(np.flatnonzero(organ.any((0, 1))).tolist()))


def _score(
    model: OrganModel, adapters: Sequence[tuple[FewShotAdapter | None, Sequence[Case]]], feature_cache: FeatureCache
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Score each patient who has the organ, with the adapter meant for that patient; say why others have no score."""
    results: list[OrganScores] = []
    unscored: dict[str, str] = {}
    for adapter, test_cases in adapters:
        scores, skipped = evaluate_organ(model, adapter, test_cases, feature_cache)
        results += scores.values()
        unscored |= skipped
    return to_json(results), unscored
