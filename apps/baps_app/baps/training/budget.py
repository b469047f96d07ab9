"""How the images of an adaptation are shared out: what the check takes, what each training run gets, and the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.splits import most_few_of, split_patients
from baps.io import is_picture
from baps.training.settings import AdaptationSettings
from baps.training.training import build_stepper, share_out

_RESEND_RESERVE = 50
"""One image in so many is kept for what has to be sent again."""

_MOST_SEARCHED = 1_000_000


@dataclass(frozen=True)
class Runs:
    """What the training runs get.

    Attributes:
        per_fold: images of a run that somebody judges.
        last_run: images of the run on all patients, whose candidate is kept, where patients are left out in turn.
    """

    per_fold: int
    last_run: int


def share_judging(max_images: int, judges: int, settings: AdaptationSettings, arms: int) -> tuple[int, int]:
    """Return how many patients judge, and on how many slices of each: a third of the images at the most.

    Args:
        max_images: of the whole adaptation.
        judges: patients who could.
        settings: see there.
        arms: how many models are compared on each slice.
    """
    affordable = max_images // 3 // (arms * settings.click_sets)
    count = min(judges, max(1, affordable))
    return count, max(1, min(settings.check_slices, affordable // max(1, count)))


def share_runs(
    max_images: int, asked_to_judge: int, folds: int, held_back: bool, settings: AdaptationSettings, resends: bool
) -> Runs:
    """Share out what the check leaves.

    Args:
        max_images: of the whole adaptation.
        asked_to_judge: images that one set of clicks of the check takes.
        folds: runs that somebody judges.
        held_back: whether patients are held back, so that the candidate of the only fold is kept.
        settings: see there.
        resends: whether the black box may have to be asked again.
    """
    spare = max_images // _RESEND_RESERVE if resends else 0
    left = max_images - spare - settings.click_sets * asked_to_judge
    # Where patients are left out in turn, half of the rest is for the last run, on all of them, which is kept.
    last_run = left - left // 2 if folds else left
    return Runs(left if held_back else left // 2 // max(1, folds), last_run)


def check_images(cases: Sequence[Case], settings: AdaptationSettings, arms: int = 2, resends: bool = True) -> None:
    """Refuse a number of images that does not suffice to train on cases, before any is read.

    Of a case whose labelled slices are not known, as many are counted as are used at the most.

    Args:
        cases: of one adapter.
        settings: see there.
        arms: how many models the check compares, 3 where an adapter is served.
        resends: as of the black box.

    Raises:
        InputError: if it does not; the sentence has the least that does.
    """
    slices: dict[str, int] = {}
    for case in cases:
        most = 1 if is_picture(case.image) else settings.slices_per_volume
        count = most if case.covered is None else min(most, max(1, len(case.covered)))
        slices[case.patient] = slices.get(case.patient, 0) + count
    if not slices or _suffices(settings.max_images, slices, settings, arms, resends):
        return
    tried = settings.max_images
    while tried < _MOST_SEARCHED:
        tried += max(10, tried // 50)
        tried -= tried % 10
        if _suffices(tried, slices, settings, arms, resends):
            raise InputError(
                f"max_images must be at least {tried} for labels of {len(slices)} patients with these settings, not "
                f"{settings.max_images}: the check and every training run need some."
            )
    raise InputError(
        "No number of images suffices for these settings. Lower click_sets or batch, or leave them as they are."
    )


def _suffices(
    max_images: int, slices: Mapping[str, int], settings: AdaptationSettings, arms: int, resends: bool
) -> bool:
    """Return whether every run can make a step.

    Args:
        slices: how many there are of each patient, at the most.
    """
    split = split_patients(slices, most_few=most_few_of({name: range(count) for name, count in slices.items()}))
    judges = [patient for _, judging in split.folds for patient in judging]
    count, each = share_judging(max_images, len(judges), settings, arms)
    judged = {patient: min(each, slices[patient]) for patient in judges[:count]}
    folds = [training for training, judging in split.folds if set(judging) & set(judged)]
    held_back = bool(split.held_back)
    runs = share_runs(max_images, arms * sum(judged.values()), len(folds), held_back, settings, resends)
    wanted = [(runs.per_fold, training) for training in folds]
    if not held_back:
        wanted.append((runs.last_run, split.training))
    for number, (images, training) in enumerate(wanted, start=1):
        points = settings.curve_points if number == len(wanted) else 0
        try:
            share_out(images, sum(slices[patient] for patient in training), points, build_stepper(settings), settings)
        except InputError:
            return False
    return True
