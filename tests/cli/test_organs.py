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
from baps.fseft.adapters import ModelOutput, build_adapter
from baps.fseft.inference import compute_inputs
from baps.fseft.models import FoundationModel, load_organ_model
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_volume, write_label_map, write_nifti

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
        folders = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
        if "--organ" in words and "--label" not in words:
            folders += ["--label", "1"]
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


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """List what the frozen model computes, and of which image."""
    computed: list[tuple[str, float]] = []

    def compute(model: FoundationModel, kind: ModelOutput, image: torch.Tensor, side: int) -> torch.Tensor:
        computed.append((kind, float(image.sum())))
        return compute_inputs(model, kind, image, side)

    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", compute)
    return computed


@pytest.fixture
def two_organs(run: Run, tmp_path: Path) -> None:
    """Divide the balls into two named segments, spleen (4) and tumour (2)."""
    for number in (0, 1):
        file = tmp_path / "labels" / f"ball{number}.nii.gz"
        volume = read_volume(file)
        upper = np.arange(volume.shape[2]) >= np.flatnonzero(volume.voxels.any((0, 1))).mean()
        ball = volume.voxels > 0
        layers = tuple(np.where(ball & half, value, 0).astype(np.uint8) for half, value in ((upper, 4), (~upper, 2)))
        file.unlink()
        write_label_map(tmp_path / "labels" / f"ball{number}", LabelMap(layers, {4: "spleen", 2: "tumour"}), volume)


@pytest.mark.slow
def test_evaluate_several_organs_with_one_pass_of_the_model(
    run: Run, tmp_path: Path, two_organs: None, passes: list[tuple[str, float]]
) -> None:
    pairs = ("--organ", "spleen", "--label", "4", "--organ", "tumour", "--label", "tumour")
    output = run("evaluate", *pairs, "--json", str(tmp_path / "both.json"))
    assert "does not know tumour: its mask is empty" in output
    assert [kind for kind, _ in passes] == ["features", "features"]
    assert len(set(passes)) == 2
    both = json.loads((tmp_path / "both.json").read_text())
    assert list(both["organs"]) == ["spleen", "tumour"]
    run("evaluate", "--organ", "spleen", "--label", "4", "--json", str(tmp_path / "one.json"))
    one = json.loads((tmp_path / "one.json").read_text())
    assert both["organs"]["spleen"].items() <= one.items()
    assert both["organs"]["tumour"]["dice"] == 0.0

    passes.clear()
    output = run("evaluate", "--json", str(tmp_path / "known.json"))
    assert "Skipped: tumour. Neither the model bundled nor an adapter knows it" in output
    assert len(passes) == 2
    known = json.loads((tmp_path / "known.json").read_text())
    assert known["organs"] == {"spleen": both["organs"]["spleen"]}


@pytest.mark.slow
def test_adapt_several_organs_with_one_pass_of_the_model(
    run: Run, tmp_path: Path, two_organs: None, passes: list[tuple[str, float]]
) -> None:
    out = tmp_path / "adapters"
    words = ("--method", "linear_probe", "--epochs", "2", "--learning-rate", "1e-9", "--out", str(out))
    (tmp_path / "images" / "ball1.nii.gz").unlink()  # With one patient, nothing is rejected.
    output = run("adapt", *words)
    assert "knows spleen" in output
    assert "does not know tumour" in output
    assert sorted(path.name for path in out.iterdir()) == ["spleen.organ", "tumour.organ"]
    assert not (tmp_path / "adapters.unfinished").exists()
    assert [kind for kind, _ in passes] == ["features"]

    passes.clear()
    run("evaluate", "--adapter", str(out), "--json", str(tmp_path / "after.json"))
    after = json.loads((tmp_path / "after.json").read_text())
    assert set(after["organs"]) == {"spleen", "tumour"}
    assert "tumour" not in after["skipped"]
    assert len(passes) == 1
    for more, message in (
        (("--organ", "liver", "--label", "1"), "trained for spleen, tumour, not for liver"),
        (("--adapter", str(out / "spleen.organ")), "Two adapters were trained for spleen"),
        (("--adapter", str(tmp_path / "images")), r"There is no adapter \*.organ in "),
        (("--organ", "liver", "--label", "1", "--label", "2"), "There are 1 --organ and 2 --label"),
        (("--organ", "liver", "--organ", "liver"), "An organ is given twice"),
    ):
        with pytest.raises(InputError, match=message):
            run("evaluate", "--adapter", str(out), *more, "--json", str(tmp_path / "after.json"))
    with pytest.raises(InputError, match="cannot be made .*Give another --out"):
        run("adapt", *words, "--out", str(out / "spleen.organ"))


def test_labels_without_names_need_an_organ(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not name its segments. Name each organ and give its number"):
        run("evaluate", "--json", str(tmp_path / "out.json"))


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
