from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from baps.cli import main


@pytest.mark.parametrize("label", ["liver", "[/x]"])
def test_an_error_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], label: str
) -> None:
    words = ["baps", "adapters", "publish", label, "v0001", "--adapters", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"There is no adapter of {label}. There are adapters of: none.\n"


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["baps", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert capsys.readouterr().out == f"{version('baps-monailabel')}\n"


def test_help_imports_no_heavy_modules() -> None:
    heavy = "{'torch', 'monailabel', 'numpy', 'nibabel', 'requests', 'pydantic'}"
    program = f"import sys, baps.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_warnings_of_libraries_are_hidden() -> None:
    program = "import warnings, baps.cli as line; line.app = lambda: warnings.warn('Old.'); line.main()"
    printed = [
        subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=True).stderr
        for options in ([], ["-W", "default"])
    ]
    assert printed[0] == ""
    assert "Old." in printed[1]


def test_an_old_name_gives_one_warning() -> None:
    program = "import sys, baps.cli; sys.argv = ['baps', 'adapters', 'list']; baps.cli.main()"
    environment = {**os.environ, "BAPS_AHEAD": "1", "BAPS_ADAPTERS": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == (
        "BAPS_AHEAD in the environment is now called BAPS_PREFETCH_SLICES. The next release will not read BAPS_AHEAD.\n"
    )
