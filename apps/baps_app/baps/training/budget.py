"""Divide the images of an adaptation between the evaluation and the training runs, and check that they suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.splits import cross_validation_limit, split_patients
from baps.io import is_picture
from baps.training.settings import AdaptationSettings
from baps.training.training import allocate_images, build_stepper

_RESEND_RESERVE = 50
"""One in this many images is reserved for queries that must be sent again."""

_MAX_SEARCHED = 1_000_000


@dataclass(frozen=True)
class RunBudgets:
    """Images of the training runs.

    Attributes:
        per_fold: images of a run whose adapter is evaluated.
        last_run: images of the run on all patients, whose candidate is kept in cross-validation.
    """

    per_fold: int
    last_run: int


def holdout_budget(max_images: int, held_out_patients: int, settings: AdaptationSettings, arms: int) -> tuple[int, int]:
    """Compute how many held-out patients are used, and how many slices of each.

    They take at most a third of the images.

    Args:
        max_images: images of the whole adaptation.
        held_out_patients: number of held-out patients.
        settings: the settings of the adaptation.
        arms: number of models that are compared on each slice.

    Returns:
        The number of patients, and of slices per patient.
    """
    affordable = max_images // 3 // (arms * settings.click_sets)
    count = min(held_out_patients, max(1, affordable))
    return count, max(1, min(settings.check_slices, affordable // max(1, count)))


def run_budgets(
    max_images: int, check_queries: int, folds: int, held_back: bool, settings: AdaptationSettings, resends: bool
) -> RunBudgets:
    """Divide the images that the evaluation leaves between the training runs.

    Args:
        max_images: images of the whole adaptation.
        check_queries: images that one set of clicks of the evaluation takes.
        folds: number of runs whose adapter is evaluated.
        held_back: whether patients are held back, so that the candidate of the only fold is kept.
        settings: the settings of the adaptation.
        resends: whether queries to the black box may have to be sent again.

    Returns:
        The images of each kind of run.
    """
    reserve = max_images // _RESEND_RESERVE if resends else 0
    remaining = max_images - reserve - settings.click_sets * check_queries
    # In cross-validation, half of the rest is for the last run, which trains the kept candidate on all patients.
    last_run = remaining - remaining // 2 if folds else remaining
    return RunBudgets(remaining if held_back else remaining // 2 // max(1, folds), last_run)


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
    while candidate < _MAX_SEARCHED:
        candidate += max(10, candidate // 50)
        candidate -= candidate % 10
        if _is_sufficient(candidate, slices, settings, arms, resends):
            raise InputError(
                f"max_images must be at least {candidate} for labels of {len(slices)} patients with these settings, "
                f"not {settings.max_images}: the evaluation and every training run need some."
            )
    raise InputError(
        "No number of images suffices for these settings. Lower click_sets or batch, or leave them as they are."
    )


def _is_sufficient(
    max_images: int, slices: Mapping[str, int], settings: AdaptationSettings, arms: int, resends: bool
) -> bool:
    """Return whether every run can make at least one step.

    Args:
        max_images: images of the whole adaptation.
        slices: maximum number of slices of each patient.
        settings: the settings of the adaptation.
        arms: number of models that are compared.
        resends: whether queries may have to be sent again.
    """
    split = split_patients(
        slices, max_cross_validated=cross_validation_limit({name: range(count) for name, count in slices.items()})
    )
    held_out_patients = [patient for _, held_out in split.folds for patient in held_out]
    count, each = holdout_budget(max_images, len(held_out_patients), settings, arms)
    check_slices = {patient: min(each, slices[patient]) for patient in held_out_patients[:count]}
    folds = [training for training, held_out in split.folds if set(held_out) & set(check_slices)]
    held_back = bool(split.held_back)
    runs = run_budgets(max_images, arms * sum(check_slices.values()), len(folds), held_back, settings, resends)
    budgets_by_run = [(runs.per_fold, training) for training in folds]
    if not held_back:
        budgets_by_run.append((runs.last_run, split.training))
    for number, (images, training) in enumerate(budgets_by_run, start=1):
        points = settings.curve_points if number == len(budgets_by_run) else 0
        try:
            allocate_images(
                images, sum(slices[patient] for patient in training), points, build_stepper(settings), settings
            )
        except InputError:
            return False
    return True
