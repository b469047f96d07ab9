from __future__ import annotations

import subprocess
import sys

from baps.fseft.adaptation import OrganSettings
from baps.fseft.adapters import METHODS
from baps.fseft.choices import METHOD_NAMES
from tests.support.paths import APP


def test_every_method_is_listed() -> None:
    assert sorted(METHOD_NAMES) == sorted(METHODS)
    assert OrganSettings().method == METHOD_NAMES[0]


def test_choices_import_no_network() -> None:
    program = "import sys, baps.fseft.choices; print('torch' in sys.modules or 'monai' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=APP, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
