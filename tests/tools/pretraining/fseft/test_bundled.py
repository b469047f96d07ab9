from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from baps.fseft.models import build_swin_unetr, load_organ_model
from baps.imaging.metrics import dice
from tools.pretraining.averaging import half_precision_state
from tools.pretraining.fseft import bundled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three patients with a bright liver and a spleen that is not labelled in the second one."""
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(3):
        image, labels = np.full((40, 40, 30), -60, np.int16), np.zeros((40, 40, 30), np.uint8)
        labels[8 + number : 20, 10:30, 5:25] = 6
        labels[26:34, 12:24, 8:20] = 0 if number == 1 else 1
        labels[26:30, 30:34, 8:20] = 11  # The pancreas: not a class of the model.
        image[labels > 0] = 150
        for kind, voxels in (("images", image), ("labels", labels)):
            affine = np.diag([6.0, 6.0, 6.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "data" / kind / f"p{number}.nii.gz")
    return tmp_path / "data"


def test_patients_are_read_in_order_with_all_their_labels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "VIEW_SIZE", 64)
    (patient,) = bundled.read_patients(folder, 1, 2)
    assert patient.name == "p1"
    assert patient.labels.unique().tolist() == [0, 6, 11]
    truth = np.asarray(nibabel.load(folder / "labels" / "p1.nii.gz").dataobj)
    assert np.array_equal(patient.truth, truth)
    back = patient.prepared.restore((patient.labels == 6).float()) > 0.5
    assert dice(back, truth == 6) > 0.95


@pytest.mark.slow
def test_short_run_continues_published_weights_and_measures_the_next_patient(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundled, "VIEW_SIZE", 64)
    network = build_swin_unetr(tuple(bundled.ORGANS), bundled.FEATURES, bundled.WINDOW)
    start, out, checkpoint = tmp_path / "start.safetensors", tmp_path / "out.safetensors", tmp_path / "run.pt"
    bundled.save_file(half_precision_state(network), start)
    for steps in (1, 2):
        bundled.train(
            [folder], out, checkpoint, start, patients=2, validation=1, measure_every=1, steps=steps, decay=1, workers=0
        )
        assert torch.load(checkpoint, weights_only=True)["done"] == steps
    assert load_organ_model("bundled", out, device="cpu").network.classes == tuple(bundled.ORGANS)
    changes = [(load_file(out)[name] - value).abs().max() for name, value in load_file(start).items()]
    assert 0 < max(changes) < 1e-3  # Two steps of the warm-up: it began at the weights.
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [report["steps"] for report in reports] == [0, 1, 1, 2]
    assert all(set(report["dice"]) == {"p2"} for report in reports)
