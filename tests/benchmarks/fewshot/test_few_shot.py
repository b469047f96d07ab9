from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from baps.fseft.adaptation import OrganSettings
from baps.fseft.models import OrganModel, build_swin_unetr, build_unet
from baps.fseft.protocol import draw_shots
from baps.imaging.volume import Volume
from baps.io import write_nifti
from benchmarks import real_data
from benchmarks.fewshot import cells as few_shot_cells
from benchmarks.fewshot.cells import ARMS, EXPERIMENTS, Cell, Source, cache_inputs, plan, run
from benchmarks.fewshot.few_shot import run_all, run_in_process
from tests.support.paths import APP, ROOT

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]
VALUES = {"gallbladder": 4, "oesophagus": 5, "spleen": 1, "pancreas": 11}


@pytest.fixture(scope="module")
def model() -> OrganModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OrganModel("tiny", build_unet(("spleen", "liver")).eval(), "0" * 64, spacing=2.0, side=16)


@pytest.fixture
def patients(tmp_path: Path, new_phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten patients in place of BTCV; the first and the last have no gallbladder."""
    folder = tmp_path / "data" / "btcv_ct"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        volume, ball = new_phantom(seed=number)
        labels = np.where(ball, VALUES["pancreas"], 0).astype(np.uint8)
        labels[:10, :10, :6] = VALUES["spleen"]
        if number not in (0, 9):
            labels[30:, 26:, 6:] = VALUES["gallbladder"]
        write_nifti(folder / "images" / f"p{number}.nii.gz", volume)
        write_nifti(folder / "labels" / f"p{number}.nii.gz", Volume(labels, volume.affine))
    monkeypatch.setattr(real_data, "ROOT", folder.parent)
    return folder.parent


@pytest.fixture
def trial(
    patients: Path, model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs a cell of novel organs in this process, with a tiny model and short fits."""
    monkeypatch.setattr(few_shot_cells, "load_organ_model", lambda name, weights: model)

    def make(arm: str, organ: str = "pancreas", shots: int = 1, seed: int = 0, experiment: str = "novel") -> Any:
        method = ARMS[arm].method
        settings = OrganSettings(method, ARMS[arm].decoder, epochs=2, crop=16, seed=seed) if method else None
        cell = Cell(experiment, organ, arm, shots, seed, "test", settings, model.sha256, "0" * 64)
        return run(cell, Source("tiny", None, tmp_path / "readings"))

    return make


def test_the_plan_has_every_arm_of_every_organ_and_tells_most_first(model: OrganModel) -> None:
    cells = plan(model)
    for name, experiment in EXPERIMENTS.items():
        here = [cell for cell in cells if cell.experiment == name]
        fits = 3 * sum(1 for arm in experiment.arms if ARMS[arm].method) + len(experiment.once)
        each = fits * len(experiment.shots) + ("unadapted" in experiment.arms)
        assert len(here) == len(experiment.organs) * each
        assert all(cell.settings is None or cell.settings.method == ARMS[cell.arm].method for cell in here)
    assert len({cell.file(Path()) for cell in cells}) == len(cells)
    late = [cell.arm in EXPERIMENTS[cell.experiment].once for cell in cells]
    assert late == sorted(late)
    cheap, dear = ([cell for cell in cells if cell.arm == arm] for arm in ("spatial", "full"))
    assert [cell.seed for cell in cheap] == sorted(cell.seed for cell in cheap)
    assert [(cell.shots, cell.seed) for cell in dear] == sorted((cell.shots, cell.seed) for cell in dear)
    assert cells.index(cheap[-1]) < cells.index(dear[0])
    steps = {cell.shots: cell.settings.epochs * cell.shots for cell in dear if cell.settings}
    assert max(steps.values()) - min(steps.values()) < 5, "through the model as many, whatever the shots"


def test_the_plan_can_be_narrowed(model: OrganModel) -> None:
    cells = plan(model, seeds=1, only="novel panc", arms=["full", "unadapted"], split="validation")
    assert [(c.organ, c.arm, c.shots, c.split) for c in cells] == [
        ("pancreas", "full", shots, "validation") for shots in (1, 3, 5)
    ]
    (cell,) = plan(model, only="novel panc", arms=["full"], seeds=1, shots=3, learning_rate=0.25)
    assert cell.shots == 3
    assert cell.settings is not None
    assert cell.settings.learning_rate == 0.25
    quick = plan(model, quick=True)
    assert {cell.experiment for cell in quick} == set(EXPERIMENTS)
    assert {cell.seed for cell in quick} == {0}
    assert len(quick) < 20


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"shots": 3},
        {"split": "validation"},
        {"model_sha256": "1" * 64},
        {"set_sha256": "1" * 64},
        {"version": 2},
        {"settings": None},
    ],
)
def test_another_cell_lies_elsewhere(changed: dict[str, Any]) -> None:
    cell = Cell("novel", "pancreas", "full", 1, 0, "test", OrganSettings("full"), "0" * 64, "0" * 64, version=1)
    assert replace(cell).file(Path()) == cell.file(Path())
    assert replace(cell, **changed).file(Path()) != cell.file(Path())


def test_of_other_patients_everything_is_run_again(patients: Path, model: OrganModel) -> None:
    cells = plan(model, only="novel panc")
    assert plan(model, only="novel panc") == cells
    (patients / "btcv_ct" / "images" / "p9.nii.gz").rename(patients / "btcv_ct" / "images" / "q9.nii.gz")
    others = plan(model, only="novel panc")
    assert not {cell.file(Path()) for cell in cells} & {cell.file(Path()) for cell in others}


def test_a_run_says_who_was_learned_from_and_what_came_out(trial: Callable[..., dict[str, Any]]) -> None:
    found = trial("linear_probe", shots=3, seed=1)
    assert tuple(found["patients"]) == draw_shots([f"p{n}" for n in range(6)], 3, 1)
    assert [score["patient"] for score in found["scores"]] == ["p8", "p9"]
    assert found["epochs"] == [2]
    assert found["parameters"] == 65
    assert found["memory_mib"] > 100
    assert found["skipped"] == {}
    assert json.loads(json.dumps(found, allow_nan=False))["settings"]["epochs"] == 2
    assert trial("linear_probe", shots=3, seed=1)["scores"] == found["scores"]


def test_patients_without_the_organ_are_passed_over(trial: Callable[..., dict[str, Any]]) -> None:
    found = [trial("linear_probe", "gallbladder", 5, seed) for seed in (0, 1)]
    for each in found:
        assert set(each["patients"]) == {"p1", "p2", "p3", "p4", "p5"}
        assert [score["patient"] for score in each["scores"]] == ["p8"]
        assert [name.split(".")[0] for name in each["skipped"]] == ["p0", "p9"]


def test_as_it_came_nothing_is_fitted(trial: Callable[..., dict[str, Any]]) -> None:
    found = trial("unadapted", "spleen", 0, experiment="known")
    assert len(found["scores"]) == 2
    assert "seconds" not in found


def test_transductive_inference_is_a_fit_for_each_volume_or_one_for_all(trial: Callable[..., dict[str, Any]]) -> None:
    each, together = trial("spatial_ti_each"), trial("spatial_ti_all")
    assert (each["epochs"], together["epochs"]) == ([2, 2], [2])
    assert [score["patient"] for score in each["scores"]] == ["p8", "p9"]
    assert each["parameters"] == together["parameters"]


def test_where_a_method_does_not_apply_the_reason_is_kept(trial: Callable[..., dict[str, Any]]) -> None:
    found = trial("lora_decoder")
    assert "this model has none" in found["why_not"]
    assert "scores" not in found


def test_readings_are_there_before_a_run(
    patients: Path, model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: Callable[..., Any]
) -> None:
    cell = Cell("novel", "pancreas", "spatial", 1, 0, "test", OrganSettings("spatial"), model.sha256, "0" * 64)
    cache_inputs(cell, Source("tiny", None, tmp_path / "readings"), 1)
    assert len(list((tmp_path / "readings").iterdir())) == 3 * (6 + 2)
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)
    assert trial("spatial")["scores"]
    assert trial("output")["scores"]


def _cells(count: int) -> list[Cell]:
    return [Cell("novel", "pancreas", "full", 1, seed, "test", None, "0" * 64, "0" * 64) for seed in range(count)]


def test_what_is_not_begun_in_time_is_left_and_what_failed_leaves_no_file(tmp_path: Path) -> None:
    begun = []

    def work(cell: Cell) -> dict[str, Any]:
        begun.append(cell.seed)
        if cell.seed == 2:
            raise RuntimeError("no memory")
        return {"scores": [{"dice": 0.5}]}

    cells = _cells(3)
    run_all(cells, tmp_path, 2, 0.0, work)
    assert (begun, list(tmp_path.iterdir())) == ([], [])
    with pytest.raises(RuntimeError, match="no memory"):
        run_all(cells, tmp_path, 1, 1.0, work)
    assert [cell.file(tmp_path).exists() for cell in cells] == [True, True, False]


def test_work_is_done_in_a_process_of_its_own() -> None:
    first, second = run_in_process(os.getpid), run_in_process(os.getpid)
    assert len({first, second, os.getpid()}) == 3


@pytest.mark.slow
def test_the_quick_form_is_resumed(patients: Path, tmp_path: Path) -> None:
    """From the command, with a bundled model that was never trained."""
    weights = tmp_path / "organs.safetensors"
    save_file(build_swin_unetr(("spleen",), 12, 4).state_dict(), weights)
    about = {"classes": ["spleen"], "features": 12, "window": 4, "spacing": 3.0, "side": 64}
    weights.with_suffix(".json").write_text(json.dumps(about))

    def bench() -> str:
        command = [
            sys.executable,
            "-m",
            "benchmarks.fewshot.few_shot",
            "--quick",
            "--only",
            "pancreas",
            "--arms",
            "linear_probe,spatial",
        ]
        command += ["--weights", str(weights), "--runs", str(tmp_path / "runs" / "fseft"), "--workers", "1"]
        environment = {**os.environ, "BAPS_REAL_DATA": str(patients), "PYTHONPATH": str(APP)}
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    folder = tmp_path / "runs" / "fseft-quick"
    said = bench()
    assert "2 of 2 runs to go" in said
    assert "linear_probe" in said
    files = sorted(folder.glob("*.json"))
    assert len(files) == 2
    times = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    assert "1 of 2 runs to go" in bench()
    assert files[0].exists()
    assert files[1].stat().st_mtime_ns == times[1]
    summary = json.loads(folder.with_suffix(".json").read_text())["summary"]
    assert [row["arm"] for row in summary] == ["linear_probe", "spatial"]
    assert all(row["by_organ"].keys() == {"pancreas"} for row in summary)
