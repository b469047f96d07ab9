"""End to end from labelled volumes to a mask of another volume, with an untrained network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.fseft.adapters import build_adapter
from baps.fseft.fitting import Example, FitSettings, fit
from baps.fseft.inference import compute_inputs, segment
from baps.fseft.models import FoundationModel
from baps.fseft.preprocessing import preprocess
from baps.imaging.metrics import dice
from baps.imaging.volume import Volume
from tests.support.paths import APP

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]


@pytest.mark.parametrize(("name", "rate"), [("linear_probe", 0.03), ("output", 0.03)])
def test_new_organ_is_learned_from_two_volumes(
    unet: FoundationModel, new_phantom: Phantom, name: str, rate: float
) -> None:
    adapter = build_adapter(name, unet, "heart")
    examples = []
    for seed in (0, 1):
        volume, organ = new_phantom(seed=seed)
        prepared = preprocess(volume, spacing=2.0, side=16)
        examples.append(Example(compute_inputs(unet, adapter.input_kind, prepared.image, 16), prepared.mask(organ)))
    volume, organ = new_phantom(seed=2, shape=(36, 40, 14))
    prepared = preprocess(volume, spacing=2.0, side=16)
    inputs = compute_inputs(unet, adapter.input_kind, prepared.image, 16)

    before = dice(prepared.restore(segment(adapter, inputs)) > 0.5, organ)
    fit(adapter, examples, FitSettings(rate, epochs=40, crop=12), [inputs])
    after = dice(prepared.restore(segment(adapter, inputs)) > 0.5, organ)
    assert after > 0.75
    assert after > before + 0.2


def test_server_is_not_imported() -> None:
    program = (
        "import sys, baps.fseft.adapters, baps.fseft.fitting, baps.fseft.inference, baps.fseft.losses; "
        "import baps.fseft.models, baps.fseft.preprocessing; "
        "print(any(name.startswith('monailabel') for name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=APP, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
