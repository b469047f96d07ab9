"""Adaptation end to end on a cheap black box that a brighter image helps."""

from __future__ import annotations

import json
import os
import pickle
import re
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
from baps.evaluation.gate import judge_training
from baps.evaluation.splits import patient_hash
from baps.prompts import Prompt
from baps.training import part_training
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
OURS = replace(SETTINGS, max_images=400)
PUBLISHED = replace(OURS, visual_prompt="concat", condition="click", optimiser="spsa_gc")
DEFAULT = replace(OURS, zoom="chosen", head="convolutional")


def _same(one: Adaptation, other: Adaptation) -> bool:
    first, second = one.adapter.state_dict(), other.adapter.state_dict()
    differ = ("seconds", "replayed_images")
    records = [{key: value for key, value in made.record.items() if key not in differ} for made in (one, other)]
    same = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    return same and records[0] == records[1]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param(SETTINGS, ["visual prompt"], id="without"),
        pytest.param(replace(WITH_HEAD, max_images=300), ["head"], id="with head", marks=pytest.mark.slow),
    ],
)
def test_it_helps_every_patient(
    new_black_box: Callable[..., Any], dim_slices: Slices, settings: AdaptationSettings, parts: list[str]
) -> None:
    slices = dim_slices(6)
    result = adapt(new_black_box(), slices, settings)
    assert result.record["parts"] == parts
    assert judge_training(result.scores.differences).serves
    assert result.record["against_served"] is None
    assert result.comparison is not None
    assert (result.comparison.unit, result.comparison.count) == ("patient", 6)
    assert result.comparison.before < 0.1
    assert result.comparison.after > 0.8
    assert result.record["check"] == "leave some out"
    assert result.scores.unadapted.keys() == result.scores.candidate.keys() == set(map(patient_hash, slices))
    assert np.mean(list(result.scores.differences.values())) == pytest.approx(result.comparison.gain)
    assert result.scores.parts[parts[0]] == result.scores.candidate
    assert (result.scores.harmed, result.record["scores"]["harmed"]) == (0, 0)  # type: ignore[index]
    assert min(result.scores.differences.values()) == result.scores.worst


@pytest.mark.usefixtures("short_head")
def test_a_visual_prompt_that_brings_nothing_more_is_given_up(
    new_black_box: Callable[..., Any], dim_slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the head did it already: it is tried in one fold, and most of the images are left."""
    black_box, runs = new_black_box(), []
    plain = part_training.train_visual_prompt
    monkeypatch.setattr(part_training, "train_visual_prompt", lambda *given: (runs.append(given[6]), plain(*given))[1])
    monkeypatch.setattr(part_training, "_MIN_TRIAL_GAIN", 2.0)  # More than there is to gain.
    result = adapt(black_box, dim_slices(6), DEFAULT)
    assert runs == ["fold 1"]
    assert "visual prompt" not in result.record["parts"]
    assert not any(bool(value.any()) for key, value in result.adapter.state_dict().items() if "prompt.head" in key)
    assert black_box.images_queried < 0.75 * DEFAULT.max_images
    evidence, images = result.notes
    assert re.fullmatch(
        r"Gain in Dice of each part, cross-fitted on 6 patients: zoom dropped \([+-]0\.\d{3} on \d+ prompts\), "
        r"visual prompt dropped \([+-]\d\.\d{3} in the first of 2 folds, where \+2\.000 is required\), "
        r"head (kept|dropped) \([+-]0\.\d{3}\)\.",
        evidence,
    )
    unspent = DEFAULT.max_images - black_box.images_queried
    assert images == f"Stopped early: {unspent} of {DEFAULT.max_images} images were not queried."
    assert result.sentence().endswith(f"{evidence} {images}")
    assert result.record["notes"] == result.notes


@pytest.mark.usefixtures("short_head")
def test_a_visual_prompt_that_brings_more_is_trained_on_all(
    new_black_box: Callable[..., Any], dim_slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, int]] = []
    plain = part_training.train_visual_prompt

    def train(*given: Any) -> Any:
        runs.append((given[6], len({piece.patient for piece in given[2].slices})))
        return plain(*given)

    monkeypatch.setattr(part_training, "train_visual_prompt", train)
    result = adapt(new_black_box(), dim_slices(6), replace(DEFAULT, max_images=2000))
    assert runs == [("fold 1", 3), ("fold 2", 3), ("last run", 6)]
    assert "visual prompt" in result.record["parts"]
    assert re.search(r"visual prompt kept \(\+0\.\d{3}\)", result.notes[0])
    assert result.notes[1].endswith("of 2,000 images were not needed.")
    means = {name: np.mean(list(scores.values())) for name, scores in result.scores.parts.items()}
    assert means["visual prompt"] > means["head"] + 0.1


@pytest.mark.usefixtures("short_head")
def test_no_patient_is_judged_by_what_was_trained_on_it(
    new_black_box: Callable[..., Any], dim_slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each head and each visual prompt is scored on patients that it was not trained on."""
    known: dict[int, set[str]] = {}
    judged: list[str] = []
    train_head, score, train_prompt = (
        part_training.train_head, part_training.score_answers, part_training.train_visual_prompt
    )  # fmt: skip
    prompts: list[tuple[str, set[str]]] = []

    def patients(data: Any, chosen: Any) -> set[str]:
        rows = np.arange(len(data.answers.rows)) if chosen is None else np.flatnonzero(chosen)
        return {data.batches.slices[data.answers.rows[n]].patient for n in rows}

    def train(data: Any, chosen: Any, *others: Any) -> OutputHead:
        head = train_head(data, chosen, *others)
        known[id(head)] = patients(data, chosen)
        heads.append(head)
        return head

    def scored(data: Any, head: OutputHead | None = None, chosen: Any = None) -> Any:
        if head:
            assert known[id(head)]
            assert not known[id(head)] & patients(data, chosen)
            judged.extend(patients(data, chosen))
        return score(data, head, chosen)

    def train_visual_prompt(*given: Any) -> Any:
        prompts.append((given[6], {piece.patient for piece in given[2].slices}))
        return train_prompt(*given)

    heads: list[OutputHead] = []  # So that no id comes twice.
    monkeypatch.setattr(part_training, "train_head", train)
    monkeypatch.setattr(part_training, "score_answers", scored)
    monkeypatch.setattr(part_training, "train_visual_prompt", train_visual_prompt)
    slices = dim_slices(6)
    adapt(new_black_box(), slices, replace(DEFAULT, max_images=2000))
    assert set(judged) == set(slices)
    (first, one), (second, other) = prompts[:2]
    assert (first, second) == ("fold 1", "fold 2")
    assert not one & other
    assert one | other == set(slices)


@pytest.mark.usefixtures("short_head")
@pytest.mark.parametrize("patients", [1, 2, 3, 5])
@pytest.mark.parametrize(("settings", "least"), [(SETTINGS, 600), (DEFAULT, 150)], ids=["prompt", "default"])
@pytest.mark.parametrize("max_images", [700, 701, 777])
def test_images_asked_stay_within_the_bound(
    new_black_box: Callable[..., Any],
    dim_slices: Slices,
    settings: AdaptationSettings,
    least: int,
    patients: int,
    max_images: int,
) -> None:
    black_box = new_black_box()
    result = adapt(black_box, dim_slices(patients), replace(settings, max_images=max_images))
    assert least < black_box.images_queried <= max_images
    assert result.record["black_box_images"] == black_box.images_queried


def test_a_second_adaptation_has_its_own_budget(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    settings = replace(SETTINGS, max_images=300)
    first = adapt(black_box, dim_slices(5), settings)
    second = adapt(black_box, dim_slices(5), settings)
    assert _same(first, second)
    assert black_box.budget is None


def test_the_budget_of_the_black_box_comes_back_after_an_error(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    black_box = new_black_box()
    black_box.budget = 5000
    with pytest.raises(InputError, match="are left for judging 5 patients"):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=20))
    assert black_box.budget == 5000


@pytest.mark.parametrize("pictures", [5, 7])
def test_a_few_pictures_judge_in_turn(new_black_box: Callable[..., Any], dim_slices: Slices, pictures: int) -> None:
    black_box = new_black_box()
    result = adapt(black_box, dim_slices(pictures, per_patient=1), SETTINGS)
    assert result.record["check"] == "leave some out"
    assert result.comparison is not None
    assert (result.comparison.unit, result.comparison.count) == ("patient", pictures)
    assert judge_training(result.scores.differences).serves
    assert black_box.images_queried <= SETTINGS.max_images


def test_progress_is_reported(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    told: list[ProgressReport] = []
    result = adapt(new_black_box(), dim_slices(3), replace(SETTINGS, max_images=2500), progress=told.append)
    shares = [now.step / now.steps for now in told]
    assert len(set(shares)) > 20
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [now.images for now in told] == sorted(now.images for now in told)
    assert all(0 <= now.dice <= 1 for now in told)
    assert told[-1].images == result.record["black_box_images"]


def test_one_patient_is_not_judged(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    result = adapt(new_black_box(), dim_slices(1), replace(SETTINGS, max_images=500))
    assert (result.comparison, result.scores.differences) == (None, {})
    assert "There is only one patient" in result.sentence()
    assert result.record["verdict"] is None
    assert result.record["check"] == "none, one patient only"
    assert result.curve[-1].dice > 0.8


@pytest.mark.parametrize("patients", [3, 5])
def test_the_same_seed_gives_the_same_to_the_last_bit(
    new_black_box: Callable[..., Any], dim_slices: Slices, patients: int
) -> None:
    settings = replace(SETTINGS, max_images=500)
    one, same = (adapt(new_black_box(), dim_slices(patients), settings) for _ in range(2))
    other = adapt(new_black_box(), dim_slices(patients), replace(settings, seed=1))
    assert _same(one, same)
    assert not _same(one, other)
    assert one.comparison == same.comparison
    assert one.curve == same.curve


@pytest.mark.slow
def test_the_published_method(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    settings = replace(SETTINGS, visual_prompt="concat", condition="click", optimiser="spsa_gc", max_images=300)
    one, same = (adapt(new_black_box(), dim_slices(5), settings) for _ in range(2))
    assert _same(one, same)
    made = one.adapter.visual_prompt
    assert (made.kind, made.conditioned_on_click, one.adapter.head) == ("concat", True, None)
    assert one.comparison is not None


def test_record_names_the_preprocessing_and_fingerprint_depends_on_it(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    """It also keeps the log of one from being replayed with the other."""
    slices = dim_slices(2)
    canvas, sam = (plan_adaptation(new_black_box(preprocessing=one), slices, SETTINGS) for one in ("canvas", "sam"))
    assert sam.facts["black_box"] == {**canvas.facts["black_box"], "preprocessing": "sam"}
    assert sam.fingerprint != canvas.fingerprint


def test_the_record_can_be_kept_and_names_nobody(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(6)
    black_box = new_black_box()
    result = adapt(black_box, slices, SETTINGS)
    text = json.dumps(result.record)
    assert json.loads(text) == result.record
    assert "patient 1" not in text
    hashes = sorted(map(patient_hash, slices))
    assert result.record["training_patients"] == result.record["seen_patients"] == hashes
    assert result.record["black_box"] == {"name": "brightness", "weights_sha256": "b" * 64, "input_side": 32}
    assert result.record["settings"]["seed"] == 0  # type: ignore[index]
    assert result.record["slices"] == 24
    assert result.record["windows"] == [{"low": 0, "high": 255, "source": "given"}]
    assert [point.images for point in result.curve] == [pair[0] for pair in result.record["curve"]]  # type: ignore[attr-defined]


def test_nothing_to_train_on(new_black_box: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no labels to train on"):
        adapt(new_black_box(), {}, SETTINGS)


def test_a_black_box_that_fails_gives_its_budget_back(failing_black_box: Any, dim_slices: Slices) -> None:
    with pytest.raises(BudgetSpentError):
        adapt(failing_black_box, dim_slices(5), SETTINGS)
    assert failing_black_box.budget is None


@pytest.mark.usefixtures("short_head")
@pytest.mark.parametrize("settings", [SETTINGS, DEFAULT], ids=["visual prompt", "default"])
def test_on_the_bundled_black_box(bundled: BlackBox, dim_slices: Slices, settings: AdaptationSettings) -> None:
    """Adapt with few steps: images are counted, and the image changes where a visual prompt was trained."""
    slices = dim_slices(2, per_patient=2, side=bundled.capabilities.input_size)
    before = bundled.images_queried
    result = adapt(bundled, slices, replace(settings, batch_size=2, max_images=120, curve_slices=2))
    assert 0 < bundled.images_queried - before <= 120
    assert result.comparison is not None
    piece = slices["patient 0"][0]
    changed = result.adapter.transform_images(result.adapter.crop(piece.image[None], [Prompt(((3.0, 3.0),))]))
    assert (changed != piece.image[None]).any() == ("visual prompt" in result.record["parts"])
    assert changed.dtype == np.uint8


def test_a_smaller_budget_of_the_black_box_holds(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 100
    with pytest.raises(BudgetSpentError):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=400))
    assert black_box.images_queried <= 100


class _PowerCutError(Exception):
    """Stands for whatever ends a process in the middle."""


def _cut_after(black_box: Any, batches: int) -> Any:
    """The black box, which fails after so many batches."""
    segment = black_box._segment

    def until_then(*batch: object) -> object:
        if len(black_box.queries) == batches:
            raise _PowerCutError
        return segment(*batch)

    black_box._segment = until_then
    return black_box


@pytest.fixture(scope="module")
def unbroken_run(new_black_box: Callable[..., Any], dim_slices: Slices) -> Callable[..., tuple[Any, Adaptation]]:
    """Runs without a break, each made once: ``unbroken_run(settings, patients)`` gives the black box and the result.

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
        pytest.param(OURS, 1, 32, id="ours-1"),
        pytest.param(OURS, 3, 32, id="ours-3"),
        pytest.param(OURS, 5, 32, id="ours-5"),
        pytest.param(PUBLISHED, 3, 40, id="published-3", marks=pytest.mark.slow),
        pytest.param(DEFAULT, 1, 32, id="with head-1"),
        pytest.param(DEFAULT, 3, 32, id="with head-3"),
        pytest.param(DEFAULT, 5, 32, id="with head-5"),
    ],
)
@pytest.mark.usefixtures("short_head")
def test_an_adaptation_that_was_broken_off_goes_on(
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
    with pytest.raises(_PowerCutError):
        adapt(_cut_after(broken, batches.get(share, all_batches - 1)), slices, settings, log=log)
    assert broken.budget is None
    result = adapt(rest, slices, settings, log=log)
    assert _same(result, unbroken)
    assert result.comparison == unbroken.comparison
    assert result.curve == unbroken.curve
    assert result.record["black_box_images"] == first.images_queried <= settings.max_images
    recalled = result.record["replayed_images"]
    assert rest.images_queried == first.images_queried - recalled  # type: ignore[operator]
    assert 0 <= broken.images_queried - recalled <= at_once  # The answer that was cut off.
    # What is asked is, to the pixel and the click, what an unbroken run asks from there on.
    for (images, prompts), (same_images, same_prompts) in zip(
        reversed(rest.queries), reversed(first.queries), strict=False
    ):
        np.testing.assert_array_equal(images, same_images)
        assert prompts == same_prompts


@pytest.mark.usefixtures("short_head")
def test_an_adaptation_that_is_broken_off_again_and_again_ends(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    slices, settings = dim_slices(3), replace(DEFAULT, max_images=300)
    unbroken = adapt(new_black_box(), slices, settings)
    for _ in range(100):
        try:
            result = adapt(_cut_after(new_black_box(), 7), slices, settings, log=tmp_path / "log.jsonl")
            break
        except _PowerCutError:
            pass
    assert _same(result, unbroken)
    assert result.record["black_box_images"] == unbroken.record["black_box_images"]


@pytest.mark.usefixtures("short_head")
def test_an_adaptation_that_is_done_already_asks_nothing(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    first, second = new_black_box(), new_black_box()
    second.budget = 0
    told: list[ProgressReport] = []
    result = adapt(first, dim_slices(5), DEFAULT, log=tmp_path / "log.jsonl")
    again = adapt(second, dim_slices(5), DEFAULT, log=tmp_path / "log.jsonl", progress=told.append)
    assert _same(result, again)
    assert (second.images_queried, again.record["replayed_images"]) == (0, first.images_queried)
    assert [now.images for now in told] == sorted(now.images for now in told)
    assert told[-1].step == told[-1].steps


def test_keeping_a_log_changes_nothing(new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path) -> None:
    kept = adapt(new_black_box(), dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    assert kept.record["replayed_images"] == 0
    assert _same(kept, adapt(new_black_box(), dim_slices(5), OURS))
    assert "patient 1" not in (tmp_path / "log.jsonl").read_text()


def test_what_was_recalled_counts_towards_the_bound(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    """One black box goes on after an error; what it was asked before is no matter, what the log has is."""
    black_box = new_black_box()
    with pytest.raises(_PowerCutError):
        adapt(_cut_after(black_box, 20), dim_slices(5), OURS, log=tmp_path / "log.jsonl")
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
        "truth",
        "patient",
        "owner",
        "served",
        "black box",
    ],
)
@pytest.mark.usefixtures("short_head")
def test_another_adaptation_does_not_go_on_from_the_log(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path, change: str
) -> None:
    slices, settings, log = dim_slices(3), replace(OURS, max_images=300), tmp_path / "log.jsonl"
    with pytest.raises(_PowerCutError):
        adapt(_cut_after(new_black_box(), 8), slices, settings, log=log)
    black_box = new_black_box()
    piece = slices["patient 1"][2]
    served = None
    if change in ("seed", "learning_rate", "max_images", "zoom", "head"):
        other = {"seed": 1, "learning_rate": 0.04, "max_images": 320, "zoom": "chosen", "head": "convolutional"}[change]
        settings = replace(settings, **{change: other})  # type: ignore[arg-type]
    elif change == "pixel":
        piece.image[31, 31] ^= 1
    elif change == "truth":
        piece.target[31, 31] ^= True
    elif change == "patient":
        slices["somebody else"] = slices.pop("patient 1")
    elif change == "owner":  # The same slices in the same order, but the last of one patient is another's.
        one, other = sorted(slices)[:2]
        slices[other].insert(0, slices[one].pop())
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
from baps.training import head_training, part_training
from baps.training.adapt import adapt
part_training._CHOICE_STEPS, part_training._HEAD_STEPS = 10, 20
folder, moment, left, delay = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
slices, settings = pickle.loads((folder / "job").read_bytes())
log, image_losses = folder / "log.jsonl", head_training.image_losses

def came(now):
    global left
    left -= now == moment
    if now == moment and left == 0:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

def asked():
    came("answers")
    time.sleep(0.03)

def learnt(*given):
    came("the head learns")
    return image_losses(*given)

black_box, head_training.image_losses = BrightnessBlackBox(), learnt
black_box.wait = asked
made = adapt(black_box, slices, settings, log=log)
torch.save(made.adapter.state_dict(), folder / "state")
(folder / "record").write_text(json.dumps(made.record))
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
    monkeypatch: pytest.MonkeyPatch,
    settings: AdaptationSettings,
    patients: int,
) -> None:
    """With a head, it is killed once while a head learns."""
    monkeypatch.setattr(part_training, "_CHOICE_STEPS", 10)
    monkeypatch.setattr(part_training, "_HEAD_STEPS", 20)
    slices, headed = dim_slices(patients), settings.head == "convolutional"
    unbroken = adapt(new_black_box(), slices, settings)
    (tmp_path / "job").write_bytes(pickle.dumps((slices, settings)))
    log = tmp_path / "log.jsonl"
    paths = os.pathsep.join(map(str, (ROOT, APP)))
    random = np.random.default_rng(0)

    def start(moment: str, number: int) -> int:
        command = [sys.executable, "-c", _KILLED, str(tmp_path), moment, str(number), str(random.uniform(0, 0.1))]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode

    moments = ["answers"] * 3 + ["the head learns" if headed else "answers"]
    lengths = [0]
    for moment in moments:
        assert start(moment, int(random.integers(2, 5))) == -9
        lengths.append(len(log.read_bytes()))
    assert lengths == sorted(lengths)
    assert lengths[1] > 0
    assert lengths[-1] > lengths[1]
    assert not (tmp_path / "record").exists()
    assert start("never", 1) == 0
    record, state = json.loads((tmp_path / "record").read_text()), torch.load(tmp_path / "state")
    wanted = unbroken.adapter.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert record["replayed_images"] > 0
    for key, value in unbroken.record.items():
        assert key in ("seconds", "replayed_images") or record[key] == value, key


@pytest.mark.parametrize(("max_images", "judges"), [(600, 60), (400, 50), (240, 30), (120, 15), (60, 7)])
def test_many_judges_do_not_take_more_images_than_there_are(
    new_black_box: Callable[..., Any], dim_slices: Slices, max_images: int, judges: int
) -> None:
    eight = [pieces[0] for pieces in dim_slices(8, per_patient=1).values()]
    slices = {f"patient {n}": [replace(eight[n % 8], patient=f"patient {n}")] for n in range(60)}
    black_box = new_black_box()
    settings = replace(SETTINGS, max_images=max_images, curve_slices=2, batch_size=4)
    result = adapt(black_box, slices, settings)
    assert black_box.images_queried <= max_images
    assert result.comparison is not None
    assert result.comparison.count == len(result.scores.candidate) == judges


def _trained_on(adapter: Adapter, patients: Sequence[str]) -> ServedAdapter[Adapter]:
    record = {
        "seen_patients": [patient_hash(patient) for patient in patients],
        "fingerprint": "of what is served",
    }
    return ServedAdapter(adapter, record)


def test_a_plan_says_what_the_result_depends_on(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices, black_box = dim_slices(6), new_black_box()
    plan = plan_adaptation(black_box, slices, OURS)
    assert sorted(plan.split.patients) == sorted(slices)
    assert [len(group) for group in plan.split.groups] == [2, 2, 1, 1]
    assert black_box.images_queried == 0
    assert plan_adaptation(new_black_box(), slices, OURS).fingerprint == plan.fingerprint
    assert plan_adaptation(new_black_box(), slices, DEFAULT).fingerprint != plan.fingerprint
    result = adapt(black_box, slices, OURS, plan)
    assert result.record["fingerprint"] == plan.fingerprint
    assert {key: result.record[key] for key in plan.facts} == plan.facts
    assert _same(result, adapt(new_black_box(), slices, OURS))


def _last_run(result: Adaptation, settings: AdaptationSettings) -> list[float]:
    """Dice at the points of the last run's curve."""
    return [point.dice for point in result.curve[-settings.curve_points - 1 :]]


def test_training_continues_from_the_served_adapter_which_new_patients_judge_too(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    slices, black_box = dim_slices(6), new_black_box()
    first = adapt(new_black_box(), {patient: slices[patient] for patient in list(slices)[:4]}, SETTINGS)
    served = ServedAdapter(first.adapter, first.record)
    settings = replace(SETTINGS, seed=1, max_images=400)
    result = adapt(black_box, slices, settings, served=served)
    assert result.record["started_from"] == first.record["fingerprint"]
    assert _last_run(result, settings)[0] > 0.8
    new = {patient_hash(patient) for patient in list(slices)[4:]}
    assert result.scores.served.keys() == new
    assert np.mean(list(result.scores.served.values())) > 0.8
    # The same slices and clicks for all three.
    against_served = result.record["against_served"]
    assert against_served["before"] == pytest.approx(np.mean(list(result.scores.served.values())))
    assert against_served["after"] == pytest.approx(np.mean([result.scores.candidate[patient] for patient in new]))
    assert result.scores.served_differences.keys() == new
    assert black_box.images_queried <= 400


def test_the_served_adapter_scores_the_same_as_by_itself(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """Unadapted and served, on patients that are new: an identity that is served equals the unadapted model."""
    slices = dim_slices(4)
    result = adapt(new_black_box(), slices, SETTINGS, served=_trained_on(identity_adapter(), []))
    assert result.scores.served == result.scores.unadapted


def test_those_whom_the_served_adapter_knows_do_not_judge_it_nor_what_went_on_from_it(
    new_black_box: Callable[..., Any], dim_slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold starts from it only if it knows none of the fold's held-out patients."""
    slices = dim_slices(6)
    first = adapt(new_black_box(), slices, SETTINGS)
    starts: list[tuple[str, set[str], bool]] = []
    plain = part_training.train_visual_prompt

    def train(*given: Any) -> Any:
        trained = bool(given[1].state_dict()["constant"].any())
        starts.append((given[6], {piece.patient for piece in given[2].slices}, trained))
        return plain(*given)

    monkeypatch.setattr(part_training, "train_visual_prompt", train)
    everyone = adapt(new_black_box(), slices, SETTINGS, served=_trained_on(first.adapter, list(slices)))
    assert everyone.record["against_served"] is None
    assert everyone.scores.served == {}
    assert [(run, trained) for run, _, trained in starts] == [("fold 1", False), ("fold 2", False), ("last run", True)]
    held_out = set(slices) - starts[0][1]
    starts.clear()
    adapt(new_black_box(), slices, SETTINGS, served=_trained_on(first.adapter, sorted(set(slices) - held_out)))
    assert [trained for _, _, trained in starts] == [True, False, True]


@pytest.mark.parametrize("other", [{"visual_prompt": "concat"}, {"visual_prompt": "basis"}], ids=str)
def test_from_an_adapter_of_another_kind_it_does_not_go_on(
    new_black_box: Callable[..., Any], dim_slices: Slices, other: dict[str, Any]
) -> None:
    slices, settings = dim_slices(3), replace(SETTINGS, max_images=400)
    first = adapt(new_black_box(), slices, replace(settings, **other))
    cold = adapt(new_black_box(), slices, settings)
    made = adapt(new_black_box(), slices, settings, served=_trained_on(first.adapter, list(slices)))
    state = cold.adapter.state_dict()
    assert all(torch.equal(made.adapter.state_dict()[key], value) for key, value in state.items())


def test_who_watches_is_shown_the_candidate(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """Not the runs that only judge."""
    shown: list[tuple[int, Adapter]] = []
    settings = replace(SETTINGS, max_images=900)
    result = adapt(
        new_black_box(), dim_slices(3), settings, callback=lambda images, adapter: shown.append((images, adapter))
    )
    assert len(shown) == settings.curve_points + 2
    assert [images for images, _ in shown[:-1]] == [
        point.images for point in result.curve[-settings.curve_points - 1 :]
    ]
    assert shown[-1][1] is result.adapter
    assert shown[0][0] > 450  # After the folds.


def test_a_model_that_is_exchanged_under_its_name_is_noticed(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between what it answered for the check and the end; nothing is published, and the mixed log is gone."""
    log = tmp_path / "training.jsonl"
    settings = replace(SETTINGS, max_images=300)
    black_box = new_black_box()
    able = replace(black_box.capabilities, resends=True)
    monkeypatch.setattr(type(black_box), "capabilities", property(lambda _: able))
    unchanged = adapt(black_box, dim_slices(5), settings, log=log)
    assert unchanged.record["black_box_images"] == black_box.images_queried <= 300
    assert log.exists()
    again = new_black_box()
    answer = again._segment
    monkeypatch.setattr(again, "_segment", lambda images, prompts: 1 - answer(images, prompts))
    with pytest.raises(BapsError, match="was replaced during the training"):
        adapt(again, dim_slices(5), settings, log=log)
    assert not log.exists()
