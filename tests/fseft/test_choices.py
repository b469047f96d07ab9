from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fseft
from fseft.adaptation import OrganSettings
from fseft.adapters import METHODS
from fseft.choices import METHOD_NAMES


def test_every_method_is_offered() -> None:
    assert sorted(METHOD_NAMES) == sorted(METHODS)
    assert OrganSettings().method == METHOD_NAMES[0]


def test_no_network_is_imported_for_it() -> None:
    program = "import sys, fseft.choices; print('torch' in sys.modules or 'monai' in sys.modules)"
    root = Path(fseft.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
