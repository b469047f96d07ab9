from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

_DECLARE = """
import json
from baps.blackbox.remote.hosting import HostedModel
from tests.support.brightness import BrightnessBlackBox

for preprocessing in ("canvas", "sam", "medsam"):
    model = HostedModel(BrightnessBlackBox(preprocessing=preprocessing), "a")
    print(json.dumps([model.declaration, model.get_input_types()]))
"""


@pytest.mark.skipif(find_spec("kserve") is None, reason="The extra 'hosting' is not installed.")
def test_preprocessing_is_declared() -> None:
    """A model of the canvas declares what it did in version 0.1, so that its adapters are still served.

    In a process of its own, because kserve and tritonclient cannot be imported into one.
    """
    process = subprocess.run([sys.executable, "-c", _DECLARE], capture_output=True, text=True, check=True, timeout=120)
    canvas, sam, medsam = map(json.loads, process.stdout.splitlines()[-3:])
    text, inputs = f"baps brightness sha256 {'b' * 64}", ["image", "points", "labels"]
    assert (canvas[0], [tensor["name"] for tensor in canvas[1]]) == (text, inputs)
    sizes = {"name": "sizes", "datatype": "INT32", "shape": [-1, 2]}
    assert sam == [f"{text} sam", [*canvas[1], sizes]]
    assert medsam == [f"{text} medsam", [*canvas[1], sizes]]
