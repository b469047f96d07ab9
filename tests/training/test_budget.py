"""How many images an adaptation must be given: the least that is named suffices, and what is refused fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baps.errors import InputError
from baps.evaluation.cases import Case, LabelledSlice
from baps.training.adapt import adapt
from baps.training.budget import check_max_images
from baps.training.settings import AdaptationSettings

SETTINGS = AdaptationSettings(batch_size=4, click_sets=2, check_slices=3, curve_points=2, curve_slices=4)


def cases(patients: int, each: int) -> list[Case]:
    return [
        Case(Path(f"{n}.nii.gz"), Path(f"{n}.nii.gz"), 1, f"patient {n}", frozenset(range(each)))
        for n in range(patients)
    ]


def least(found: list[Case], settings: AdaptationSettings) -> int:
    with pytest.raises(InputError, match=f"for labels of {len(found)} patients") as refused:
        check_max_images(found, replace(settings, max_images=1))
    return int(re.search(r"at least (\d+)", str(refused.value))[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("patients", "others"),
    [
        (1, {}),
        (2, {"head": "none"}),
        (1, {"head": "none", "zoom": "none"}),
        (4, {"head": "none", "zoom": "none", "optimiser": "spsa_gc"}),
        (6, {"zoom": "none"}),
    ],
)
def test_the_least_suffices_and_much_less_does_not(
    new_black_box: Callable[..., Any],
    dim_slices: Callable[..., dict[str, list[LabelledSlice]]],
    patients: int,
    others: dict[str, Any],
) -> None:
    found, slices = cases(patients, 4), dim_slices(patients)
    settings = replace(SETTINGS, **others)
    number = least(found, settings)
    enough = replace(settings, max_images=number)
    check_max_images(found, enough)
    assert adapt(new_black_box(), slices, enough).record["black_box_images"] <= number
    few = replace(settings, max_images=max(1, number // 2))
    with pytest.raises(InputError, match="max_images must be at least"):
        check_max_images(found, few)
    with pytest.raises(InputError, match="are left for (the steps of a training run|judging)"):
        adapt(new_black_box(), slices, few)


def test_what_is_not_known_counts_as_the_most() -> None:
    known, unknown = cases(2, 3), [replace(case, annotated_slices=None) for case in cases(2, 3)]
    pictures = [replace(case, annotated_slices=None, image=Path("a.png")) for case in cases(2, 3)]
    settings = AdaptationSettings(zoom="none", head="none")
    assert least(pictures, settings) < least(known, settings) < least(unknown, settings)


def test_no_cases_need_no_images() -> None:
    check_max_images([], replace(SETTINGS, max_images=1))
