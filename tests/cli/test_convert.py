from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK
from typer.testing import CliRunner

from baps.cli import app
from stress.fuzz.displacements import Slice, write_enhanced, write_series


def _slices(tilt: float, echoes: int) -> list[Slice]:
    values = np.arange(1, 1 + 4 * echoes * 30, dtype=np.int16).reshape(4 * echoes, 5, 6)
    return [
        Slice(
            values[k], np.array([tilt * (k % 4), 3, 2.0 * (k % 4)]), np.eye(3)[:2], (1, 1), 1, (("EchoTime", k // 4),)
        )
        for k in range(4 * echoes)
    ]


def test_each_volume_becomes_a_file_that_itk_opens(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "mr.dcm", _slices(0, 2), np.random.default_rng(0))
    made = CliRunner().invoke(app, ["convert", str(tmp_path / "mr.dcm"), str(tmp_path / "out")])
    assert made.exit_code == 0
    assert "EffectiveEchoTime" in made.output
    for number in (1, 2):
        shown = SimpleITK.ReadImage(str(tmp_path / "out" / f"mr-volume{number}.nii.gz"))
        assert shown[0, 0, 1] == 31 + 120 * (number - 1)
    again = CliRunner().invoke(app, ["convert", str(tmp_path / "mr.dcm"), str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "exists already" in str(again.exception)


def test_notes_are_printed(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", _slices(1.4, 1))
    made = CliRunner().invoke(app, ["convert", str(tmp_path / "ct"), str(tmp_path)])
    assert "straightened" in made.output
    assert SimpleITK.ReadImage(str(tmp_path / "ct.nii.gz")).GetSize()[0] > 6


def test_other_volumes_are_written_if_one_lacks_slices(tmp_path: Path) -> None:
    slices = _slices(0, 3)
    write_enhanced(tmp_path / "mr.dcm", slices[:1] + slices[2:], np.random.default_rng(0))
    made = CliRunner().invoke(app, ["convert", str(tmp_path / "mr.dcm"), str(tmp_path / "out")])
    assert made.exit_code == 1
    assert "missing slices" in str(made.exception)
    assert "mr-volume1.nii.gz is not written" in made.output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"mr-volume2.nii.gz", "mr-volume3.nii.gz"}
