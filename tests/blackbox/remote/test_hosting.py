from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

_DECLARE = """
from baps.blackbox.remote.hosting import HostedModel
from tests.support.brightness import BrightnessBlackBox

for preprocessing in ("canvas", "sam", "medsam"):
    print(HostedModel(BrightnessBlackBox(preprocessing=preprocessing), "a").declaration)
"""


@pytest.mark.skipif(find_spec("kserve") is None, reason="The extra 'hosting' is not installed.")
def test_medsam_has_another_identity_than_in_version_0_1() -> None:
    """What it makes of the square image that clients send has changed; SAM does the same as before.

    In a process of its own, because kserve and tritonclient cannot be imported into one.
    """
    declared = subprocess.run([sys.executable, "-c", _DECLARE], capture_output=True, text=True, check=True, timeout=120)
    before = f"baps brightness sha256 {'b' * 64}"
    assert declared.stdout.splitlines()[-3:] == [before, before, f"{before} medsam"]
