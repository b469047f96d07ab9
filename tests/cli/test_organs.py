from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from baps.adapters.adapter_file import write_adapter
from baps.cli import app
from baps.errors import InputError
from baps.fseft.adapter_file import adapter_record
from baps.fseft.adapters import build_adapter
from baps.fseft.models import load_organ_model
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti

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
    output = run("adapt", *words, "--out", str(tmp_path / "a" / "tumour"), "--unlabelled", str(tmp_path / "images"))
    assert "does not know tumour" in output
    assert "on trial: 2 patients" in output
    assert "The adapter is" in output
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
    assert "rejected: " in output
    assert "The candidate is" in output
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


def test_segment(tmp_path: Path, new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]]) -> None:
    image, out, file = tmp_path / "image.nii.gz", tmp_path / "mask.nrrd", tmp_path / "tumour.adapter"
    volume, _ = new_phantom(shape=(40, 36, 20), spacing=(4.0, 4.0, 6.0))
    write_nifti(image, volume)
    model = load_organ_model()
    adapter = build_adapter("linear_probe", model.network, "tumour")
    with torch.no_grad():
        dict(adapter.named_parameters())["head.bias"].fill_(50.0)
    record = {"adapter": adapter_record("linear_probe", "tumour", False, 0), "black_box": model.to_dict()}
    write_adapter(file, adapter, record)

    def segment(*words: str) -> str:
        words = ("organs", "segment", str(image), *words, "--out", str(out), "--device", "cpu")
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "none, the unadapted model" in segment("spleen")
    assert read_volume(out).same_geometry(volume)
    assert str(file) in segment("tumour", "--adapter", str(file))
    assert read_volume(out).voxels.mean() > 0.5
    out.unlink()
    for words, message in (
        (("tumour",), "does not know tumour. Give an adapter, or one of: "),
        (("spleen", "--adapter", str(file)), "trained for tumour, not for spleen"),
        (("spleen", "--adapter", str(image)), "not an adapter of this project"),
    ):
        with pytest.raises(InputError, match=message):
            segment(*words)
    assert not out.exists()
