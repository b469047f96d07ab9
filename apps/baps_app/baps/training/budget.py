"""Divide the images of an adaptation between its parts, and check that they suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.io import is_picture
from baps.training.settings import AdaptationSettings
from baps.training.training import allocate_images, build_stepper

_RESEND_RESERVE = 50
"""One in this many images is reserved for queries that must be sent again."""

_EVALUATION_DIVISOR = 8
"""The prompts that patients are judged with take at most one in this many of the images, each time they are asked."""

_MAX_EVALUATION = 192

_SCREENING_DIVISOR = 4
"""One in this many of the evaluation prompts is asked with every zoom."""

_HEAD_DIVISOR = 8
"""The head's further answers take at most one in this many of the images."""

_MAX_HEAD = 480

_MIN_JUDGES = 4

_MAX_PROMPT_FOLD = 400
"""Maximum number of images of a fold's visual prompt, if the adapter can have other parts. Most of what a visual prompt
brings comes with the first images."""

_MAX_PROMPT_LAST = 800
"""Maximum number of images of the last run's visual prompt, which starts from those of the folds."""

PROMPT_FOLDS = 2
"""Number of folds that a visual prompt is judged in."""


@dataclass(frozen=True)
class Budget:
    """Images of the parts of an adaptation.

    Attributes:
        max_images: images of the whole adaptation, without the reserve for queries that must be sent again.
        judges: number of patients that judge.
        each: number of evaluation prompts of each of them.
        screening: number of evaluation prompts that every zoom is tried with.
        head: number of further answers for the head.
        served: number of images for the served adapter.
    """

    max_images: int
    judges: int
    each: int
    screening: int
    head: int
    served: int

    @property
    def evaluation(self) -> int:
        """Number of evaluation prompts."""
        return self.judges * self.each

    def prompt_images(self, used: int, with_head: bool) -> int:
        """Compute how many images are left for training visual prompts, in all folds and in the last run.

        Args:
            used: images that were queried so far.
            with_head: whether a head is trained on answers to changed images.

        Returns:
            The number of images; it may be negative.
        """
        final = self.evaluation + self.head if with_head else 0
        return self.max_images - used - self.served - PROMPT_FOLDS * self.evaluation - final


def divide_images(
    max_images: int, patients: int, settings: AdaptationSettings, new_to_served: int, resends: bool
) -> Budget:
    """Divide the images of an adaptation.

    Args:
        max_images: images of the whole adaptation.
        patients: number of patients.
        settings: the settings of the adaptation.
        new_to_served: number of patients that a served adapter was not trained on; 0 without one.
        resends: whether queries to the black box may have to be sent again.

    Returns:
        The budget.

    Raises:
        InputError: if the images do not suffice for a prompt of each patient, or of four if there are more.
    """
    available = max_images - (max(1, max_images // _RESEND_RESERVE) if resends else 0)
    evaluation = min(available // _EVALUATION_DIVISOR, _MAX_EVALUATION)
    if evaluation < min(patients, _MIN_JUDGES):
        raise InputError(
            f"Of max_images, {evaluation} are left for judging {patients} patients, which is too few. Raise max_images."
        )
    judges = min(patients, evaluation)
    each = min(evaluation // judges, settings.check_slices * settings.click_sets)
    return Budget(
        available,
        judges,
        each,
        max(1, judges * each // _SCREENING_DIVISOR),
        min(available // _HEAD_DIVISOR, _MAX_HEAD),
        min(new_to_served, judges) * each,
    )


def divide_prompt_images(images: int, slices: int, settings: AdaptationSettings, folds: int) -> tuple[int, int]:
    """Divide the images for visual prompts between the folds and the last run.

    Args:
        images: images of all runs.
        slices: number of labelled slices.
        settings: the settings of the adaptation.
        folds: number of folds, 0 without cross-fitting.

    Returns:
        The images of each fold, and of the last run.

    Raises:
        InputError: if a run cannot make a step.
    """
    of_fold = images // 2 // folds if folds else 0
    last = images - folds * of_fold
    if not settings.prompt_only:
        of_fold, last = min(of_fold, _MAX_PROMPT_FOLD), min(last, _MAX_PROMPT_LAST)
    stepper = build_stepper(settings)
    if folds:
        allocate_images(of_fold, slices, 0, stepper, settings)
    allocate_images(last, slices, settings.curve_points, stepper, settings)
    return of_fold, last


def check_max_images(cases: Sequence[Case], settings: AdaptationSettings, arms: int = 2, resends: bool = True) -> None:
    """Check, before any case is read, that ``max_images`` suffices to train on the cases.

    A case whose labelled slices are not known counts with the maximum number of slices that are used.

    Args:
        cases: the cases of one adapter.
        settings: the settings of the adaptation.
        arms: number of models that are compared, 3 if an adapter is served.
        resends: whether queries to the black box may have to be sent again.

    Raises:
        InputError: if it does not suffice; the message gives the smallest value that does.
    """
    slices: dict[str, int] = {}
    for case in cases:
        max_slices = 1 if is_picture(case.image) else settings.slices_per_volume
        count = max_slices if case.annotated_slices is None else min(max_slices, max(1, len(case.annotated_slices)))
        slices[case.patient] = slices.get(case.patient, 0) + count
    if not slices or _is_sufficient(settings.max_images, slices, settings, arms, resends):
        return
    candidate = settings.max_images
    while not _is_sufficient(candidate, slices, settings, arms, resends):
        candidate += max(10, candidate // 50)
        candidate -= candidate % 10
    raise InputError(
        f"max_images must be at least {candidate} for labels of {len(slices)} patients with these settings, "
        f"not {settings.max_images}: the evaluation and every training run need some."
    )


def _is_sufficient(
    max_images: int, slices: Mapping[str, int], settings: AdaptationSettings, arms: int, resends: bool
) -> bool:
    """Return whether there are prompts to judge with, and every run of a required visual prompt can make a step."""
    try:
        budget = divide_images(max_images, len(slices), settings, len(slices) * (arms > 2), resends)
        if settings.prompt_only:
            images = budget.prompt_images(budget.evaluation, with_head=False)
            divide_prompt_images(images, sum(slices.values()), settings, PROMPT_FOLDS if len(slices) > 1 else 0)
    except InputError:
        return False
    return True
