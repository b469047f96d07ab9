"""``baps adapt`` and ``baps evaluate`` with models that answer in 3D."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from baps.adapters.adapter_file import write_adapter
from baps.adapters.volumes.adapter_file import read_volume_adapter
from baps.cli import app, volumes
from baps.errors import InputError
from baps.training.volumes import part_training
from tests.support.flood import FloodBlackBox, leaky_volume

Command = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four patients, as NIfTI files."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(4):
        labelled = leaky_volume(number)
        affine = np.diag([*labelled.image.spacing, 1])
        nibabel.Nifti1Image(labelled.image.voxels, affine).to_filename(tmp_path / "images" / f"p{number}.nii.gz")
        nibabel.Nifti1Image(labelled.target.astype(np.uint8), affine).to_filename(
            tmp_path / "labels" / f"p{number}.nii.gz"
        )
    return tmp_path


@pytest.fixture
def baps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs a command with a cheap model in place of bundled3d, and returns its output."""
    monkeypatch.setattr(volumes, "load_volume_model", lambda settings: FloodBlackBox())
    for steps in ("_CHOICE_STEPS", "_FOLD_STEPS", "_HEAD_STEPS"):
        monkeypatch.setattr(part_training, steps, 3)

    def run(command: str, *words: str) -> str:
        given = [command, "--black-box", "bundled3d", "--images", str(folder / "images")]
        given += ["--labels", str(folder / "labels"), *words]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_adapt_and_evaluate(baps: Command, folder: Path) -> None:
    out, figures = folder / "a b.safetensors", folder / "dice.json"
    output = baps("adapt", "--out", str(out), "--max-predictions", "60")
    assert "4 labelled volumes of 4 patients; the model is flood" in output
    adapter, record = read_volume_adapter(out)
    assert record["black_box_images"] <= 60
    assert f"{record['black_box_images']} predictions were made" in output
    output = baps("evaluate", "--adapter", str(out), "--clicks", "2", "--json", str(figures))
    content = json.loads(figures.read_text())
    assert (content["cases"], content["patients"]) == (4, 4)
    assert len(content["by_clicks"]) == len(content["hd95_by_clicks"]) == 2
    assert content["predictions"] == 4 * 3 * 2
    again = baps("adapt", "--out", str(out), "--max-predictions", "60")
    assert f"{record['black_box_images']} answers were read from" in again
    assert adapter.to_dict() == read_volume_adapter(out)[0].to_dict()


def test_an_adapter_of_another_model_is_refused(baps: Command, folder: Path) -> None:
    out = folder / "a.safetensors"
    baps("adapt", "--out", str(out), "--max-predictions", "40", "--visual-prompt", "none", "--head", "none")
    adapter, record = read_volume_adapter(out)
    write_adapter(out, adapter, {**record, "black_box": {**record["black_box"], "weights_sha256": "0" * 64}})
    with pytest.raises(InputError, match="was trained for flood with weights 000000000000"):
        baps("evaluate", "--adapter", str(out), "--json", str(folder / "dice.json"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--visual-prompt", "basis"], "There is no visual_prompt named 'basis'. Known ones: tone, none"),
        (["--max-predictions", "3"], "too few to judge"),
    ],
)
def test_options_that_a_3d_model_does_not_have(baps: Command, folder: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        baps("adapt", "--out", str(folder / "a.safetensors"), *words)


def test_weights_are_not_given_for_3d_models(folder: Path) -> None:
    words = ["adapt", "--black-box", "bundled3d", "--weights", "w.pt", "--images", str(folder / "images")]
    words += ["--labels", str(folder / "labels"), "--out", str(folder / "a.safetensors")]
    with pytest.raises(InputError, match="has its own weights"):
        CliRunner().invoke(app, words, catch_exceptions=False)
