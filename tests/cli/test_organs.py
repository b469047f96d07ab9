from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from baps.cli import app
from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import write_nifti

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]]) -> Run:
    """Return a function that runs ``baps organs`` on bright balls of two patients, and returns the output."""
    for number in (0, 1):
        volume, ball = new_phantom(seed=number, shape=(40, 36, 20), spacing=(4.0, 4.0, 6.0))
        for folder, written in (("images", volume), ("labels", Volume(ball.astype(np.uint8), volume.affine))):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_nifti(tmp_path / folder / f"ball{number}.nii.gz", written)

    def of(command: str, *words: str) -> str:
        folders = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels"), "--label", "1"]
        result = CliRunner().invoke(
            app, ["organs", command, *folders, "--device", "cpu", *words], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.output

    return of


@pytest.mark.slow
def test_adapt_and_evaluate_a_new_organ(run: Run, tmp_path: Path) -> None:
    words = ("--organ", "tumour", "--method", "linear_probe", "--epochs", "80", "--learning-rate", "0.05")
    output = run("adapt", *words, "--out", str(tmp_path / "a" / "tumour"), "--queries", str(tmp_path / "images"))
    assert "does not know tumour" in output
    assert "Better: the adapter is" in output
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["tumour"]

    output = run("evaluate", "--organ", "tumour", "--json", str(tmp_path / "before.json"))
    assert "its mask is empty" in output
    before = json.loads((tmp_path / "before.json").read_text())
    assert (before["dice"], before["hd95"], before["cases"]["ball0.nii.gz"]["surface"]) == (0.0, None, None)

    adapter = ("--adapter", str(tmp_path / "a" / "tumour"))
    run("evaluate", "--organ", "tumour", *adapter, "--json", str(tmp_path / "after.json"))
    after = json.loads((tmp_path / "after.json").read_text())
    assert after["dice"] > 0.7
    assert 0 <= after["surface"] <= after["hd95"] < 30
    assert set(after["cases"]) == {"ball0.nii.gz", "ball1.nii.gz"}

    write_nifti(tmp_path / "labels" / "ball1.nii.gz", Volume(np.ones((4, 4, 4), np.uint8), np.eye(4)))
    assert "Skipped: ball1." in run("evaluate", "--organ", "tumour", *adapter, "--json", str(tmp_path / "one.json"))
    one = json.loads((tmp_path / "one.json").read_text())
    assert list(one["cases"]) == ["ball0.nii.gz"]
    assert one["dice"] == one["cases"]["ball0.nii.gz"]["dice"]
    assert list(one["skipped"]) == ["ball1"]

    with pytest.raises(InputError, match="trained for tumour, not for liver"):
        run("evaluate", "--organ", "liver", *adapter, "--json", str(tmp_path / "after.json"))


def test_a_rejected_candidate(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spleen").write_text("an older one")
    output = run(
        "adapt", "--organ", "spleen", "--epochs", "1", "--learning-rate", "1e-9", "--out", str(tmp_path / "spleen")
    )
    assert "Not better: the candidate is" in output
    assert "is still the earlier adapter" in output
    assert (tmp_path / "spleen.rejected").stat().st_size > 0
    assert (tmp_path / "spleen").read_text() == "an older one"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "magic"), "no organ model named 'magic'"),
        (("--model", "fseft"), "needs weights"),
        (("--method", "magic"), "no method 'magic'"),
        (("--device", "magic"), "no device 'magic'"),
    ],
)
def test_errors(run: Run, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run("adapt", "--organ", "spleen", "--out", str(tmp_path / "out"), *words)
