"""Adaptation end to end on a cheap black box that a brighter image helps."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter, identity_adapter
from baps.adapters.output_head import OutputHead
from baps.blackbox import BlackBox
from baps.errors import BapsError, BudgetSpentError, InputError
from baps.evaluation.cases import LabelledSlice
from baps.evaluation.scoring import score_slices
from baps.evaluation.splits import patient_hash, split_patients
from baps.training.adapt import Adaptation, ProgressReport, adapt, plan_adaptation
from baps.training.plan import ServedAdapter
from baps.training.settings import AdaptationSettings
from tests.support.paths import APP, ROOT

Slices = Callable[..., dict[str, list[LabelledSlice]]]
SETTINGS = AdaptationSettings(
    max_images=1200,
    batch_size=8,
    curve_points=2,
    curve_slices=4,
    click_sets=2,
    check_slices=3,
    learning_rate=0.05,
    zoom="none",
    head="none",
)
WITH_HEAD = replace(SETTINGS, head="convolutional")


def _same(first: Adaptation, second: Adaptation) -> bool:
    state, other_state = first.adapter.state_dict(), second.adapter.state_dict()
    differ = ("seconds", "replayed_images")
    records = [
        {key: value for key, value in adaptation.record.items() if key not in differ} for adaptation in (first, second)
    ]
    same = state.keys() == other_state.keys() and all(torch.equal(state[key], other_state[key]) for key in state)
    return same and records[0] == records[1]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SETTINGS, id="without"),
        pytest.param(replace(WITH_HEAD, max_images=300), id="with head", marks=pytest.mark.slow),
    ],
)
def test_adaptation_improves_held_back_patients(
    new_black_box: Callable[..., Any], dim_slices: Slices, settings: AdaptationSettings
) -> None:
    slices = dim_slices(6)
    black_box = new_black_box()
    result = adapt(black_box, slices, settings)
    assert (result.adapter.head is not None) == (settings.head == "convolutional")
    assert (result.acceptance.status, result.acceptance.no_worse_than_served, result.acceptance.against_served) == (
        "accepted",
        True,
        None,
    )
    assert result.acceptance.comparison is not None
    assert result.acceptance.comparison.better
    assert result.acceptance.comparison.before < 0.1
    assert result.acceptance.comparison.after > 0.8
    assert result.acceptance.comparison.gain > 0.7
    assert result.record["check"] == "held back"
    assert result.curve[-1].dice > result.curve[0].dice + 0.5


@pytest.mark.usefixtures("short_head")
@pytest.mark.parametrize("patients", [1, 3, 5])
@pytest.mark.parametrize(("settings", "minimum"), [(SETTINGS, 500), (WITH_HEAD, 450)], ids=["without", "with head"])
def test_queried_images_stay_within_the_maximum(
    new_black_box: Callable[..., Any], dim_slices: Slices, settings: AdaptationSettings, minimum: int, patients: int
) -> None:
    black_box = new_black_box()
    result = adapt(black_box, dim_slices(patients), replace(settings, max_images=700))
    assert minimum < black_box.images_queried <= 700
    assert result.record["black_box_images"] == black_box.images_queried


def test_a_second_adaptation_has_its_own_budget(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    settings = replace(SETTINGS, max_images=300)
    first = adapt(black_box, dim_slices(5), settings)
    second = adapt(black_box, dim_slices(5), settings)
    assert _same(first, second)
    assert black_box.budget is None


def test_budget_is_restored_after_an_error(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 5000
    with pytest.raises(InputError, match="left for the steps of a training run"):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=20))
    assert black_box.budget == 5000


def test_held_back_patients_are_queried_in_the_comparison_only(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    """Each patient's organ is in a different cell, so that a click identifies the patient."""
    slices = dim_slices(6)
    (judge,) = split_patients(slices).held_back
    black_box = new_black_box()
    adapt(black_box, slices, replace(SETTINGS, correction_ratio=0))
    judged = []
    for _, prompts in black_box.queries:
        for prompt in prompts:
            ((x, y),) = prompt.positive
            if any(piece.target[int(y), int(x)] for piece in slices[judge]):
                judged.append(prompt)
    # Three slices, two sets of clicks, with and without the adapter; the training curve uses other clicks.
    again = new_black_box()
    for _ in range(2):
        score_slices(again, None, [slices[judge][row] for row in (0, 2, 3)], "click", SETTINGS.seed + 1, 2)
    assert judged == [prompt for _, prompts in again.queries for prompt in prompts]
    assert len(judged) == 3 * 2 * 2


@pytest.mark.parametrize("pictures", [5, 7])
def test_few_pictures_are_left_out_in_turn(
    new_black_box: Callable[..., Any], dim_slices: Slices, pictures: int
) -> None:
    """A single held-back picture would not suffice, so each one is left out once."""
    black_box = new_black_box()
    result = adapt(black_box, dim_slices(pictures, per_patient=1), SETTINGS)
    assert result.record["check"] == "leave some out"
    assert result.acceptance.comparison is not None
    assert (result.acceptance.comparison.unit, result.acceptance.comparison.count) == ("patient", pictures)
    assert result.acceptance.status == "accepted"
    assert result.record["held_back_patients"] == []
    assert black_box.images_queried <= SETTINGS.max_images


def test_three_patients_are_left_out_in_turn(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    reports: list[ProgressReport] = []
    result = adapt(new_black_box(), dim_slices(3), replace(SETTINGS, max_images=2500), progress=reports.append)
    assert result.record["check"] == "leave some out"
    assert result.acceptance.comparison is not None
    assert (result.acceptance.comparison.unit, result.acceptance.comparison.count) == ("patient", 3)
    assert result.acceptance.comparison.better
    assert result.record["held_back_patients"] == []
    assert len(result.record["training_patients"]) == 3  # type: ignore[arg-type]
    # Three runs for the comparison and one on all patients.
    shares = [now.step / now.steps for now in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [now.images for now in reports] == sorted(now.images for now in reports)
    assert 0 <= reports[0].dice <= 1


def test_the_candidate_of_few_patients_is_trained_on_all(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """The curve is that of the last run, whose slices are those of both patients."""
    slices = dim_slices(2, per_patient=2)
    black_box = new_black_box()
    result = adapt(black_box, slices, replace(SETTINGS, max_images=600, curve_slices=100))
    assert result.curve[0].images == 4


def test_one_patient_is_not_compared(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    result = adapt(new_black_box(), dim_slices(1), replace(SETTINGS, max_images=500))
    assert result.acceptance.comparison is None
    assert result.acceptance.status == "unverified"
    assert "There is only one patient" in result.acceptance.sentence()
    assert result.record["verdict"] is None
    assert result.record["check"] == "none, one patient only"
    assert result.curve[-1].dice > 0.8


@pytest.mark.parametrize("patients", [3, 5])
def test_same_seed_gives_identical_results(
    new_black_box: Callable[..., Any], dim_slices: Slices, patients: int
) -> None:
    settings = replace(SETTINGS, max_images=500)
    first, same = (adapt(new_black_box(), dim_slices(patients), settings) for _ in range(2))
    second = adapt(new_black_box(), dim_slices(patients), replace(settings, seed=1))
    assert _same(first, same)
    assert not _same(first, second)
    assert first.acceptance.comparison == same.acceptance.comparison
    assert first.curve == same.curve


@pytest.mark.slow
def test_the_published_method(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    settings = replace(SETTINGS, visual_prompt="concat", condition="click", optimiser="spsa_gc", max_images=300)
    first, same = (adapt(new_black_box(), dim_slices(5), settings) for _ in range(2))
    assert _same(first, same)
    created = first.adapter.visual_prompt
    assert (created.kind, created.conditioned_on_click, first.adapter.head) == ("concat", True, None)
    assert first.acceptance.comparison is not None


def test_record_names_the_preprocessing_and_fingerprint_depends_on_it(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    """It also keeps the log of one from being replayed with the other."""
    slices = dim_slices(2)
    canvas, sam = (plan_adaptation(new_black_box(preprocessing=one), slices, SETTINGS) for one in ("canvas", "sam"))
    assert sam.facts["black_box"] == {**canvas.facts["black_box"], "preprocessing": "sam"}
    assert sam.fingerprint != canvas.fingerprint


def test_record_is_json_and_names_no_patient(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(6)
    black_box = new_black_box()
    result = adapt(black_box, slices, SETTINGS)
    text = json.dumps(result.record)
    assert json.loads(text) == result.record
    assert "patient 1" not in text
    split = split_patients(slices)
    assert result.record["training_patients"] == [patient_hash(p) for p in split.training]
    assert result.record["held_back_patients"] == [patient_hash(p) for p in split.held_back]
    assert result.record["black_box"] == {"name": "brightness", "weights_sha256": "b" * 64, "input_side": 32}
    assert result.record["settings"]["seed"] == 0  # type: ignore[index]
    assert result.record["slices"] == 24
    assert result.record["windows"] == [{"low": 0, "high": 255, "source": "given"}]
    assert [point.images for point in result.curve] == [pair[0] for pair in result.record["curve"]]  # type: ignore[attr-defined]


def test_record_of_a_single_held_back_slice_is_json(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(5)
    (judge,) = split_patients(slices).held_back
    slices[judge] = slices[judge][:1]
    result = adapt(new_black_box(), slices, replace(SETTINGS, max_images=300))
    assert result.acceptance.comparison is not None
    assert result.acceptance.comparison.count == 1
    json.dumps(result.record, allow_nan=False)


def test_roles_are_remembered(new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    settings = replace(SETTINGS, max_images=400)
    first, second = (
        adapt(new_black_box(), slices, settings, plan_adaptation(new_black_box(), slices, settings, memory))
        for slices in (dim_slices(5), dim_slices(8))
    )
    assert set(first.record["held_back_patients"]) <= set(second.record["held_back_patients"])  # type: ignore[call-overload]
    assert set(first.record["training_patients"]) <= set(second.record["training_patients"])  # type: ignore[call-overload]


def test_no_slices_is_an_error(new_black_box: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no labels to train on"):
        adapt(new_black_box(), {}, SETTINGS)


def test_budget_is_restored_after_a_failed_query(failing_black_box: Any, dim_slices: Slices) -> None:
    with pytest.raises(BudgetSpentError):
        adapt(failing_black_box, dim_slices(5), SETTINGS)
    assert failing_black_box.budget is None


@pytest.mark.usefixtures("short_head")
def test_adaptation_of_the_bundled_model(bundled: BlackBox, dim_slices: Slices) -> None:
    """A few steps on the real model: the images are counted and changed within their range."""
    slices = dim_slices(2, per_patient=2, side=bundled.capabilities.input_size)
    before = bundled.images_queried
    result = adapt(bundled, slices, replace(WITH_HEAD, batch_size=2, max_images=120, curve_slices=2))
    assert 0 < bundled.images_queried - before <= 120
    assert result.acceptance.comparison is not None
    piece = slices["patient 0"][0]
    changed = result.adapter.transform_images(result.adapter.crop(piece.image[None], []))
    assert (changed != piece.image[None]).any()
    assert result.adapter.head is not None
    assert score_slices(bundled, result.adapter, [piece], "click", 0, 1).shape == (1, 1)


def test_smaller_budget_of_the_black_box_is_kept(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 100
    with pytest.raises(BudgetSpentError):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=400))
    assert black_box.images_queried <= 100


class _InterruptionError(Exception):
    """Simulates an interruption of the process."""


def _interrupt_after(black_box: Any, batches: int) -> Any:
    """Let the black box fail after some batches."""
    segment = black_box._segment

    def until_then(*batch: object) -> object:
        if len(black_box.queries) == batches:
            raise _InterruptionError
        return segment(*batch)

    black_box._segment = until_then
    return black_box


OURS = replace(SETTINGS, max_images=400)
PUBLISHED = replace(OURS, visual_prompt="concat", condition="click", optimiser="spsa_gc")
DEFAULT = replace(OURS, zoom="chosen", head="convolutional")


@pytest.fixture(scope="module")
def unbroken_run(new_black_box: Callable[..., Any], dim_slices: Slices) -> Callable[..., tuple[Any, Adaptation]]:
    """Return a function that makes uninterrupted runs, each once: ``unbroken_run(settings, patients)``.

    The tests that use it share the results, so they only read them, and all of them use ``short_head``.
    """

    @cache
    def run(settings: AdaptationSettings, patients: int) -> tuple[Any, Adaptation]:
        black_box = new_black_box()
        return black_box, adapt(black_box, dim_slices(patients), settings)

    return run


@pytest.mark.parametrize("share", ["nothing", "one batch", "a third", "most", "all but one batch"])
@pytest.mark.parametrize(
    ("settings", "patients", "at_once"),
    [
        pytest.param(OURS, 1, 16, id="ours-1"),
        pytest.param(OURS, 3, 16, id="ours-3"),
        pytest.param(OURS, 5, 16, id="ours-5"),
        pytest.param(PUBLISHED, 3, 40, id="published-3", marks=pytest.mark.slow),
        pytest.param(DEFAULT, 1, 32, id="with head-1"),
        pytest.param(DEFAULT, 3, 32, id="with head-3"),
        pytest.param(DEFAULT, 5, 32, id="with head-5"),
    ],
)
@pytest.mark.usefixtures("short_head")
def test_interrupted_adaptation_resumes(
    new_black_box: Callable[..., Any],
    unbroken_run: Callable[..., tuple[Any, Adaptation]],
    dim_slices: Slices,
    tmp_path: Path,
    settings: AdaptationSettings,
    at_once: int,
    patients: int,
    share: str,
) -> None:
    slices = dim_slices(patients)
    first, unbroken = unbroken_run(settings, patients)
    all_batches = len(first.queries)
    batches = {"nothing": 0, "one batch": 1, "a third": all_batches // 3, "most": all_batches * 4 // 5}
    broken, rest, log = new_black_box(), new_black_box(), tmp_path / "log.jsonl"
    with pytest.raises(_InterruptionError):
        adapt(_interrupt_after(broken, batches.get(share, all_batches - 1)), slices, settings, log=log)
    assert broken.budget is None
    result = adapt(rest, slices, settings, log=log)
    assert _same(result, unbroken)
    assert result.acceptance.comparison == unbroken.acceptance.comparison
    assert result.curve == unbroken.curve
    assert result.record["black_box_images"] == first.images_queried <= settings.max_images
    recalled = result.record["replayed_images"]
    assert rest.images_queried == first.images_queried - recalled  # type: ignore[operator]
    assert 0 <= broken.images_queried - recalled <= at_once  # The query that was interrupted.
    # The queries equal those of an uninterrupted run from there on, to the pixel and the click.
    for (images, prompts), (same_images, same_prompts) in zip(
        reversed(rest.queries), reversed(first.queries), strict=False
    ):
        np.testing.assert_array_equal(images, same_images)
        assert prompts == same_prompts


@pytest.mark.usefixtures("short_head")
def test_repeatedly_interrupted_adaptation_ends(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    slices, settings = dim_slices(3), replace(DEFAULT, max_images=300)
    unbroken = adapt(new_black_box(), slices, settings)
    for _ in range(100):
        try:
            result = adapt(_interrupt_after(new_black_box(), 7), slices, settings, log=tmp_path / "log.jsonl")
            break
        except _InterruptionError:
            pass
    assert _same(result, unbroken)
    assert result.record["black_box_images"] == unbroken.record["black_box_images"]


@pytest.mark.usefixtures("short_head")
def test_finished_adaptation_queries_nothing(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    first, second = new_black_box(), new_black_box()
    second.budget = 0
    reports: list[ProgressReport] = []
    result = adapt(first, dim_slices(5), DEFAULT, log=tmp_path / "log.jsonl")
    again = adapt(second, dim_slices(5), DEFAULT, log=tmp_path / "log.jsonl", progress=reports.append)
    assert _same(result, again)
    assert (second.images_queried, again.record["replayed_images"]) == (0, first.images_queried)
    assert [now.images for now in reports] == sorted(now.images for now in reports)
    assert reports[-1].step == reports[-1].steps


def test_log_does_not_change_the_result(new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path) -> None:
    logged = adapt(new_black_box(), dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    assert logged.record["replayed_images"] == 0
    assert _same(logged, adapt(new_black_box(), dim_slices(5), OURS))
    assert "patient 1" not in (tmp_path / "log.jsonl").read_text()


def test_replayed_images_count_towards_the_maximum(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    """After an error the same black box continues; the images of the log count, not its earlier ones."""
    black_box = new_black_box()
    with pytest.raises(_InterruptionError):
        adapt(_interrupt_after(black_box, 20), dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    limits = []
    del black_box._segment
    plain = black_box._segment

    def segment(*batch: object) -> object:
        limits.append(black_box.budget)
        return plain(*batch)

    black_box._segment = segment
    before = black_box.images_queried
    result = adapt(black_box, dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    assert set(limits) == {before + OURS.max_images - result.record["replayed_images"]}  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        "seed",
        "learning_rate",
        "max_images",
        "zoom",
        "head",
        "pixel",
        "mask",
        "patient",
        "owner",
        "served",
        "black box",
    ],
)
@pytest.mark.usefixtures("short_head")
def test_log_of_another_adaptation_is_not_used(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path, change: str
) -> None:
    slices, settings, log = dim_slices(3), replace(OURS, max_images=300), tmp_path / "log.jsonl"
    with pytest.raises(_InterruptionError):
        adapt(_interrupt_after(new_black_box(), 20), slices, settings, log=log)
    black_box = new_black_box()
    piece = slices["patient 1"][2]
    served = None
    if change in ("seed", "learning_rate", "max_images", "zoom", "head"):
        second = {"seed": 1, "learning_rate": 0.04, "max_images": 320, "zoom": "chosen", "head": "convolutional"}[
            change
        ]
        settings = replace(settings, **{change: second})  # type: ignore[arg-type]
    elif change == "pixel":
        piece.image[31, 31] ^= 1
    elif change == "mask":
        piece.target[31, 31] ^= True
    elif change == "patient":
        slices["somebody else"] = slices.pop("patient 1")
    elif change == "owner":  # The same slices in the same order, but one belongs to another patient.
        first, second = sorted(slices)[:2]
        slices[second].insert(0, slices[first].pop())
    elif change == "served":
        served = ServedAdapter(identity_adapter(), {"seen_patients": [], "fingerprint": "f", "verdict": None})
    else:
        black_box._capabilities = replace(black_box.capabilities, weights_sha256="c" * 64)
    result = adapt(black_box, slices, settings, log=log, served=served)
    assert result.record["replayed_images"] == 0
    assert black_box.images_queried == result.record["black_box_images"]
    if change != "black box":
        assert _same(result, adapt(new_black_box(), slices, settings, served=served))


_KILLED = """
import json, os, pickle, signal, sys, threading, time
from pathlib import Path
import torch
from tests.support.brightness import BrightnessBlackBox
from baps.training import head_training
from baps.training.adapt import adapt
folder, moment, left, delay = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
slices, settings = pickle.loads((folder / "job").read_bytes())
log, image_losses = folder / "log.jsonl", head_training.image_losses

def came(now):
    global left
    left -= now == moment
    if now == moment and left == 0:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

def wait():
    came("masks for the head" if b'"from": ' in log.read_bytes() else "answers")
    time.sleep(0.03)

def losses(*arguments):
    came("training of the head")
    return image_losses(*arguments)

black_box, head_training.image_losses = BrightnessBlackBox(), losses
black_box.wait = wait
adaptation = adapt(black_box, slices, settings, log=log)
torch.save(adaptation.adapter.state_dict(), folder / "state")
(folder / "record").write_text(json.dumps(adaptation.record))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "patients"),
    [(OURS, 3), (PUBLISHED, 3), (replace(DEFAULT, learning_rate=0.02), 5)],
    ids=["ours", "published", "default"],
)
def test_an_adaptation_survives_kill_9(
    new_black_box: Callable[..., Any],
    dim_slices: Slices,
    tmp_path: Path,
    settings: AdaptationSettings,
    patients: int,
) -> None:
    """With a head, it is killed twice while the masks for the head are queried, and once while the head is trained."""
    slices, headed = dim_slices(patients), settings.head == "convolutional"
    unbroken = adapt(new_black_box(), slices, settings)
    (tmp_path / "job").write_bytes(pickle.dumps((slices, settings)))
    log = tmp_path / "log.jsonl"
    paths = os.pathsep.join(map(str, (ROOT, APP)))
    random = np.random.default_rng(0)

    def start(moment: str, number: int) -> int:
        command = [sys.executable, "-c", _KILLED, str(tmp_path), moment, str(number), str(random.uniform(0, 0.1))]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode

    moments = ["answers", *["masks for the head"] * 2, "training of the head"] if headed else ["answers"] * 4
    lengths = [0]
    for moment in moments:
        assert start(moment, int(random.integers(2, 5))) == -9
        lengths.append(len(log.read_bytes()))
    assert lengths == sorted(lengths)
    assert lengths[1] > 0
    assert lengths[-1] > lengths[1]
    assert (b'"from": ' in log.read_bytes()) == headed == (unbroken.adapter.head is not None)
    assert not (tmp_path / "record").exists()
    assert start("never", 1) == 0
    record, state = json.loads((tmp_path / "record").read_text()), torch.load(tmp_path / "state")
    expected = unbroken.adapter.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert record["replayed_images"] > 0
    for key, value in unbroken.record.items():
        assert key in ("seconds", "replayed_images") or record[key] == value, key


@pytest.mark.parametrize(("max_images", "held_out"), [(400, 12), (240, 12), (120, 10), (60, 5)])
def test_comparison_of_many_patients_stays_within_the_maximum(
    new_black_box: Callable[..., Any], dim_slices: Slices, max_images: int, held_out: int
) -> None:
    eight = [pieces[0] for pieces in dim_slices(8, per_patient=1).values()]
    slices = {f"patient {n}": [replace(eight[n % 8], patient=f"patient {n}")] for n in range(60)}
    black_box = new_black_box()
    settings = replace(SETTINGS, max_images=max_images, curve_slices=2, batch_size=4)
    result = adapt(black_box, slices, settings)
    assert black_box.images_queried <= max_images
    assert len(result.record["held_back_patients"]) == 12  # type: ignore[arg-type]
    assert result.acceptance.comparison is not None
    assert result.acceptance.comparison.count == held_out


def _trained_on(adapter: Adapter, patients: Sequence[str], gain: float | None = None) -> ServedAdapter[Adapter]:
    record = {
        "seen_patients": [patient_hash(patient) for patient in patients],
        "fingerprint": "of what is served",
        "verdict": None if gain is None else {"gain": gain},
    }
    return ServedAdapter(adapter, record)


def test_plan_has_the_split_and_the_fingerprint(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices, black_box = dim_slices(6), new_black_box()
    plan = plan_adaptation(black_box, slices, OURS)
    assert plan.split == split_patients(slices)
    assert black_box.images_queried == 0
    assert plan_adaptation(new_black_box(), slices, OURS).fingerprint == plan.fingerprint
    assert plan_adaptation(new_black_box(), slices, DEFAULT).fingerprint != plan.fingerprint
    result = adapt(black_box, slices, OURS, plan)
    assert result.record["fingerprint"] == plan.fingerprint
    assert {key: result.record[key] for key in plan.facts} == plan.facts
    assert _same(result, adapt(new_black_box(), slices, OURS))


def test_training_continues_from_the_served_adapter(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices, black_box = dim_slices(6), new_black_box()
    first = adapt(new_black_box(), slices, SETTINGS)
    served = ServedAdapter(first.adapter, first.record)
    settings = replace(SETTINGS, seed=1, max_images=200)
    result = adapt(black_box, slices, settings, served=served)
    split = split_patients(slices)
    assert result.record["started_from"] == first.record["fingerprint"]
    assert result.curve[0].dice > 0.8
    assert adapt(new_black_box(), slices, settings).curve[0].dice < 0.1
    # The same slices and clicks for all three comparisons.
    judged = [slices[split.held_back[0]][row] for row in (0, 2, 3)]
    theirs = score_slices(new_black_box(), first.adapter, judged, "click", settings.seed + 1, 2)
    ours = score_slices(new_black_box(), result.adapter, judged, "click", settings.seed + 1, 2)
    assert result.acceptance.against_served is not None
    assert result.acceptance.comparison is not None
    assert result.acceptance.against_served.before == pytest.approx(theirs.mean())
    assert result.acceptance.against_served.after == result.acceptance.comparison.after == pytest.approx(ours.mean())
    assert result.acceptance.no_worse_than_served == (ours.mean() >= theirs.mean())
    assert result.record["against_served"] == result.acceptance.against_served.to_dict()
    assert (
        f"Against the served adapter: gain {result.acceptance.against_served.gain:+.3f}."
        in result.acceptance.sentence()
    )
    assert black_box.images_queried <= 200


def test_patients_of_the_served_adapter_are_not_compared(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(6)
    first = adapt(new_black_box(), slices, SETTINGS)
    settings = replace(SETTINGS, seed=1, max_images=300)
    alone = adapt(new_black_box(), slices, settings)
    result = adapt(new_black_box(), slices, settings, served=_trained_on(first.adapter, list(slices)))
    assert result.acceptance.against_served is None
    assert result.curve[0].dice < 0.1
    assert result.curve[0].dice == alone.curve[0].dice


def test_of_few_patients_only_new_ones_are_compared_after_continuing(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    """The step is so small that the candidate of the fold equals the adapter that it started from."""
    slices = dim_slices(3)
    first = adapt(new_black_box(), slices, replace(SETTINGS, max_images=2500))
    settings = replace(SETTINGS, max_images=300, learning_rate=1e-9, seed=1)
    black_box = new_black_box()
    result = adapt(black_box, slices, settings, served=_trained_on(first.adapter, ["patient 0", "patient 1"]))
    assert result.acceptance.comparison is not None
    assert result.acceptance.against_served is not None
    assert (result.acceptance.against_served.unit, result.acceptance.against_served.count) == ("slice", 3)
    assert result.acceptance.against_served.gain == pytest.approx(0, abs=0.01)
    assert result.acceptance.against_served.before > 0.5
    assert result.acceptance.comparison.count == 3  # No other patient is compared.
    assert result.acceptance.comparison.gain == pytest.approx(
        result.acceptance.against_served.before - result.acceptance.comparison.before, abs=0.01
    )
    assert result.curve[0].dice > 0.8  # The last run has no held-back patient.
    assert black_box.images_queried <= 300


@pytest.mark.parametrize(("gain", "status"), [(None, "accepted"), (0.1, "accepted"), (1.5, "rejected")])
def test_gains_are_compared_without_new_patients(
    new_black_box: Callable[..., Any], dim_slices: Slices, gain: float | None, status: str
) -> None:
    slices = dim_slices(6)
    result = adapt(new_black_box(), slices, SETTINGS, served=_trained_on(identity_adapter(), list(slices), gain))
    assert result.acceptance.against_served is None
    assert result.acceptance.comparison is not None
    assert result.acceptance.comparison.better
    assert result.acceptance.status == status
    assert result.acceptance.no_worse_than_served == (status == "accepted")
    assert ("The served adapter gained more." in result.acceptance.sentence()) == (status == "rejected")


def test_gain_within_the_standard_error_is_not_less(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(3)
    plain = adapt(new_black_box(), slices, OURS)
    assert plain.acceptance.comparison is not None
    assert plain.acceptance.comparison.standard_error is not None
    for share, no_worse_than_served in ((0.9, True), (1.1, False)):
        gain = plain.acceptance.comparison.gain + share * plain.acceptance.comparison.standard_error
        result = adapt(new_black_box(), slices, OURS, served=_trained_on(identity_adapter(), list(slices), gain))
        assert result.acceptance.comparison == plain.acceptance.comparison
        assert result.acceptance.no_worse_than_served is no_worse_than_served


@pytest.mark.usefixtures("short_head")
def test_callback_gets_the_candidate(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """The runs of the folds are not reported."""
    watched: list[tuple[int, OutputHead | None]] = []
    result = adapt(
        new_black_box(),
        dim_slices(3),
        replace(WITH_HEAD, max_images=900),
        callback=lambda images, adapter: watched.append((images, adapter.head)),
    )
    assert len(watched) == len(result.curve) == 3
    assert [head is not None for _, head in watched] == [False, False, True]
    assert watched[-1][1] is result.adapter.head
    assert watched[0][0] > 300  # After the folds.


def test_exchanged_model_is_detected(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is exchanged after the comparison: nothing is published, and the mixed log is deleted."""
    log = tmp_path / "training.jsonl"
    settings = replace(SETTINGS, max_images=300)
    black_box = new_black_box()
    capabilities = replace(black_box.capabilities, resends=True)
    monkeypatch.setattr(type(black_box), "capabilities", property(lambda _: capabilities))
    unchanged = adapt(black_box, dim_slices(5), settings, log=log)
    assert unchanged.record["black_box_images"] == black_box.images_queried <= 300
    assert log.exists()
    again = new_black_box()
    answer = again._segment
    monkeypatch.setattr(again, "_segment", lambda images, prompts: 1 - answer(images, prompts))
    with pytest.raises(BapsError, match="was replaced during the training"):
        adapt(again, dim_slices(5), settings, log=log)
    assert not log.exists()
