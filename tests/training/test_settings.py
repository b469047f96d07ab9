from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from baps.errors import InputError
from baps.training.settings import AdaptationSettings


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("visual_prompt", "tone, basis, concat"),
        ("optimiser", "prompt_space, spsa_gc"),
        ("zoom", "chosen, none"),
        ("head", "convolutional, none"),
        ("prompt", "click, box"),
    ],
)
def test_error_for_unknown_names_lists_the_known_ones(name: str, known: str) -> None:
    with pytest.raises(InputError, match=f"no {name} named 'odd'. Known ones: {known}"):
        AdaptationSettings(**{name: "odd"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "max_images",
        "batch_size",
        "slices_per_volume",
        "check_slices",
        "click_sets",
        "curve_points",
        "curve_slices",
    ],
)
@pytest.mark.parametrize("value", [0, -5])
def test_numbers_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, not {value}"):
        AdaptationSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["perturbation_radius", "learning_rate"])
@pytest.mark.parametrize("value", [0.0, -0.1])
def test_step_sizes_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(InputError, match="positive"):
        AdaptationSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_correction_ratio_must_be_a_fraction(value: float) -> None:
    with pytest.raises(InputError, match="correction_ratio must be a share from 0 to 1"):
        AdaptationSettings(correction_ratio=value)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        AdaptationSettings(seed=-1)


@pytest.mark.parametrize("name", ["perturbation_radius", "learning_rate"])
def test_step_sizes_must_be_finite(name: str) -> None:
    with pytest.raises(InputError, match=name):
        AdaptationSettings(**{name: float("nan")})  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        AdaptationSettings().seed = 3  # type: ignore[misc]
