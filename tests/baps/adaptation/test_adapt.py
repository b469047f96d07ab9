"""Adaptation end to end on a cheap black box that a brighter image helps."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baps.adaptation.adapt import Adaptation, ProgressReport, adapt
from baps.adaptation.cases import LabelledSlice
from baps.adaptation.scoring import score_slices
from baps.adaptation.settings import AdaptationSettings
from baps.adaptation.splitting import patient_hash, split_patients
from baps.blackbox import BlackBox
from baps.errors import BudgetSpentError, InputError
from baps.visual_prompt import image_statistics

Slices = Callable[..., dict[str, list[LabelledSlice]]]
SETTINGS = AdaptationSettings(
    max_images=1200, batch=8, curve_points=2, curve_slices=4, click_sets=2, check_slices=3, rate=0.05
)


def _same(one: Adaptation, other: Adaptation) -> bool:
    first, second = one.visual_prompt.state_dict(), other.visual_prompt.state_dict()
    differ = ("seconds", "recalled_images")
    records = [{key: value for key, value in made.record.items() if key not in differ} for made in (one, other)]
    return all(torch.equal(first[key], second[key]) for key in first) and records[0] == records[1]


def test_it_helps_patients_that_were_held_back(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(6)
    black_box = new_black_box()
    result = adapt(black_box, slices, SETTINGS)
    assert result.verdict is not None
    assert result.verdict.better
    assert result.verdict.before < 0.1
    assert result.verdict.after > 0.8
    assert result.verdict.gain > 0.7
    assert result.record["check"] == "held back"
    assert result.curve[-1].dice > result.curve[0].dice + 0.5


@pytest.mark.parametrize("patients", [1, 3, 5])
def test_images_asked_stay_within_the_bound(
    new_black_box: Callable[..., Any], dim_slices: Slices, patients: int
) -> None:
    black_box = new_black_box()
    result = adapt(black_box, dim_slices(patients), replace(SETTINGS, max_images=700))
    assert 500 < black_box.images_asked <= 700
    assert result.record["black_box_images"] == black_box.images_asked


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
    with pytest.raises(InputError, match="left for a training run"):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=20))
    assert black_box.budget == 5000


def test_patients_held_back_are_asked_in_the_check_alone(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """Every patient's organ lies in a cell of its own, so a click tells whose slice was asked."""
    slices = dim_slices(6)
    (judge,) = split_patients(slices).held_back
    black_box = new_black_box()
    adapt(black_box, slices, SETTINGS)
    judged = []
    for _, prompts in black_box.asked:
        for prompt in prompts:
            ((x, y),) = prompt.positive
            if any(piece.truth[int(y), int(x)] for piece in slices[judge]):
                judged.append(prompt)
    # Three slices, two sets of clicks, with and without the adapter; other clicks than the training curve has.
    again = new_black_box()
    for _ in range(2):
        score_slices(again, None, [slices[judge][row] for row in (0, 2, 3)], "click", SETTINGS.seed + 1, 2)
    assert judged == [prompt for _, prompts in again.asked for prompt in prompts]
    assert len(judged) == 3 * 2 * 2


def test_three_patients_are_left_out_in_turn(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    told: list[ProgressReport] = []
    result = adapt(new_black_box(), dim_slices(3), replace(SETTINGS, max_images=2500), progress=told.append)
    assert result.record["check"] == "leave one out"
    assert result.verdict is not None
    assert (result.verdict.unit, result.verdict.count) == ("patient", 3)
    assert result.verdict.better
    assert result.record["held_back_patients"] == []
    assert len(result.record["training_patients"]) == 3  # type: ignore[arg-type]
    # Three runs for the check and one on everyone.
    shares = [now.step / now.steps for now in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [now.images for now in told] == sorted(now.images for now in told)
    assert 0 <= told[0].dice <= 1


def test_the_candidate_of_few_patients_is_trained_on_all(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """The curve is that of the last run, whose slices are those of both patients."""
    slices = dim_slices(2, each=2)
    black_box = new_black_box()
    result = adapt(black_box, slices, replace(SETTINGS, max_images=600, curve_slices=100))
    assert result.curve[0].images == 4


def test_one_patient_is_not_judged(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    result = adapt(new_black_box(), dim_slices(1), replace(SETTINGS, max_images=500))
    assert result.verdict is None
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
    assert one.verdict == same.verdict
    assert one.curve == same.curve


def test_the_published_method(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    settings = replace(SETTINGS, visual_prompt="concat", condition="click", optimiser="spsa_gc", max_images=300)
    one, same = (adapt(new_black_box(), dim_slices(5), settings) for _ in range(2))
    assert _same(one, same)
    assert (one.visual_prompt.kind, one.visual_prompt.conditioned_on_click) == ("concat", True)
    assert one.verdict is not None


def test_the_record_can_be_kept_and_names_nobody(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
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


def test_the_record_of_a_single_judged_slice_is_json(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    result = adapt(new_black_box(), dim_slices(5, each=1), replace(SETTINGS, max_images=300))
    assert result.verdict is not None
    assert result.verdict.count == 1
    json.dumps(result.record, allow_nan=False)


def test_roles_are_remembered(new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    settings = replace(SETTINGS, max_images=400)
    first = adapt(new_black_box(), dim_slices(5), settings, memory)
    second = adapt(new_black_box(), dim_slices(8), settings, memory)
    assert set(first.record["held_back_patients"]) <= set(second.record["held_back_patients"])  # type: ignore[call-overload]
    assert set(first.record["training_patients"]) <= set(second.record["training_patients"])  # type: ignore[call-overload]


def test_nothing_to_train_on(new_black_box: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no labels to train on"):
        adapt(new_black_box(), {}, SETTINGS)


def test_a_black_box_that_fails_gives_its_budget_back(
    new_black_box: Callable[..., Any], dim_slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    black_box = new_black_box()

    def fail(*_: object) -> None:
        raise BudgetSpentError("no more")

    monkeypatch.setattr(black_box, "_segment", fail)
    with pytest.raises(BudgetSpentError):
        adapt(black_box, dim_slices(5), SETTINGS)
    assert black_box.budget is None


def test_on_the_bundled_black_box(bundled: BlackBox, dim_slices: Slices) -> None:
    """Few steps on the real thing: it runs, counts, and changes images within their range."""
    slices = dim_slices(2, each=2, side=bundled.capabilities.input_side)
    before = bundled.images_asked
    result = adapt(bundled, slices, replace(SETTINGS, batch=2, max_images=120, curve_slices=2))
    assert 0 < bundled.images_asked - before <= 120
    assert result.verdict is not None
    piece = slices["patient 0"][0]
    pixels = torch.from_numpy(piece.image[None]).permute(0, 3, 1, 2).float()
    prompts = []
    changed = result.visual_prompt.change(pixels, image_statistics(pixels), prompts)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
    assert not torch.equal(changed, pixels)
    assert score_slices(bundled, result.visual_prompt, [piece], "click", 0, 1).shape == (1, 1)


def test_a_smaller_budget_of_the_black_box_holds(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 100
    with pytest.raises(BudgetSpentError):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=400))
    assert black_box.images_asked <= 100


class _PowerCutError(Exception):
    """Stands for whatever ends a process in the middle."""


def _cut_after(black_box: Any, batches: int) -> Any:
    """The black box, which fails after so many batches."""
    segment = black_box._segment

    def until_then(*batch: object) -> object:
        if len(black_box.asked) == batches:
            raise _PowerCutError
        return segment(*batch)

    black_box._segment = until_then
    return black_box


OURS = replace(SETTINGS, max_images=400)
PUBLISHED = replace(OURS, visual_prompt="concat", condition="click", optimiser="spsa_gc")


@pytest.mark.parametrize("share", ["nothing", "one batch", "a third", "most", "all but one batch"])
@pytest.mark.parametrize("patients", [1, 3, 5])
@pytest.mark.parametrize("settings", [OURS, PUBLISHED], ids=["ours", "published"])
def test_an_adaptation_that_was_broken_off_goes_on(
    new_black_box: Callable[..., Any],
    dim_slices: Slices,
    tmp_path: Path,
    settings: AdaptationSettings,
    patients: int,
    share: str,
) -> None:
    slices = dim_slices(patients)
    first = new_black_box()
    unbroken = adapt(first, slices, settings)
    all_batches = len(first.asked)
    batches = {"nothing": 0, "one batch": 1, "a third": all_batches // 3, "most": all_batches * 4 // 5}
    broken, rest, log = new_black_box(), new_black_box(), tmp_path / "log.jsonl"
    with pytest.raises(_PowerCutError):
        adapt(_cut_after(broken, batches.get(share, all_batches - 1)), slices, settings, log=log)
    assert broken.budget is None
    result = adapt(rest, slices, settings, log=log)
    assert _same(result, unbroken)
    assert result.verdict == unbroken.verdict
    assert result.curve == unbroken.curve
    assert result.record["black_box_images"] == first.images_asked <= settings.max_images
    recalled = result.record["recalled_images"]
    assert rest.images_asked == first.images_asked - recalled  # type: ignore[operator]
    assert 0 <= broken.images_asked - recalled <= 16  # type: ignore[operator]  # The answer that was cut off.
    # What is asked is, to the pixel and the click, what an unbroken run asks from there on.
    for (images, prompts), (same_images, same_prompts) in zip(
        reversed(rest.asked), reversed(first.asked), strict=False
    ):
        np.testing.assert_array_equal(images, same_images)
        assert prompts == same_prompts


def test_an_adaptation_that_is_broken_off_again_and_again_ends(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    slices, settings = dim_slices(3), replace(OURS, max_images=300)
    unbroken = adapt(new_black_box(), slices, settings)
    for _ in range(100):
        try:
            result = adapt(_cut_after(new_black_box(), 7), slices, settings, log=tmp_path / "log.jsonl")
            break
        except _PowerCutError:
            pass
    assert _same(result, unbroken)
    assert result.record["black_box_images"] == unbroken.record["black_box_images"]


def test_an_adaptation_that_is_done_already_asks_nothing(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path
) -> None:
    first, second = new_black_box(), new_black_box()
    second.budget = 0
    told: list[ProgressReport] = []
    result = adapt(first, dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    again = adapt(second, dim_slices(5), OURS, log=tmp_path / "log.jsonl", progress=told.append)
    assert _same(result, again)
    assert (second.images_asked, again.record["recalled_images"]) == (0, first.images_asked)
    assert [now.images for now in told] == sorted(now.images for now in told)
    assert told[-1].step == told[-1].steps


def test_keeping_a_log_changes_nothing(new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path) -> None:
    kept = adapt(new_black_box(), dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    assert kept.record["recalled_images"] == 0
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
    before = black_box.images_asked
    result = adapt(black_box, dim_slices(5), OURS, log=tmp_path / "log.jsonl")
    assert set(limits) == {before + OURS.max_images - result.record["recalled_images"]}  # type: ignore[operator]


@pytest.mark.parametrize("change", ["seed", "rate", "max_images", "pixel", "truth", "patient", "owner", "black box"])
def test_another_adaptation_does_not_go_on_from_the_log(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path, change: str
) -> None:
    slices, settings, log = dim_slices(3), replace(OURS, max_images=300), tmp_path / "log.jsonl"
    with pytest.raises(_PowerCutError):
        adapt(_cut_after(new_black_box(), 20), slices, settings, log=log)
    black_box = new_black_box()
    piece = slices["patient 1"][2]
    if change in ("seed", "rate", "max_images"):
        settings = replace(settings, **{change: {"seed": 1, "rate": 0.04, "max_images": 320}[change]})  # type: ignore[arg-type]
    elif change == "pixel":
        piece.image[31, 31] ^= 1
    elif change == "truth":
        piece.truth[31, 31] ^= True
    elif change == "patient":
        slices["somebody else"] = slices.pop("patient 1")
    elif change == "owner":  # The same slices in the same order, but the last of one patient is another's.
        one, other = sorted(slices)[:2]
        slices[other].insert(0, slices[one].pop())
    else:
        black_box._capabilities = replace(black_box.capabilities, weights_sha256="c" * 64)
    result = adapt(black_box, slices, settings, log=log)
    assert result.record["recalled_images"] == 0
    assert black_box.images_asked == result.record["black_box_images"]
    if change != "black box":
        assert _same(result, adapt(new_black_box(), slices, settings))


_KILLED = """
import json, pickle, sys, time
from pathlib import Path
import torch
from conftest import BrightnessBlackBox
from baps.adaptation.adapt import adapt
folder = Path(sys.argv[1])
slices, settings = pickle.loads((folder / "job").read_bytes())
black_box = BrightnessBlackBox()
black_box.wait = lambda: time.sleep(0.03)
made = adapt(black_box, slices, settings, log=folder / "log.jsonl")
torch.save(made.visual_prompt.state_dict(), folder / "state")
(folder / "record").write_text(json.dumps(made.record))
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [OURS, PUBLISHED], ids=["ours", "published"])
def test_an_adaptation_survives_kill_9(
    new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path, settings: AdaptationSettings
) -> None:
    slices = dim_slices(3)
    unbroken = adapt(new_black_box(), slices, settings)
    (tmp_path / "job").write_bytes(pickle.dumps((slices, settings)))
    log, tests = tmp_path / "log.jsonl", Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (tests, tests.parent / "apps" / "baps_app")))
    moments = random.Random(0)  # noqa: S311

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _KILLED, str(tmp_path)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})

    kills = 0
    for _ in range(4):
        size = log.stat().st_size if log.exists() else 0
        with start() as process:
            while process.poll() is None and not (log.exists() and log.stat().st_size > size + 200):
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
        kills += process.returncode == -9
    assert kills == 4
    assert not (tmp_path / "record").exists()
    with start() as process:
        assert process.wait() == 0
    record, state = json.loads((tmp_path / "record").read_text()), torch.load(tmp_path / "state")
    wanted = unbroken.visual_prompt.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert record["recalled_images"] > 0
    for key, value in unbroken.record.items():
        assert key in ("seconds", "recalled_images") or record[key] == value, key


@pytest.mark.parametrize(("max_images", "judges"), [(400, 12), (240, 12), (120, 10), (60, 5)])
def test_many_judges_do_not_take_more_images_than_there_are(
    new_black_box: Callable[..., Any], dim_slices: Slices, max_images: int, judges: int
) -> None:
    eight = [pieces[0] for pieces in dim_slices(8, each=1).values()]
    slices = {f"patient {n}": [replace(eight[n % 8], patient=f"patient {n}")] for n in range(60)}
    black_box = new_black_box()
    settings = replace(SETTINGS, max_images=max_images, curve_slices=2, batch=4)
    result = adapt(black_box, slices, settings)
    assert black_box.images_asked <= max_images
    assert len(result.record["held_back_patients"]) == 12  # type: ignore[arg-type]
    assert result.verdict is not None
    assert result.verdict.count == judges
