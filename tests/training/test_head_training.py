"""The head is trained on the masks of cheap black boxes that make known errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import GRID, OutputHead
from baps.adapters.visual_prompt import build_visual_prompt, load_encoder
from baps.blackbox import BlackBox, Capabilities
from baps.errors import BudgetSpentError
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import LabelledSlice
from baps.imaging.metrics import dice
from baps.imaging.windowing import Window
from baps.prompts import Prompt
from baps.training.batches import Batches
from baps.training.head_training import Answers, _at_grid, collect_answers, train_head
from baps.training.query_log import QueryLog

Slices = Callable[..., dict[str, list[LabelledSlice]]]
Mistake = Callable[[NDArray[np.bool_], Prompt], NDArray[np.bool_]]
SIDE = 64
_WINDOW = Window(0, 255)


class FaultyBlackBox(BlackBox):
    """Finds the object, which is brighter than the background, and adds an error; ``queries`` records the queries."""

    def __init__(self, mistake: Mistake, clicks: bool = True, boxes: bool = True) -> None:
        super().__init__()
        self._mistake, self._clicks, self._boxes = mistake, clicks, boxes
        self.queries: list[tuple[NDArray[np.uint8], list[Prompt], NDArray[np.float32]]] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            name="mistaken",
            weights_sha256="e" * 64,
            clicks=self._clicks,
            negative_clicks=self._clicks,
            boxes=self._boxes,
            encodings=False,
            batch_size=64,
            input_size=SIDE,
        )

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        targets = ndimage.gaussian_filter(images[..., 0].astype(float), (0, 2, 2)) > 72
        masks = [self._mistake(target, prompt) for target, prompt in zip(targets, prompts, strict=True)]
        answers = (0.02 + 0.96 * np.stack(masks)).astype(np.float32)
        self.queries.append((images.copy(), list(prompts), answers))
        return answers


def dilate(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    return ndimage.binary_dilation(target, iterations=4)


def erode(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    return ndimage.binary_erosion(target, iterations=3)


def ignores_left_half(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    """Add the left half of the image, whatever the prompt."""
    return target | (np.arange(SIDE) < SIDE // 2)


def correct(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    return target


def _batches(dim_slices: Slices, cells: int = 8, seed: int = 0, patients: int = 1) -> Batches:
    """Make four slices with the organ in each cell, of some patients. With one patient a head is always kept."""
    pieces = [piece for pieces in dim_slices(cells, side=SIDE, seed=seed).values() for piece in pieces]
    pieces = [replace(piece, patient=f"patient {number % patients}") for number, piece in enumerate(pieces)]
    return Batches(pieces, load_encoder("statistics", ""))


def _collect(
    black_box: BlackBox,
    batches: Batches,
    images: int = 120,
    kind: str = "click",
    seed: int = 0,
    query_log: QueryLog | None = None,
) -> Answers:
    plain = build_visual_prompt("basis")
    return collect_answers(
        black_box, plain, batches, kind, images, seed, query_log or QueryLog(None, {}, black_box), "run"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["click", "box"])
@pytest.mark.parametrize("mistake", [dilate, erode], ids=["too wide", "too narrow"])
def test_systematic_error_is_corrected(dim_slices: Slices, mistake: Mistake, kind: str) -> None:
    """Dice improves on slices that the head was not trained on."""
    black_box, batches, test_batches = FaultyBlackBox(mistake), _batches(dim_slices), _batches(dim_slices, seed=1)
    head = train_head(batches, _collect(black_box, batches, kind=kind), 0)
    assert head is not None
    plain, headed = Adapter(build_visual_prompt("basis")), Adapter(build_visual_prompt("basis"), head)
    before = score_slices(black_box, plain, test_batches.slices, kind, 5, 1)
    after = score_slices(black_box, headed, test_batches.slices, kind, 5, 1)
    assert before.mean() < 0.75
    assert after.mean() > 0.9
    assert (after > before).mean() > 0.95


def test_head_applies_background_clicks_that_the_black_box_ignores(dim_slices: Slices) -> None:
    """Mask and image are the same, so only the clicks decide: the head must have learned from corrections."""
    black_box, batches, test_batches = FaultyBlackBox(_all_bright), _pairs(0), _pairs(1)
    answers = _collect(black_box, batches, images=240)
    assert any(prompt.negative for prompt in answers.prompts)
    adapter = Adapter(build_visual_prompt("basis"), train_head(batches, answers, 0))
    left, right_one = (16.0, 32.0), (48.0, 32.0)
    kept_heads, dropped = [], []
    for piece in test_batches.slices:
        inside, outside = (left, right_one) if piece.target[32, 16] else (right_one, left)
        pixels, prompts = piece.image[None], [Prompt((inside,), (outside,))]
        answer = black_box.segment(pixels, prompts)
        refined = adapter.refine_masks(adapter.crop(pixels, prompts), answer)[0] > 0.5
        kept_heads.append(dice(refined, piece.target))
        dropped.append(not refined[int(outside[1]), int(outside[0])])
        assert dice(answer[0] > 0.5, piece.target) < 0.8
    assert np.mean(kept_heads) > 0.9
    assert all(dropped)


def _all_bright(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    """Segment all bright pixels, whatever the click."""
    return target


def _pairs(seed: int) -> Batches:
    """Make slices with two equal discs, one of which is the object."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pieces = []
    for number in range(16):
        discs = [(rows - 32) ** 2 + (columns - x) ** 2 < random.uniform(8, 11) ** 2 for x in (16, 48)]
        grey = np.where(discs[0] | discs[1], 105, 40) + random.normal(0, 4, (SIDE, SIDE))
        image = np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        pieces.append(LabelledSlice("one", image, discs[number % 2], _WINDOW))
    return Batches(pieces, load_encoder("statistics", ""))


@pytest.mark.slow
def test_head_that_helps_held_back_patients_is_kept(dim_slices: Slices) -> None:
    black_box, batches = FaultyBlackBox(dilate), _batches(dim_slices, patients=4)
    test_batches = _batches(dim_slices, seed=1)
    head = train_head(batches, _collect(black_box, batches, 60), 0)
    assert head is not None
    adapter = Adapter(build_visual_prompt("basis"), head)
    assert score_slices(black_box, adapter, test_batches.slices, "click", 5, 1).mean() > 0.85


def test_head_that_does_not_help_is_dropped(dim_slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct masks cannot be improved, whatever the head has learned."""
    monkeypatch.setattr("baps.training.head_training._STEPS", 15)
    batches = _batches(dim_slices, patients=2)
    answers = _collect(FaultyBlackBox(correct), batches, 40)
    targets = _at_grid(torch.from_numpy(np.stack([batches.slices[row].target for row in answers.rows])).float())
    perfect = replace(answers, probability=(255 * targets).round().to(torch.uint8).numpy())
    assert train_head(batches, perfect, 0) is None


def test_correct_masks_are_not_changed(dim_slices: Slices) -> None:
    black_box, batches, test_batches = FaultyBlackBox(correct), _batches(dim_slices), _batches(dim_slices, seed=1)
    adapter = Adapter(build_visual_prompt("basis"), train_head(batches, _collect(black_box, batches), 0))
    before = score_slices(black_box, None, test_batches.slices, "click", 5, 1)
    after = score_slices(black_box, adapter, test_batches.slices, "click", 5, 1)
    assert before.mean() > 0.9
    assert after.mean() > before.mean() - 0.02


@pytest.mark.parametrize("images", [1, 2, 3, 7, 32, 33, 64, 100, 129, 200])
@pytest.mark.parametrize("kind", ["click", "box"])
def test_all_allowed_images_are_queried(dim_slices: Slices, images: int, kind: str) -> None:
    """If a black box is always wrong, every correction is needed."""
    black_box, batches = FaultyBlackBox(ignores_left_half), _batches(dim_slices)
    black_box.budget = images
    answers = _collect(black_box, batches, images, kind)
    assert black_box.images_queried == images == len(answers.rows) == len(answers.prompts)
    assert answers.probability.shape == (images, GRID, GRID)
    clicks = [len(prompt.positive) + len(prompt.negative) + (prompt.box is not None) for prompt in answers.prompts]
    assert [clicks.count(n) for n in range(2, 6)] == [images >> level for level in range(2, 6)]
    assert max(clicks) <= 5


def test_every_slice_is_queried_once_per_epoch(dim_slices: Slices) -> None:
    batches = _batches(dim_slices)
    answers = _collect(FaultyBlackBox(correct), batches, 60)
    first = [row for row, prompt in zip(answers.rows, answers.prompts, strict=True) if not prompt.negative][:32]
    assert sorted(first) == list(range(32))


def test_correct_masks_get_no_corrections(dim_slices: Slices) -> None:
    batches = _batches(dim_slices)
    black_box = FaultyBlackBox(correct)
    for row, piece in enumerate(batches.slices):  # So that the mask is exact to the pixel.
        image = np.where(piece.target, 200, 0).astype(np.uint8)
        batches.slices[row] = replace(piece, image=np.repeat(image[..., None], 3, axis=-1))  # type: ignore[index, arg-type]
    black_box._segment = lambda images, prompts: (images[..., 0] > 100).astype(np.float32)  # type: ignore[method-assign]
    answers = _collect(black_box, batches, 100)
    assert len(answers.rows) == 100 - (25 + 12 + 6 + 3)
    assert all(len(prompt.positive) + (prompt.box is not None) == 1 for prompt in answers.prompts)


@pytest.mark.parametrize("mistake", [dilate, erode, ignores_left_half])
def test_corrections_are_where_the_mask_was_wrong(dim_slices: Slices, mistake: Mistake) -> None:
    """Each correction is on a missed or wrong region, and the previous prompt was queried before."""
    batches = _batches(dim_slices)
    answers = _collect(FaultyBlackBox(mistake), batches, 100)
    queried = dict(zip(zip(answers.rows, answers.prompts, strict=True), answers.probability, strict=True))
    corrections = 0
    for row, prompt in zip(answers.rows, answers.prompts, strict=True):
        shorter = [
            replace(prompt, positive=prompt.positive[:-1]) if len(prompt.positive) > 1 or prompt.box else None,
            replace(prompt, negative=prompt.negative[:-1]) if prompt.negative else None,
        ]
        before = [first for first in shorter if first and first != prompt and (row, first) in queried]
        if len(prompt.positive) + len(prompt.negative) + (prompt.box is not None) == 1:
            continue
        corrections += 1
        assert before
        target = batches.slices[row].target
        wrong = []
        for first in before:
            answered = queried[row, first] > 127
            (x, y) = prompt.negative[-1] if len(first.negative) < len(prompt.negative) else prompt.positive[-1]
            is_negative = len(first.negative) < len(prompt.negative)
            cell = answered[int(y), int(x)]
            wrong.append(
                bool(cell and not target[int(y), int(x)] if is_negative else target[int(y), int(x)] and not cell)
            )
        assert any(wrong)
    assert corrections == 25 + 12 + 6 + 3


@pytest.mark.parametrize(("kind", "boxes"), [("click", 0.25), ("box", 0.75)])
def test_a_quarter_of_the_first_prompts_is_of_the_other_kind(dim_slices: Slices, kind: str, boxes: float) -> None:
    answers = _collect(FaultyBlackBox(ignores_left_half), _batches(dim_slices), 200, kind)
    first = [p for p in answers.prompts if len(p.positive) + len(p.negative) + (p.box is not None) == 1]
    assert np.mean([prompt.box is not None for prompt in first]) == pytest.approx(boxes, abs=0.01)


def test_black_box_for_boxes_gets_boxes_only(dim_slices: Slices) -> None:
    black_box, batches = FaultyBlackBox(dilate, clicks=False), _batches(dim_slices)
    answers = _collect(black_box, batches, 50, "box")
    assert black_box.images_queried == len(answers.rows) == 50
    assert all(p.box and not p.positive and not p.negative for p in answers.prompts)
    adapter = Adapter(build_visual_prompt("basis"), train_head(batches, answers, 0))
    before, after = (score_slices(black_box, first, batches.slices, "box", 5, 1).mean() for first in (None, adapter))
    assert after > before + 0.15


def test_black_box_for_clicks_gets_clicks_only(dim_slices: Slices) -> None:
    answers = _collect(FaultyBlackBox(dilate, boxes=False), _batches(dim_slices), 60)
    assert len(answers.rows) == 60
    assert all(prompt.box is None for prompt in answers.prompts)


def test_masks_are_stored_on_the_grid_with_their_prompts(dim_slices: Slices) -> None:
    black_box, batches = FaultyBlackBox(ignores_left_half), _batches(dim_slices)
    answers = _collect(black_box, batches, 100)
    queried = [
        (prompt, answer)
        for _, prompts, masks in black_box.queries
        for prompt, answer in zip(prompts, masks, strict=True)
    ]
    assert [prompt for prompt, _ in queried] == answers.prompts
    np.testing.assert_array_equal(answers.probability, np.round(255 * np.stack([answer for _, answer in queried])))
    images = np.concatenate([images for images, _, _ in black_box.queries])
    np.testing.assert_array_equal(images, np.stack([batches.slices[row].image for row in answers.rows]))


def test_adapted_images_are_queried_and_original_ones_are_trained_on(dim_slices: Slices) -> None:
    batches, black_box = _batches(dim_slices), FaultyBlackBox(dilate)
    brighter = build_visual_prompt("basis")
    with torch.no_grad():
        brighter.head.bias.view(3, 4)[:, 0] = 0.1  # type: ignore[union-attr, operator]
    answers = collect_answers(black_box, brighter, batches, "click", 8, 0, QueryLog(None, {}, black_box), "run")
    original = np.stack([batches.slices[row].image for row in answers.rows]).astype(int)
    queried_images = np.concatenate([images for images, _, _ in black_box.queries]).astype(int)
    assert set((queried_images - original).ravel().tolist()) <= {25, 26}  # A tenth of white is 25.5 grey levels.


def test_result_depends_on_the_seed(dim_slices: Slices) -> None:
    batches = _batches(dim_slices)
    first, same, second = (_collect(FaultyBlackBox(ignores_left_half), batches, 60, seed=seed) for seed in (1, 1, 2))
    assert (first.rows, first.prompts) == (same.rows, same.prompts)
    np.testing.assert_array_equal(first.probability, same.probability)
    assert first.prompts != second.prompts


def _state(head: OutputHead | None) -> dict[str, torch.Tensor]:
    assert head is not None
    return {key: value.clone() for key, value in head.state_dict().items()}


def test_head_depends_on_the_masks_and_the_seed_only(dim_slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.training.head_training._STEPS", 5)
    batches = _batches(dim_slices)
    answers = _collect(FaultyBlackBox(dilate), batches, 40)
    heads = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # The global random state must not matter.
        heads.append(_state(train_head(batches, answers, seed)))
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
    assert not all(torch.equal(heads[0][key], heads[2][key]) for key in heads[0])


@pytest.mark.parametrize("count", [1, 2, 9])
def test_training_runs_with_few_masks(dim_slices: Slices, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.training.head_training._STEPS", 5)
    batches = _batches(dim_slices, 1)
    head = train_head(batches, _collect(FaultyBlackBox(dilate), batches, count), 0)
    assert head is not None
    assert not head.training
    assert all(bool(torch.isfinite(value).all()) for value in head.state_dict().values())


@pytest.mark.parametrize("budget", [0, 32, 64, 80])
def test_head_from_the_query_log_is_identical(
    dim_slices: Slices, tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds whenever it was interrupted; masks of the log are not queried again."""
    monkeypatch.setattr("baps.training.head_training._STEPS", 8)
    batches, log = _batches(dim_slices), tmp_path / "log.jsonl"
    unbroken = _collect(FaultyBlackBox(ignores_left_half), batches, 150)
    broken, rest = FaultyBlackBox(ignores_left_half), FaultyBlackBox(ignores_left_half)
    broken.budget = budget
    query_log = QueryLog(log, {}, broken)
    with pytest.raises(BudgetSpentError):
        _collect(broken, batches, 150, query_log=query_log)
    query_log.close()
    query_log = QueryLog(log, {}, rest)
    again = _collect(rest, batches, 150, query_log=query_log)
    query_log.close()
    assert query_log.replayed_images == broken.images_queried
    assert rest.images_queried == 150 - broken.images_queried
    assert (again.rows, again.prompts) == (unbroken.rows, unbroken.prompts)
    np.testing.assert_array_equal(again.probability, unbroken.probability)
    first, second = (_state(train_head(batches, answers, 0)) for answers in (unbroken, again))
    assert all(torch.equal(first[key], second[key]) for key in first)
