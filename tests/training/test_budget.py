"""The minimum number of images of an adaptation suffices, and smaller numbers are refused."""

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


def cases(patients: int, slices_per_patient: int) -> list[Case]:
    return [
        Case(Path(f"{n}.nii.gz"), Path(f"{n}.nii.gz"), 1, f"patient {n}", frozenset(range(slices_per_patient)))
        for n in range(patients)
    ]


def minimum_images(all_cases: list[Case], settings: AdaptationSettings) -> int:
    with pytest.raises(InputError, match=f"for labels of {len(all_cases)} patients") as refused:
        check_max_images(all_cases, replace(settings, max_images=1))
    return int(re.search(r"at least (\d+)", str(refused.value))[1])  # type: ignore[index]


@pytest.mark.parametrize(
    ("patients", "other_settings"),
    [(1, {}), (2, {"head": "none"}), (4, {"head": "none", "optimiser": "spsa_gc"}), (6, {"zoom": "none"})],
)
def test_minimum_suffices_and_much_less_does_not(
    new_black_box: Callable[..., Any],
    dim_slices: Callable[..., dict[str, list[LabelledSlice]]],
    patients: int,
    other_settings: dict[str, Any],
) -> None:
    all_cases, slices = cases(patients, 4), dim_slices(patients)
    settings = replace(SETTINGS, **other_settings)
    number = minimum_images(all_cases, settings)
    enough = replace(settings, max_images=number)
    check_max_images(all_cases, enough)
    assert adapt(new_black_box(), slices, enough).record["black_box_images"] <= number
    few = replace(settings, max_images=max(1, number // 2))
    with pytest.raises(InputError, match="max_images must be at least"):
        check_max_images(all_cases, few)
    with pytest.raises(InputError, match="are left for the steps of a training run"):
        adapt(new_black_box(), slices, few)


def test_unknown_values_count_as_the_maximum() -> None:
    known, unknown = cases(2, 3), [replace(case, annotated_slices=None) for case in cases(2, 3)]
    pictures = [replace(case, annotated_slices=None, image=Path("a.png")) for case in cases(2, 3)]
    settings = AdaptationSettings()
    assert minimum_images(pictures, settings) < minimum_images(known, settings) < minimum_images(unknown, settings)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="No number of images suffices"):
        check_max_images(cases(3, 4), replace(SETTINGS, click_sets=10**9))


def test_no_cases_need_no_images() -> None:
    check_max_images([], replace(SETTINGS, max_images=1))
