from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.fseft.fitting import FitSettings


def test_defaults_are_as_published() -> None:
    settings = FitSettings(1e-3)
    assert (settings.epochs, settings.crop, settings.crops) == (200, 96, 6)
    assert (settings.margin, settings.weight) == (0.3, 0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"learning_rate": 0.1, "epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.1, "steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.1, "crop": -1}, "crop must be 0 or more"),
        ({"learning_rate": 0.1, "margin": float("nan")}, "margin must be 0 or more"),
    ],
)
def test_out_of_range_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FitSettings(**wrong)  # type: ignore[arg-type]
