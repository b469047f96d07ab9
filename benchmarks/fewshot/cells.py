"""What ``benchmarks/fewshot/few_shot.py`` compares: experiments, arms, and one run of an arm on an organ."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from baps.fseft.preprocessing import preprocess
from baps.fseft.protocol import draw_shots
from baps.fseft.volumes import load_volumes
from baps.io import read_volume
from benchmarks.real_data import Domain, cases, sha256_of_set

VERSION = 2
"""To be raised whenever the same cell comes to another result than before."""

Settings = Mapping[InputKind, OrganSettings]
"""Of fits, by what an adapter reads."""

FIT: Settings = {
    "features": OrganSettings(epochs=100, crop=32, crops=8),
    "probabilities": OrganSettings(epochs=100, crop=32, crops=8),
    "landmarks": OrganSettings(),
    "images": OrganSettings(epochs=40),  # Of one volume: a step through the model takes six to ten times as long.
}
_READ: tuple[InputKind, ...] = ("features", "probabilities", "landmarks")
"""Of each volume before anything is measured."""

QUICK_FIT: Settings = {input_kind: replace(settings, epochs=30) for input_kind, settings in FIT.items()}


SEEDS = 3
"""Of an experiment's arms that are not run ``once``."""


@dataclass(frozen=True)
class Arm:
    """A way to come to an answer.

    Attributes:
        method: one of ``METHODS``; "" for the model as it came.
        decoder: whether its decoder is trained beside.
        queries: transductive inference on the test volumes: a fit for ``each`` of them, as published, or one for
            ``all``.
        marked: whether labels count only on slices on which the organ is marked, as those that viewers submit do in the
            app (unless ``complete_labels`` is set).
    """

    method: str
    decoder: bool = False
    queries: Literal["", "each", "all"] = ""
    marked: bool = False


ARMS = {
    "unadapted": Arm(""),
    **{name: Arm(name) for name in METHODS},
    "spatial_ti_each": Arm("spatial", queries="each"),
    "spatial_ti_all": Arm("spatial", queries="all"),
    "landmarks_marked": Arm("landmarks", marked=True),
    "lora_decoder": Arm("lora", decoder=True),
}


@dataclass(frozen=True)
class Experiment:
    """Organs of one set.

    Attributes:
        title: for the table.
        organs: each a domain by the organ's name.
        shots: patients to learn from.
        arms: names of ``ARMS``.
        once: those that are run with one seed, after all others.
        rates: learning rates of methods, chosen on the validation patients; of the others their own.
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
            "decoder", "scratch",
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
        ("spatial_ti_each", "lora", "lora_decoder", "decoder", "scratch"),
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
"""An organ and arms of each experiment."""


@dataclass(frozen=True)
class Cell:
    """A run, and all that its result depends on.

    Attributes:
        experiment, organ, arm: by name.
        shots: patients to learn from; 0 of the model as it came.
        seed: of who they are, and of the fit.
        split: whose patients it is measured on, ``test`` or ``validation``.
        settings: of the fit; None of the model as it came.
        model_sha256: of the foundation model's weights.
        set_sha256: of the images, see ``sha256_of_set``.
        version: of this bench.
    """

    experiment: str
    organ: str
    arm: str
    shots: int
    seed: int
    split: str
    settings: OrganSettings | None
    model_sha256: str
    set_sha256: str
    version: int = VERSION

    def file(self, folder: Path) -> Path:
        """Where its result lies; another cell's lies elsewhere."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:10]
        organ = self.organ.replace(" ", "_")
        return folder / f"{self.experiment}-{organ}-{self.arm}-{self.shots}-{self.seed}-{digest}.json"

    @property
    def domain(self) -> Domain:
        """Where the organ is."""
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
    """What there is to run, that which tells most first.

    Args:
        model: the foundation model.
        quick: an organ, a shot and few arms of each experiment, one seed, short fits.
        seeds: how many; one of the arms that are run ``once``.
        only: in the names of the experiments and organs, ``novel pancreas``.
        arms: none for all.
        split: see ``Cell``.
        shots: with so many alone; 0 for all.
        learning_rate: instead of the experiment's and the methods' own; 0 for those.
    """
    fits, found = QUICK_FIT if quick else FIT, []
    for name, experiment in EXPERIMENTS.items():
        for domain in (domain for domain in experiment.organs if only in f"{name} {domain.name}"):
            organ, which = domain.name, (model.sha256, sha256_of_set(domain))
            for title in (arm for arm in experiment.arms + experiment.once if not arms or arm in arms):
                if quick and (organ != _QUICK[name][0] or title not in _QUICK[name][1]):
                    continue
                arm = ARMS[title]
                if not arm.method:
                    found.append(Cell(name, organ, title, 0, 0, split, None, *which))
                    continue
                chosen = learning_rate or experiment.rates.get(arm.method, 0)
                settings = replace(fits[_reads(arm)], method=arm.method, decoder=arm.decoder, learning_rate=chosen)
                for count in experiment.shots[:1] if quick else experiment.shots:
                    if shots not in (0, count):
                        continue
                    epochs = settings.epochs // (count if _reads(arm) == "images" else 1)
                    for seed in range(1 if quick or title in experiment.once else seeds):
                        fit_settings = replace(settings, epochs=epochs, seed=seed)
                        found.append(Cell(name, organ, title, count, seed, split, fit_settings, *which))
    order = list(ARMS)  # An arm counts when every organ of it was run: one arm after the other.

    def worth(cell: Cell) -> tuple[bool, int, int, int]:
        """Fits on the frozen model's readings are cheap; of those through the model one shot tells most."""
        dear = cell.settings is not None and _reads(ARMS[cell.arm]) == "images"
        return cell.arm in EXPERIMENTS[cell.experiment].once, cell.shots * dear, cell.seed, order.index(cell.arm)

    return sorted(found, key=worth)


def _reads(arm: Arm) -> InputKind:
    """What an arm's adapter reads; told by the method, without a model."""
    if METHODS[arm.method].points:
        return "landmarks"
    if METHODS[arm.method].needs_classes:
        return "probabilities"
    return "features" if arm.method in ("linear_probe", "spatial", "spatial_pointwise") else "images"


@dataclass(frozen=True)
class Source:
    """Where a process gets the foundation model and its readings.

    Attributes:
        model, weights: see ``load_organ_model``.
        readings: folder where they are kept.
    """

    model: str
    weights: Path | None
    feature_cache: Path

    def load(self) -> tuple[OrganModel, FeatureCache]:
        """Both."""
        return load_organ_model(self.model, self.weights), FeatureCache(self.feature_cache)


def read_all(cell: Cell, source: Source, threads: int) -> None:
    """Keep what the frozen model says of a cell's volumes, so that no run has to ask it, nor is measured doing so."""
    torch.set_num_threads(threads)
    model, feature_cache = source.load()
    for case in [*cases(cell.domain, "train"), *cases(cell.domain, cell.split)]:
        image = _image(model, case)
        for input_kind in _READ if model.network.classes else ("features",):
            feature_cache.get(model, input_kind, image)


def run(cell: Cell, source: Source) -> dict[str, Any]:
    """One cell, in a process of its own: its peak of memory is read before the test volumes are asked for."""
    torch.set_num_threads(1)
    model, feature_cache = source.load()
    arm, record = ARMS[cell.arm], asdict(cell)
    test = cases(cell.domain, cell.split)
    if cell.settings is None:
        scored, passed_over = _score(model, [(unadapted(model, cell.organ), test)], feature_cache)
        return {**record, "scores": scored, "skipped": passed_over}
    if reason := unsupported_reason(arm.method, model.network):
        return {**record, "unsupported_reason": reason}
    labelled = cases(cell.domain, "train")
    volumes, skipped = load_volumes(map(_where_marked, labelled) if arm.marked else labelled, model)
    drawn = draw_shots(volumes, cell.shots, cell.seed)
    fits = [([case], [case]) for case in test] if arm.queries == "each" else [(test if arm.queries else [], test)]
    adapters: list[tuple[FewShotAdapter, Sequence[Case]]] = []
    epochs, seconds = [], 0.0
    for queries, tested in fits:
        adapter = build_adapter(arm.method, model.network, cell.organ, decoder=arm.decoder, seed=cell.seed)
        adapter.to(model.device)
        examples = [
            Example(feature_cache.get(model, adapter.input_kind, v.image), v.target, v.labelled)
            for p in drawn
            for v in volumes[p]
        ]
        unlabelled = [feature_cache.get(model, adapter.input_kind, _image(model, case)) for case in queries]
        begun = time.process_time()
        fitted = fit(adapter, examples, cell.settings.fit_settings(), unlabelled)
        seconds += time.process_time() - begun
        epochs.append(len(fitted.losses))
        adapters.append((adapter, tested))
    memory = _peak_mib()
    scored, passed_over = _score(model, adapters, feature_cache)
    return {
        **record,
        "patients": drawn,
        "skipped": {**skipped, **passed_over},
        "scores": scored,
        "parameters": sum(value.numel() for value in adapters[0][0].trainable_parameters().values()),
        "seconds": round(seconds, 1),
        "epochs": epochs,
        "memory_mib": round(memory),
    }


def _image(model: OrganModel, case: Case) -> torch.Tensor:
    return preprocess(read_volume(case.image), model.spacing, model.side).image


def _where_marked(case: Case) -> Case:
    _, organ, _ = CaseReader().read(case)
    return replace(case, annotated_slices=frozenset(np.flatnonzero(organ.any((0, 1))).tolist()))


def _score(
    model: OrganModel, adapters: Sequence[tuple[FewShotAdapter | None, Sequence[Case]]], feature_cache: FeatureCache
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Of each patient who has the organ, by the adapter that is meant for them; and why the others have none."""
    found: list[OrganScores] = []
    passed_over: dict[str, str] = {}
    for adapter, tested in adapters:
        scored, skipped = evaluate_organ(model, adapter, tested, feature_cache)
        found += scored.values()
        passed_over |= skipped
    # JSON has no infinity, which the distance from an empty mask is.
    return [
        {key: None if value == math.inf else value for key, value in asdict(one).items()} for one in found
    ], passed_over


def _peak_mib() -> float:
    """Of this process. (The system counts bytes on a Mac, else kilobytes.)"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
