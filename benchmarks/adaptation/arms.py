"""The arms that ``benchmarks/adaptation/adapt.py`` compares. Each is a function of an ``Arena``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import (
    BasisVisualPrompt,
    ImageStatistics,
    VisualPrompt,
    build_visual_prompt,
    load_encoder,
)
from baps.blackbox import BlackBox
from baps.blackbox.loading import bundled_network
from baps.blackbox.sam import SamBlackBox
from baps.evaluation.gate import judge_training
from baps.evaluation.interactive import (
    SegmentFunction,
    build_segment_function,
    simulate_corrections,
    summarise_corrections,
)
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import LabelledSlice, evenly_spaced
from baps.prompts import Prompt
from baps.prompts.simulated import MAX_CLICKS
from baps.training.adapt import adapt
from baps.training.batches import Batches
from baps.training.settings import AdaptationSettings
from baps.training.steps import SpsaGcStepper, Stepper
from baps.training.training import train_visual_prompt
from benchmarks.adaptation.constant_prompt import constant_prompt
from benchmarks.adaptation.craft import craft_like
from benchmarks.adaptation.spsa_reference import spsa_gc_reference, spsa_gc_reference_80000
from benchmarks.adaptation.steppers import CmaEsStepper, WhiteBoxStepper
from benchmarks.adaptation.unet import unet_from_scratch
from benchmarks.adaptation.wrapped import CropAroundClick, HardMasks
from benchmarks.adaptation.zip_prompt import zip_like

CLICK_SETS = 5
_WATCHED_SLICES = 4
_WATCHED_SETS = 2
_CORRECTED_SLICES = 6
_SEED = 1000
WINDOWS = [(low, high) for low in (0.0, 0.15, 0.3) for high in (0.6, 0.8, 1.0)]
"""Windows as shares of the range of grey levels."""


@dataclass
class Arena:
    """The input and output of an arm.

    Attributes:
        black_box: the model that the arm queries.
        examiner: the same model for the test patients; its images are not counted.
        training: slices of each patient to train on and to hold back.
        test: slices of each test patient.
        seed: seed of the run.
        max_images: maximum number of black-box images.
        curve: (images, Dice on a part of the test slices) during training.
        notes: further results.
    """

    black_box: BlackBox
    examiner: BlackBox
    training: dict[str, list[LabelledSlice]]
    test: list[list[LabelledSlice]]
    seed: int
    max_images: int
    curve: list[tuple[int, float]] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    def watch(self, images: int, adapter: Adapter) -> None:
        """Record the Dice of an adapter after a number of images."""
        watched = [evenly_spaced(patient, _WATCHED_SLICES) for patient in self.test]
        self.curve.append((images, float(np.mean(score(self.examiner, adapter, watched, _WATCHED_SETS)))))

    @property
    def labelled(self) -> list[LabelledSlice]:
        """All slices of the patients to train on."""
        return [labelled_slice for slices in self.training.values() for labelled_slice in slices]


def score(
    black_box: BlackBox, adapter: Adapter | None, patients: Sequence[Sequence[LabelledSlice]], sets: int = CLICK_SETS
) -> list[float]:
    """Compute the Dice of each patient from one click."""
    return [float(score_slices(black_box, adapter, slices, "click", _SEED, sets).mean()) for slices in patients]


def score_corrections(
    black_box: BlackBox, adapter: Adapter | None, patients: Sequence[Sequence[LabelledSlice]], kind: str
) -> dict[str, object]:
    """Compute the Dice by number of prompts, on up to six slices per patient, with two sets of clicks; see
    ``InteractiveScores``."""
    by_patient = []
    for slices in patients:
        scores = []
        for row, labelled_slice in enumerate(evenly_spaced(slices, _CORRECTED_SLICES)):
            segment = build_segment_function(black_box, adapter, labelled_slice.image, labelled_slice.size)
            generators = [np.random.default_rng([_SEED, 31, n, row]) for n in range(_WATCHED_SETS)]

            def masks(prompts: Sequence[Prompt], segment: SegmentFunction = segment) -> list[NDArray[np.bool_]]:
                return [probability > 0.5 for probability in segment(prompts)]

            scores.append(simulate_corrections(masks, labelled_slice.target, kind, MAX_CLICKS, generators))
        by_patient.append([np.array(scores)])
    return asdict(summarise_corrections(by_patient))


Outcome = tuple[BlackBox, Adapter | None]
"""The model and the adapter to use on the test patients."""


def zero_shot(arena: Arena) -> Outcome:
    """The unadapted model."""
    return arena.examiner, None


def window(arena: Arena) -> Outcome:
    """The best of nine windows, chosen on the labelled slices."""
    slices = evenly_spaced(arena.labelled, arena.max_images // len(WINDOWS))
    scores = [
        score_slices(arena.black_box, _window(*limits), slices, "click", arena.seed, 1).mean() for limits in WINDOWS
    ]
    best = WINDOWS[int(np.argmax(scores))]
    arena.notes["window"] = best
    return arena.examiner, _window(*best)


def crop(arena: Arena) -> Outcome:
    """A crop around the click, with the best of three sizes."""
    slices = evenly_spaced(arena.labelled, arena.max_images // 3)
    shares = (0.4, 0.6, 0.8)
    scores = [
        score_slices(CropAroundClick(arena.black_box, share), None, slices, "click", arena.seed, 1).mean()
        for share in shares
    ]
    best = shares[int(np.argmax(scores))]
    arena.notes["share"] = best
    return CropAroundClick(arena.examiner, best), None


def best_of_several(arena: Arena) -> Outcome:
    """The mask with the highest predicted IoU of the model's three masks."""
    return SamBlackBox(bundled_network()[0], "bundled", best_of_several=True, preprocessing="canvas"), None


def constant_1(arena: Arena) -> Outcome:
    """Brightness: one number for all images."""
    return _train(arena, _settings(arena, zoom="none", head="none", correction_ratio=0), _Brightness())


def constant_12(arena: Arena) -> Outcome:
    """One set of 12 coefficients for all images, trained on first clicks only, as it is measured."""
    return _train(arena, _settings(arena, zoom="none", head="none", correction_ratio=0), constant_prompt())


def cma_es(arena: Arena) -> Outcome:
    """The same 12 coefficients with CMA-ES."""
    settings = _settings(arena, zoom="none", head="none", correction_ratio=0)
    return _train(arena, settings, constant_prompt(), CmaEsStepper(arena.seed))


def spsa_gc_published(arena: Arena) -> Outcome:
    """The published decoder, click and optimiser, including changes of less than a grey level."""
    return _train(arena, _published(arena), stepper=SpsaGcStepper(visible=False))


def spsa_gc_fixed(arena: Arena) -> Outcome:
    """The same with fixes: changes are kept visible."""
    return _train(arena, _published(arena))


def spsa_gc_80000(arena: Arena) -> Outcome:
    """The same with the published number of images."""
    return spsa_gc_fixed(replace(arena, max_images=80_000, curve=arena.curve, notes=arena.notes))


def tone(arena: Arena) -> Outcome:
    """Our visual prompt alone, which depends on the clicked grey level."""
    return _train(arena, _settings(arena, zoom="none", head="none"))


def basis(arena: Arena) -> Outcome:
    """A visual prompt alone, which depends on the image."""
    return _train(arena, _settings(arena, zoom="none", head="none", visual_prompt="basis"))


def basis_by_click(arena: Arena) -> Outcome:
    """The same, and on the position of the click."""
    return _train(arena, _settings(arena, zoom="none", head="none", visual_prompt="basis", condition="click"))


def zoom(arena: Arena) -> Outcome:
    """The chosen zoom only."""
    return _adapt(arena, _settings(arena, head="none", visual_prompt="none"))


def zoom_and_head(arena: Arena) -> Outcome:
    """The chosen zoom and the output-side head, without a visual prompt."""
    return _adapt(arena, _settings(arena, visual_prompt="none"))


def zoom_and_tone(arena: Arena) -> Outcome:
    """The zoom and our visual prompt, without a head."""
    return _train(arena, _settings(arena, head="none"))


def zoom_and_white_box(arena: Arena) -> Outcome:
    """The same with exact gradients."""
    settings = _settings(arena, head="none")
    return _train(arena, settings, stepper=WhiteBoxStepper(settings))


def tone_and_head(arena: Arena) -> Outcome:
    """Our visual prompt, where it earns its place, and the head, without a zoom."""
    return _adapt(arena, _settings(arena, zoom="none"))


def white_box(arena: Arena) -> Outcome:
    """The same decoder with exact gradients: an upper bound for black-box methods."""
    settings = _settings(arena, zoom="none", head="none")
    return _train(arena, settings, stepper=WhiteBoxStepper(settings))


def head_alone(arena: Arena) -> Outcome:
    """The output-side head without a visual prompt."""
    return _adapt(arena, _settings(arena, zoom="none", visual_prompt="none"))


def default(arena: Arena) -> Outcome:
    """What ``baps adapt`` does, including the evaluation."""
    return _adapt(arena, _settings(arena))


def default_hard_masks(arena: Arena) -> Outcome:
    """The same with a model that returns masks without probabilities."""
    hard = replace(arena, black_box=HardMasks(arena.black_box), examiner=HardMasks(arena.examiner))
    return _adapt(hard, _settings(arena))


def _volumes(count: int) -> Callable[[Arena], Outcome]:
    def from_few(arena: Arena) -> Outcome:
        order = np.random.default_rng([arena.seed, 77]).permutation(sorted(arena.training))
        chosen = {str(patient): arena.training[str(patient)] for patient in order[:count]}
        return _adapt(replace(arena, training=chosen, curve=arena.curve, notes=arena.notes), _settings(arena))

    from_few.__doc__ = f"The default, from {count} labelled patients."
    return from_few


CHEAP = {"zero_shot": zero_shot, "window": window, "crop": crop, "best_of_several": best_of_several}
EVERYWHERE = {"zero_shot": zero_shot, "zoom_and_white_box": zoom_and_white_box, "default": default}
CORE: dict[str, Callable[[Arena], Outcome]] = {
    **CHEAP,
    "zoom": zoom,
    "zoom_and_head": zoom_and_head,
    "default": default,
    "zoom_and_white_box": zoom_and_white_box,
    "unet_from_scratch": unet_from_scratch,
    "spsa_gc_reference": spsa_gc_reference,
    "craft_like": craft_like,
    "zip_like": zip_like,
    "spsa_gc_fixed": spsa_gc_fixed,
    "spsa_gc_published": spsa_gc_published,
    "default_1_volume": _volumes(1),
    "default_3_volumes": _volumes(3),
    "default_5_volumes": _volumes(5),
    "zoom_and_tone": zoom_and_tone,
    "tone": tone,
    "cma_es": cma_es,
    "constant_12": constant_12,
    "tone_and_head": tone_and_head,
    "default_hard_masks": default_hard_masks,
    "basis": basis,
    "basis_by_click": basis_by_click,
    "constant_1": constant_1,
    "head_alone": head_alone,
    "white_box": white_box,
}
"""Arms in the order in which they are run, the most informative first."""

ONCE = {"spsa_gc_80000": spsa_gc_80000, "spsa_gc_reference_80000": spsa_gc_reference_80000}


def _published(arena: Arena) -> AdaptationSettings:
    return _settings(
        arena,
        zoom="none",
        head="none",
        visual_prompt="concat",
        condition="click",
        optimiser="spsa_gc",
        correction_ratio=0,
    )


def _settings(arena: Arena, **other: object) -> AdaptationSettings:
    return replace(AdaptationSettings(max_images=arena.max_images, seed=arena.seed), **other)  # type: ignore[arg-type]


def _adapt(arena: Arena, settings: AdaptationSettings) -> Outcome:
    result = adapt(arena.black_box, arena.training, settings, callback=arena.watch)
    arena.notes["zoom"] = result.adapter.zoom
    arena.notes["parts"] = result.record["parts"]
    arena.notes["scores"] = result.scores.to_dict()
    arena.notes["without_head"] = float(np.mean(score(arena.examiner, replace(result.adapter, head=None), arena.test)))
    status = judge_training(result.scores.differences)
    arena.notes["status"] = status.state.value
    arena.notes["sentence"] = status.sentence()
    arena.notes["verdict"] = result.comparison.to_dict() if result.comparison else None
    if result.comparison and not status.serves:  # The unadapted model is still served.
        arena.notes["rejected"] = float(np.mean(score(arena.examiner, result.adapter, arena.test)))
        return arena.examiner, None
    return arena.examiner, result.adapter


def _train(
    arena: Arena,
    settings: AdaptationSettings,
    visual_prompt: VisualPrompt | None = None,
    stepper: Stepper | None = None,
) -> Outcome:
    """Train a visual prompt on all patients, after the zoom was chosen; nothing is evaluated."""
    zoom, encoder = 1.0, load_encoder(settings.encoder, settings.encoder_source)
    if settings.zoom == "chosen":
        chosen = adapt(arena.black_box, arena.training, replace(settings, visual_prompt="none", head="none"))
        zoom = chosen.adapter.zoom
    visual_prompt = visual_prompt or build_visual_prompt(
        settings.visual_prompt, settings.seed, settings.condition, encoder
    )
    train_visual_prompt(
        arena.black_box, visual_prompt, Batches(arena.labelled, encoder, zoom), settings,
        arena.max_images - arena.black_box.images_queried, callback=arena.watch, stepper=stepper,
    )  # fmt: skip
    arena.notes["zoom"] = zoom
    return arena.examiner, Adapter(visual_prompt, zoom=zoom)


def _window(low: float, high: float) -> Adapter:
    """(I - low) / (high - low) in our basis."""
    slope = 1 / (high - low)
    result = constant_prompt()
    with torch.no_grad():
        code = result.head.bias.view(3, 4)
        code[:, 0], code[:, 1] = (slope - 1) / 2 - slope * low, (slope - 1) / 2
    return Adapter(result)


class _Brightness(BasisVisualPrompt):
    """One coefficient, of the constant function, for all images and colours."""

    general_weights = ("brightness",)

    def __init__(self) -> None:
        super().__init__(ImageStatistics())
        for value in self.parameters():
            value.requires_grad_(False)
        self.brightness = nn.Parameter(torch.zeros(1))

    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        code = features.new_zeros(len(features), 3, 4, 1, 1)
        code[:, :, 0] = self.brightness.view(1, 1, 1, 1)
        return code
