from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from baps.fseft.adaptation import OrganSettings
from baps.fseft.models import OrganModel, build_swin_unetr, build_unet
from baps.fseft.volumes import LabelledVolume, load_volumes
from baps.imaging.volume import Volume
from baps.io import write_nifti
from benchmarks import real_data
from benchmarks.fewshot import cells as few_shot_cells
from benchmarks.fewshot import few_shot
from benchmarks.fewshot.cells import ARMS, EXPERIMENTS, Cell, Source, cache_inputs, plan, run
from benchmarks.fewshot.few_shot import main, run_all, run_in_process
from benchmarks.fewshot.nnunet import NNUNET, NnunetSettings, nnunet_python, train_nnunet, write_dataset
from benchmarks.fewshot.protocol import draw_shots
from benchmarks.paths import RESULTS
from tests.support.paths import APP, ROOT

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]
VALUES = {"gallbladder": 4, "oesophagus": 5, "spleen": 1, "pancreas": 11}


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """The benchmark sets variables for its processes."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def model() -> OrganModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OrganModel("tiny", build_unet(("spleen", "liver")).eval(), "0" * 64, spacing=2.0, side=16)


@pytest.fixture
def patients(tmp_path: Path, new_phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ten patients in place of BTCV; the first and the last have no gallbladder."""
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
def run_cell(
    patients: Path, model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a cell of novel organs in this process, with a tiny model and short fits."""
    monkeypatch.setattr(few_shot_cells, "load_organ_model", lambda name, weights: model)

    def make(arm: str, organ: str = "pancreas", shots: int = 1, seed: int = 0, experiment: str = "novel") -> Any:
        method = ARMS[arm].method
        settings = OrganSettings(method, ARMS[arm].decoder, epochs=2, crop=16, seed=seed) if method else None
        cell = Cell(experiment, organ, arm, shots, seed, "test", settings, model.sha256, "0" * 64)
        return run(cell, Source("tiny", None, tmp_path / "feature_cache"))

    return make


def test_plan_has_every_arm_of_every_organ_in_order_of_information(model: OrganModel) -> None:
    cells = plan(model)
    for name, experiment in EXPERIMENTS.items():
        experiment_cells = [cell for cell in cells if cell.experiment == name]
        fits = 3 * sum(1 for arm in experiment.arms if ARMS[arm].method) + len(experiment.once)
        fits_per_shots = fits * len(experiment.shots) + ("unadapted" in experiment.arms)
        assert len(experiment_cells) == len(experiment.organs) * fits_per_shots
        fitted = [cell for cell in experiment_cells if isinstance(cell.settings, OrganSettings)]
        assert all(cell.settings.method == ARMS[cell.arm].method for cell in fitted)
        others = {cell.arm for cell in experiment_cells} - {cell.arm for cell in fitted}
        assert others <= {"unadapted", NNUNET}
    assert len({cell.file(Path()) for cell in cells}) == len(cells)
    once = [cell.arm in EXPERIMENTS[cell.experiment].once for cell in cells]
    assert once == sorted(once)
    cheap, expensive = ([cell for cell in cells if cell.arm == arm] for arm in ("spatial", "full"))
    assert [cell.seed for cell in cheap] == sorted(cell.seed for cell in cheap)
    assert [(cell.shots, cell.seed) for cell in expensive] == sorted((cell.shots, cell.seed) for cell in expensive)
    assert cells.index(cheap[-1]) < cells.index(expensive[0])
    steps = {cell.shots: cell.settings.epochs * cell.shots for cell in expensive if cell.settings}
    assert max(steps.values()) - min(steps.values()) < 5, "fits through the model take equally many steps for all shots"


def test_plan_can_be_restricted(model: OrganModel) -> None:
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
    "changes",
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
def test_each_cell_has_its_own_file(changes: dict[str, Any]) -> None:
    cell = Cell("novel", "pancreas", "full", 1, 0, "test", OrganSettings("full"), "0" * 64, "0" * 64, version=1)
    assert replace(cell).file(Path()) == cell.file(Path())
    assert replace(cell, **changes).file(Path()) != cell.file(Path())


def test_other_patients_give_other_cells(patients: Path, model: OrganModel) -> None:
    cells = plan(model, only="novel panc")
    assert plan(model, only="novel panc") == cells
    (patients / "btcv_ct" / "images" / "p9.nii.gz").rename(patients / "btcv_ct" / "images" / "q9.nii.gz")
    others = plan(model, only="novel panc")
    assert not {cell.file(Path()) for cell in cells} & {cell.file(Path()) for cell in others}


def test_run_records_training_patients_and_scores(run_cell: Callable[..., dict[str, Any]]) -> None:
    result = run_cell("linear_probe", shots=3, seed=1)
    assert tuple(result["patients"]) == draw_shots([f"p{n}" for n in range(6)], 3, 1)
    assert [score["patient"] for score in result["scores"]] == ["p8", "p9"]
    assert result["epochs"] == [2]
    assert result["parameters"] == 65
    assert result["memory_mib"] > 100
    assert result["skipped"] == {}
    assert json.loads(json.dumps(result, allow_nan=False))["settings"]["epochs"] == 2
    assert run_cell("linear_probe", shots=3, seed=1)["scores"] == result["scores"]


def test_patients_without_the_organ_are_skipped(run_cell: Callable[..., dict[str, Any]]) -> None:
    for seed in (0, 1):
        result = run_cell("linear_probe", "gallbladder", 5, seed)
        assert set(result["patients"]) == {"p1", "p2", "p3", "p4", "p5"}
        assert [score["patient"] for score in result["scores"]] == ["p8"]
        assert [name.split(".")[0] for name in result["skipped"]] == ["p0", "p9"]


def test_unadapted_model_is_not_fitted(run_cell: Callable[..., dict[str, Any]]) -> None:
    result = run_cell("unadapted", "spleen", 0, experiment="known")
    assert len(result["scores"]) == 2
    assert "seconds" not in result


def test_transductive_inference_fits_each_volume_or_all_together(run_cell: Callable[..., dict[str, Any]]) -> None:
    separate, together = run_cell("spatial_ti_each"), run_cell("spatial_ti_all")
    assert (separate["epochs"], together["epochs"]) == ([2, 2], [2])
    assert [score["patient"] for score in separate["scores"]] == ["p8", "p9"]
    assert separate["parameters"] == together["parameters"]


def test_reason_is_recorded_if_a_method_does_not_apply(run_cell: Callable[..., dict[str, Any]]) -> None:
    result = run_cell("lora_decoder")
    assert "this model has none" in result["why_not"]
    assert "scores" not in result


def test_inputs_are_cached_before_a_run(
    patients: Path, model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cell: Callable[..., Any]
) -> None:
    cell = Cell("novel", "pancreas", "spatial", 1, 0, "test", OrganSettings("spatial"), model.sha256, "0" * 64)
    cache_inputs(cell, Source("tiny", None, tmp_path / "feature_cache"), 1)
    assert len(list((tmp_path / "feature_cache").iterdir())) == 3 * (6 + 2)
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)
    assert run_cell("spatial")["scores"]
    assert run_cell("output")["scores"]


def _write_results(out: Path, cells: list[Cell]) -> None:
    scores = [{"patient": "p8", "dice": 0.5, "hd95": 9.0, "surface": 3.0}]
    costs = {"parameters": 1, "seconds": 1.0, "epochs": [1], "memory_mib": 1, "scores": scores}
    out.write_text(json.dumps({"summary": [], "runs": [{**asdict(cell), **costs} for cell in cells]}))


@pytest.fixture
def report(
    patients: Path, model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[int, str]]:
    """Return a function that reports in a fresh checkout, and returns the number of runs and the page."""
    monkeypatch.setattr(few_shot, "load_organ_model", lambda name, weights: model)
    monkeypatch.setattr(few_shot, "ROOT", patients)
    monkeypatch.setattr(few_shot, "PAGES", tmp_path)
    chaos = patients / "chaos_mr_t2"
    (chaos / "images").mkdir(parents=True)
    page, out = tmp_path / "organs.md", tmp_path / "fseft.json"
    page.write_text("<!-- bench-fseft begins -->\npublished\n<!-- bench-fseft ends -->\n")

    def make() -> tuple[int, str]:
        main(runs=tmp_path / "fresh" / "fseft", out=out, report_only=True, publish=True)
        return len(json.loads(out.read_text())["runs"]), page.read_text()

    return make


def test_report_in_a_fresh_checkout_keeps_published_runs(
    report: Callable[[], tuple[int, str]], model: OrganModel, tmp_path: Path
) -> None:
    """Runs are not in the repository, but the results file is."""
    published = [cell for cell in plan(model) if cell.arm in ("linear_probe", NNUNET) and cell.experiment == "novel"]
    _write_results(tmp_path / "fseft.json", published)
    runs, page = report()
    assert runs == len(published)
    assert "| linear_probe | 0.500 ± 0.000 |" in page
    assert "| nnunet | 0.500 |" in page


def test_report_never_replaces_results_by_fewer(
    report: Callable[[], tuple[int, str]], model: OrganModel, tmp_path: Path
) -> None:
    """Runs of an earlier version of the benchmark, or of another model, are in no table of this one."""
    cells = [replace(cell, version=0) for cell in plan(model) if cell.arm == "linear_probe"]
    _write_results(tmp_path / "fseft.json", cells)
    before = (tmp_path / "fseft.json").read_bytes()
    with pytest.raises(SystemExit, match=f"has {len(cells)} runs.*there are 0.*stay as"):
        report()
    assert (tmp_path / "fseft.json").read_bytes() == before
    assert "published" in (tmp_path / "organs.md").read_text()


def test_every_published_run_has_its_file() -> None:
    runs = json.loads((RESULTS / "fseft.json").read_text())["runs"]
    assert len({Cell.of_run(run).file(Path()) for run in runs}) == len(runs)


def test_cell_of_a_result_has_the_file_of_the_cell(model: OrganModel) -> None:
    for cell in plan(model):
        assert Cell.of_run(json.loads(json.dumps(asdict(cell)))).file(Path()) == cell.file(Path())


def test_nnunet_is_left_out_where_it_is_missing(
    report: Callable[[], tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(few_shot, "nnunet_python", lambda: None)
    monkeypatch.setattr(few_shot, "run_in_process", lambda *arguments: pytest.fail("nothing is to be run"))
    main(arms=NNUNET, runs=tmp_path / "runs" / "fseft", out=tmp_path / "fseft.json")
    assert "The arm nnunet is left out: set BAPS_NNUNET_PYTHON" in capsys.readouterr().out
    assert not list((tmp_path / "runs" / "fseft").iterdir())


def test_data_set_of_nnunet(tmp_path: Path) -> None:
    """nnU-Net's own names: images with a channel, labels without, and what they mean beside them."""
    image = torch.rand((1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    write_dataset(tmp_path, [LabelledVolume("Mrs Smith", image, image > 0.5, None)], (1.0, 2.0, 3.0))
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    folder = "Dataset001_organ"
    assert set(files) == {
        f"{folder}/dataset.json",
        f"{folder}/imagesTr/0_0000.nii.gz",
        f"{folder}/labelsTr/0.nii.gz",
    }
    stored, labels = (
        nibabel.load(files[f"{folder}/{name}"]) for name in ("imagesTr/0_0000.nii.gz", "labelsTr/0.nii.gz")
    )
    np.testing.assert_allclose(stored.get_fdata(), image[0], rtol=1e-6)
    np.testing.assert_array_equal(labels.get_fdata(), image[0] > 0.5)
    assert stored.header.get_zooms() == labels.header.get_zooms() == (1.0, 2.0, 3.0)
    about = json.loads(files[f"{folder}/dataset.json"].read_text())
    assert (about["labels"], about["numTraining"]) == ({"background": 0, "organ": 1}, 1)


def test_masks_of_nnunet_are_scored_on_the_voxels_of_the_volumes(
    patients: Path, model: OrganModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for nnU-Net's process, which finds all that is bright."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, pathlib, nibabel\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "(folder / 'masks').mkdir()\n"
        "for file in (folder / 'test').iterdir():\n"
        "    image = nibabel.load(file)\n"
        "    mask = (image.get_fdata() > 0.6).astype('uint8')\n"
        "    name = file.name.replace('_0000', '')\n"
        "    nibabel.save(nibabel.Nifti1Image(mask, image.affine), folder / 'masks' / name)\n"
        "arguments = sys.argv[3:]\n"
        "(folder / 'costs.json').write_text(json.dumps({'parameters': 7, 'arguments': arguments}))\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("BAPS_NNUNET_PYTHON", str(stand_in))
    pancreas = next(domain for domain in EXPERIMENTS["novel"].organs if domain.name == "pancreas")
    volumes, _ = load_volumes(real_data.cases(pancreas, "train"), model)
    result = train_nnunet(model, volumes["p0"], real_data.cases(pancreas, "test"), NnunetSettings(), seed=3)
    assert [score["patient"] for score in result["scores"]] == ["p8", "p9"]
    assert all(score["dice"] > 0.6 for score in result["scores"]), result
    assert (result["parameters"], result["arguments"]) == (7, ["10", "4", "1.0", "3"])


@pytest.mark.slow
@pytest.mark.skipif(nnunet_python() is None, reason="nnU-Net has an environment of its own: set BAPS_NNUNET_PYTHON")
def test_nnunet_trains_and_segments(patients: Path, model: OrganModel) -> None:
    pancreas = next(domain for domain in EXPERIMENTS["novel"].organs if domain.name == "pancreas")
    volumes, _ = load_volumes(real_data.cases(pancreas, "train"), model)
    settings = NnunetSettings(epochs=1, steps=1, memory_gb=0.5)
    result = train_nnunet(model, volumes["p0"], real_data.cases(pancreas, "test"), settings, seed=0)
    assert len(result["scores"]) == 2
    assert result["epochs"] == [1]
    assert result["parameters"] > 1_000_000


def _cells(count: int) -> list[Cell]:
    return [Cell("novel", "pancreas", "full", 1, seed, "test", None, "0" * 64, "0" * 64) for seed in range(count)]


def test_late_cells_are_skipped_and_failed_cells_leave_no_file(tmp_path: Path) -> None:
    started = []

    def work(cell: Cell) -> dict[str, Any]:
        started.append(cell.seed)
        if cell.seed == 2:
            raise RuntimeError("no memory")
        return {"scores": [{"dice": 0.5}]}

    cells = _cells(3)
    run_all(cells, tmp_path, 2, 0.0, work)
    assert (started, list(tmp_path.iterdir())) == ([], [])
    with pytest.raises(RuntimeError, match="no memory"):
        run_all(cells, tmp_path, 1, 1.0, work)
    assert [cell.file(tmp_path).exists() for cell in cells] == [True, True, False]


def test_each_run_has_its_own_process() -> None:
    first, second = run_in_process(os.getpid), run_in_process(os.getpid)
    assert len({first, second, os.getpid()}) == 3


@pytest.mark.slow
def test_quick_benchmark_is_resumed(patients: Path, tmp_path: Path) -> None:
    """Run the command with an untrained model."""
    weights = tmp_path / "organs.safetensors"
    save_file(build_swin_unetr(("spleen",), 12, 4).state_dict(), weights)
    record = {"classes": ["spleen"], "features": 12, "window": 4, "spacing": 3.0, "side": 64}
    weights.with_suffix(".json").write_text(json.dumps(record))

    def run_benchmark() -> str:
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
    output = run_benchmark()
    assert "2 of 2 runs to do" in output
    assert "linear_probe" in output
    files = sorted(folder.glob("*.json"))
    assert len(files) == 2
    times = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    assert "1 of 2 runs to do" in run_benchmark()
    assert files[0].exists()
    assert files[1].stat().st_mtime_ns == times[1]
    summary = json.loads(folder.with_suffix(".json").read_text())["summary"]
    assert [row["arm"] for row in summary] == ["linear_probe", "spatial"]
    assert all(row["by_organ"].keys() == {"pancreas"} for row in summary)
