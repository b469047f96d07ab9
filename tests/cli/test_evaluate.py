from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from baps.cli import app
from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import write_nifti


@pytest.fixture
def evaluate(
    tmp_path: Path, new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Return a function that runs the command on a bright ball in 5 slices, and returns the figures and the output."""
    volume, ball = new_phantom(shape=(40, 36, 5), spacing=(1.0, 1.0, 6.0))
    for folder, written in (("images", volume), ("labels", Volume(ball.astype(np.uint8), volume.affine))):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "ball.nii.gz", written)

    def run(*words: str) -> tuple[dict[str, Any], str]:
        folders = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
        out = ["--json", str(tmp_path / "dice.json"), "--device", "cpu"]
        result = CliRunner().invoke(app, ["evaluate", *folders, *out, *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "dice.json").read_text()), result.output

    return run


def test_one_click(evaluate: Callable[..., tuple[dict[str, Any], str]]) -> None:
    figures, output = evaluate()
    assert list(figures["by_case"]) == ["ball.nii.gz"]
    assert figures["cases"] == 1
    assert "by_clicks" not in figures
    assert "clicks" not in output
    assert f"{figures['mean']:.3f} ± {figures['std']:.3f}" in output
    assert f"{figures['black_box_images']} images were sent to the model" in output


@pytest.mark.parametrize("prompt", ["click", "box"])
def test_more_clicks(evaluate: Callable[..., tuple[dict[str, Any], str]], prompt: str) -> None:
    once, _ = evaluate("--prompt", prompt)
    figures, output = evaluate("--prompt", prompt, "--clicks", "3")
    assert {key: figures[key] for key in ("mean", "std", "by_label")} == {
        key: once[key] for key in ("mean", "std", "by_label")
    }
    assert len(figures["by_clicks"]) == len(figures["by_clicks_std"]) == 3
    assert figures["by_clicks"][0] == pytest.approx(figures["mean"])
    assert once["black_box_images"] < figures["black_box_images"] <= 3 * once["black_box_images"]
    assert 1 <= figures["noc_85"] <= 10
    assert 0 <= figures["noc_85_failures"] <= 1
    for mean, std in zip(figures["by_clicks"], figures["by_clicks_std"], strict=True):
        assert f"{mean:.3f} ± {std:.3f}" in output
    assert f"Clicks to Dice 0.85: {figures['noc_85']:.1f}" in output
    assert ("box and clicks" in output) == (prompt == "box")


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--prompt", "scribble"), "Known ones: click, box"), (("--seed", "-1"), "seed"), (("--clicks", "11"), "1 to 10")],
    ids=str,
)
def test_invalid_prompts(
    evaluate: Callable[..., tuple[dict[str, Any], str]], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(*words)
