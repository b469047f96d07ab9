from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters import click_consistency
from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import BlackBox, Encoding
from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.evaluate import CLICK_SEEDS, Evaluation, InteractiveScores, evaluate
from baps.imaging.canvas import AXES, Canvas, Plane
from baps.imaging.metrics import dice
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import choose_window
from baps.io import read_volume, write_nifti
from baps.prompts import Prompt

Phantom = tuple[Volume, NDArray[np.bool_]]
NewBox = Callable[..., Any]


@pytest.fixture
def new_cases(tmp_path: Path, new_phantom: Callable[..., Phantom]) -> Callable[..., list[Case]]:
    """Writes a phantom to disk whose ball is label 1 on the left and, with ``labels=2``, label 2 on the right."""

    def make(
        name: str = "one", labels: int = 1, shape: tuple[int, int, int] = (40, 36, 12), **phantom: Any
    ) -> list[Case]:
        volume, ball = new_phantom(shape=shape, **phantom)
        voxels = ball.astype(np.uint8)
        if labels == 2:
            voxels[shape[0] // 2 :] *= 2
        write_nifti(tmp_path / f"{name}.nii.gz", volume)
        write_nifti(tmp_path / f"{name}_label.nii.gz", Volume(voxels, volume.affine))
        files = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz"
        return [Case(*files, value, name) for value in range(1, labels + 1)]

    return make


def _moved(kind: str, condition: str, head: OutputHead | None = None) -> Adapter:
    """An adapter that changes images."""
    visual_prompt = build_visual_prompt(kind, condition=condition)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in visual_prompt.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Adapter(visual_prompt, head)


def _prompts(black_box: Any) -> list[Prompt]:
    return [prompt for _, prompts in black_box.queries for prompt in prompts]


def test_the_mean_goes_over_labels_and_then_over_cases() -> None:
    """Case a has two labels, b one: each case counts alike, so a mean over labels would be another (0.5)."""
    dice = {"a": {1: [0.1] * 5, 2: [0.5] * 5}, "b": {1: [0.9] * 5}}
    evaluation = Evaluation(dice, {}, 0)
    assert evaluation.by_case == pytest.approx({"a": 0.3, "b": 0.9})
    assert evaluation.mean == pytest.approx(0.6)
    assert evaluation.std == pytest.approx(0)


def test_the_spread_is_that_of_the_mean_over_the_sets_of_clicks() -> None:
    first = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert Evaluation({"a": {1: first}}, {}, 0).std == pytest.approx(np.std(first))
    # What one case gains with other clicks, the other loses.
    assert Evaluation({"a": {1: first}, "b": {1: first[::-1]}}, {}, 0).std == pytest.approx(0)
    assert Evaluation({"a": {1: first, 2: [0.0] * 5}}, {}, 0).std == pytest.approx(np.std(first) / 2)
    # Labels first, then cases, as the mean.
    uneven = Evaluation({"a": {1: first, 2: first}, "b": {1: [0.5] * 5}}, {}, 0)
    assert uneven.std == pytest.approx(np.std(first) / 2)


def test_the_record_can_be_kept() -> None:
    evaluation = Evaluation({"a.nii.gz": {1: [0.1] * 5, 2: [0.5] * 5}}, {"b.nii.gz, label 1": "It is broken."}, 120)
    record = evaluation.record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == {
        "mean": pytest.approx(0.3),
        "std": pytest.approx(0),
        "cases": 1,
        "black_box_images": 120,
        "by_case": {"a.nii.gz": pytest.approx(0.3)},
        "by_label": {"a.nii.gz": {"1": pytest.approx(0.1), "2": pytest.approx(0.5)}},
        "skipped": {"b.nii.gz, label 1": "It is broken."},
    }


def test_what_is_measured_is_dice_at_the_voxels(new_cases: Callable[..., list[Case]], new_box_of: NewBox) -> None:
    """A black box that marks the whole canvas: Dice follows from the number of voxels alone."""
    shape = (40, 18, 12)
    (case,) = new_cases(shape=shape, spacing=(1.0, 2.5, 2.0))
    areas = [int(area) for area in _areas(case) if area >= _areas(case).max() / 10]
    assert 2 < len(areas) <= 12
    expected = np.mean([2 * area / (area + shape[0] * shape[1]) for area in areas])
    evaluation = evaluate(new_box_of(lambda image: np.ones(image.shape[:2])), [case])
    assert evaluation.dice == {"one.nii.gz": {1: [pytest.approx(expected)] * CLICK_SEEDS}}
    nothing = evaluate(new_box_of(lambda image: np.zeros(image.shape[:2])), [case])
    assert nothing.mean == 0


def test_a_black_box_that_sees_the_organ_scores_well(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox
) -> None:
    assert evaluate(new_black_box(side=64), new_cases()).mean > 0.9


def test_the_images_that_were_asked_are_counted(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases, black_box = new_cases("long", shape=(40, 36, 60), spacing=(1.0, 1.0, 1.0)), new_black_box()
    evaluate(black_box, cases)
    evaluation = evaluate(black_box, cases)
    assert evaluation.black_box_images == 12 * CLICK_SEEDS  # Twelve slices at the most.
    assert black_box.images_queried == 2 * evaluation.black_box_images


def test_the_same_seed_asks_the_same(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases = new_cases()
    boxes = [new_black_box() for _ in range(3)]
    one, same, other = (evaluate(box, cases, seed=seed) for box, seed in zip(boxes, (4, 4, 5), strict=True))
    assert one == same
    assert _prompts(boxes[0]) == _prompts(boxes[1])
    assert _prompts(boxes[0]) != _prompts(boxes[2])
    assert len(_prompts(boxes[0])) == len(_prompts(boxes[2]))
    assert other.black_box_images == one.black_box_images


def test_the_sets_of_clicks_differ(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    black_box = new_black_box(side=64)
    evaluate(black_box, new_cases())
    for _, prompts in black_box.queries:
        assert len(prompts) == CLICK_SEEDS
        assert len(set(prompts)) > 1


def test_clicks_and_boxes_lie_on_the_organ(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    """The organ is what is bright on the canvas."""
    cases = new_cases(shape=(40, 18, 12), spacing=(1.0, 2.5, 2.0))
    for kind in ("click", "box"):
        black_box = new_black_box(side=64)
        evaluate(black_box, cases, prompt=kind)
        assert black_box.queries
        for images, prompts in black_box.queries:
            for image, prompt in zip(images, prompts, strict=True):
                bright = image[..., 0] > 128
                if kind == "click":
                    ((x, y),) = prompt.positive
                    assert bright[round(y), round(x)]
                    assert prompt.box is None
                else:
                    x0, y0, x1, y1 = prompt.box
                    rows, columns = np.nonzero(bright)
                    assert abs(x0 - columns.min()) < 8
                    assert abs(x1 - columns.max()) < 8
                    assert abs(y0 - rows.min()) < 8
                    assert abs(y1 - rows.max()) < 8


def test_the_clicks_of_a_case_do_not_depend_on_the_others(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox
) -> None:
    one, two = new_cases("one", labels=2), new_cases("two", seed=1, shape=(36, 36, 12))
    alone, together = new_black_box(), new_black_box()
    expected = evaluate(alone, two)
    result = evaluate(together, one + two)
    assert _prompts(together)[-len(_prompts(alone)) :] == _prompts(alone)
    assert result.dice["two.nii.gz"] == expected.dice["two.nii.gz"]
    assert set(result.dice["one.nii.gz"]) == {1, 2}
    assert result.dice == {**evaluate(new_black_box(), one).dice, **expected.dice}


@pytest.mark.parametrize(("kind", "condition"), [("basis", "label"), ("concat", "click")])
def test_both_arms_get_the_same_prompts(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, kind: str, condition: str
) -> None:
    cases, plain, adapted = new_cases(), new_black_box(), new_black_box()
    evaluate(plain, cases)
    evaluate(adapted, cases, _moved(kind, condition))
    assert _prompts(plain) == _prompts(adapted)
    assert not all(
        np.array_equal(one, other) for (one, _), (other, _) in zip(plain.queries, adapted.queries, strict=True)
    )


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["basis", "concat"])
def test_an_untrained_adapter_changes_nothing(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, kind: str, head: bool
) -> None:
    cases, untrained = new_cases(), Adapter(build_visual_prompt(kind), OutputHead().eval() if head else None)
    assert evaluate(new_black_box(), cases, untrained) == evaluate(new_black_box(), cases)


class _Encoding(BlackBox):
    """Another black box, asked through encodings; ``encoded`` keeps the images."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.encoded = inner, []

    @property
    def capabilities(self) -> Any:
        return replace(self.inner.capabilities, encodings=True)

    def _segment(self, images: NDArray[np.uint8], prompts: Any) -> NDArray[np.float32]:
        return self.inner._segment(images, prompts)

    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        self.encoded.append(image)
        return Encoding(image, image.nbytes)

    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        return self.inner._segment(encoding._content[None], [prompt])[0]


@pytest.mark.parametrize("near", [click_consistency._TOLERANCE, 9.0], ids=["violated", "nothing is violated"])
@pytest.mark.parametrize("clicks", [1, 3])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("visual_prompt", [None, ("basis", "label"), ("concat", "label"), ("concat", "click")], ids=str)
def test_with_encodings_it_comes_to_the_same(
    new_cases: Callable[..., list[Case]],
    new_black_box: NewBox,
    lively_head: OutputHead,
    visual_prompt: tuple[str, str] | None,
    head: bool,
    clicks: int,
    near: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(click_consistency, "_TOLERANCE", near)
    cases = new_cases()
    prompt_module = visual_prompt and _moved(*visual_prompt, lively_head if head else None)
    plain, encoding = new_black_box(), _Encoding(new_black_box())
    result = evaluate(plain, cases, prompt_module, clicks=clicks)
    assert result == evaluate(encoding, cases, prompt_module, clicks=clicks)
    assert result.black_box_images == plain.images_queried == encoding.images_queried == len(_prompts(plain))
    assert _prompts(plain) == _prompts(encoding.inner)
    if clicks > 1 and near < 1:  # Where an answer contradicts its clicks, another one is asked for.
        return
    slices = sum(len(one.positive) + len(one.negative) == 1 for one in _prompts(plain)) // CLICK_SEEDS
    assert len(_prompts(plain)) == clicks * slices * CLICK_SEEDS
    by_slice = [
        set(_prompts(plain)[n : n + clicks * CLICK_SEEDS]) for n in range(0, len(_prompts(plain)), clicks * CLICK_SEEDS)
    ]
    images = sum(map(len, by_slice)) if visual_prompt == ("concat", "click") else slices
    assert len(encoding.encoded) == images


@pytest.mark.parametrize("encodings", [False, True])
def test_the_head_corrects_each_answer_for_its_click_and_the_image_as_it_was(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, lively_head: OutputHead, encodings: bool
) -> None:
    cases = new_cases()
    bare, headed = _moved("basis", "label"), _moved("basis", "label", lively_head)
    plain = new_black_box()
    result = evaluate(_Encoding(plain) if encodings else plain, cases, headed)
    assert result != evaluate(new_black_box(), cases, bare)
    volume = read_volume(cases[0].image)
    target = read_volume(cases[0].labels).voxels > 0
    queries = iter(_prompts(plain))
    scores = []
    for index in np.flatnonzero(target.any((0, 1))):
        plane = Plane(AXES["K"], int(index))
        canvas = Canvas.fit(volume, plane, plain.capabilities.input_size)
        prompts = [next(queries) for _ in range(CLICK_SEEDS)]
        image = canvas_image(volume, plane, canvas, choose_window(volume))
        pixels = np.repeat(image[None], CLICK_SEEDS, axis=0)
        answers = new_black_box().segment(bare.transform_images(bare.crop(pixels, prompts)), prompts)
        corrected = headed.refine_masks(headed.crop(pixels, prompts), answers)
        scores.append([dice(canvas.restore(one) > 0.5, plane.extract(target)) for one in corrected])
    assert next(queries, None) is None
    assert result.dice["one.nii.gz"][1] == pytest.approx(np.mean(scores, axis=0))


def test_on_the_bundled_black_box_encodings_come_to_the_same(
    bundled: BlackBox, new_cases: Callable[..., list[Case]], lively_head: OutputHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = new_cases(shape=(40, 36, 5), spacing=(1.0, 1.0, 6.0))
    adapter = _moved("basis", "label", lively_head)
    one = evaluate(bundled, cases, adapter)
    able = bundled.capabilities
    monkeypatch.setattr(type(bundled), "capabilities", property(lambda _: replace(able, encodings=False)))
    other = evaluate(bundled, cases, adapter)
    assert able.encodings
    assert one.black_box_images == other.black_box_images
    np.testing.assert_allclose(one.dice["one.nii.gz"][1], other.dice["one.nii.gz"][1], atol=0.01)


def test_a_change_that_depends_on_the_click_is_made_for_every_click(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox
) -> None:
    cases = new_cases()
    for condition in ("label", "click"):
        black_box = new_black_box(side=64)
        evaluate(black_box, cases, _moved("concat", condition))
        kinds = [len(np.unique(images, axis=0)) for images, _ in black_box.queries]
        clicks = [len(set(prompts)) for _, prompts in black_box.queries]
        assert kinds == ([1] * len(kinds) if condition == "label" else clicks)


def test_one_broken_case_does_not_stop_the_others(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    (good,), (broken,), (second,) = new_cases("good"), new_cases("broken"), new_cases("second", seed=1)
    broken.image.write_bytes(b"rubbish")
    empty = replace(good, value=7)
    nowhere = replace(second, annotated_slices=frozenset({0}))
    reports: list[tuple[int, int]] = []
    cases = [broken, good, empty, nowhere, second]
    evaluation = evaluate(new_black_box(), cases, progress=lambda *now: reports.append(now))
    assert set(evaluation.dice) == {"good.nii.gz", "second.nii.gz"}
    assert set(evaluation.skipped) == {"broken.nii.gz, label 1", "good.nii.gz, label 7", "second.nii.gz, label 1"}
    assert "cannot be read" in evaluation.skipped["broken.nii.gz, label 1"]
    assert "no voxel of value 7" in evaluation.skipped["good.nii.gz, label 7"]
    assert "on none of the annotated slices" in evaluation.skipped["second.nii.gz, label 1"]
    assert reports == [(number, 5) for number in range(1, 6)]


def test_slices_that_are_not_covered_are_not_asked(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    (case,) = new_cases()
    evaluation = evaluate(new_black_box(), [replace(case, annotated_slices=frozenset({5, 6}))])
    assert evaluation.black_box_images == 2 * CLICK_SEEDS


def test_no_case_at_all(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    with pytest.raises(InputError, match=r"^No case can be evaluated\. There are none\.$"):
        evaluate(new_black_box(), [])
    (case,) = new_cases()
    with pytest.raises(InputError, match=r"No case can be evaluated\. .*no voxel of value 7"):
        evaluate(new_black_box(), [replace(case, value=7)])


def _areas(case: Case) -> NDArray[np.integer[Any]]:
    return (read_volume(case.labels).voxels == case.value).sum((0, 1))


@pytest.fixture
def new_box_of(new_black_box: NewBox) -> NewBox:
    """Makes a black box that answers each image with what a function of it says."""

    def make(answer: Callable[[NDArray[np.uint8]], NDArray[np.float64]]) -> BlackBox:
        black_box = new_black_box()
        black_box._segment = lambda images, prompts: np.stack([answer(image) for image in images]).astype(np.float32)
        return black_box

    return make


def test_two_cases_alike_get_other_clicks(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    """Pictures all have one slice, number 0: their clicks must not all lie at the same place of the organ."""
    cases = [*new_cases("one"), *new_cases("two")]
    black_box = new_black_box()
    evaluate(black_box, cases)
    queried = _prompts(black_box)
    half = len(queried) // 2
    assert sum(a == b for a, b in zip(queried[:half], queried[half:], strict=True)) < half / 4


def _clicks(prompt: Prompt) -> int:
    return len(prompt.positive) + len(prompt.negative) + (prompt.box is not None)


@pytest.fixture
def new_listener(new_black_box: NewBox) -> NewBox:
    """Makes a black box that answers each image and prompt with what a function of them says, sharp to the pixel."""

    def make(answer: Callable[[NDArray[np.bool_], Prompt], NDArray[np.bool_]], side: int = 40) -> BlackBox:
        black_box = new_black_box(side=side)

        def segment(images: NDArray[np.uint8], prompts: list[Prompt]) -> NDArray[np.float32]:
            black_box.queries.append((images, prompts))
            answers = [answer(image[..., 0] > 128, one) for image, one in zip(images, prompts, strict=True)]
            return np.stack(answers).astype(np.float32)

        black_box._segment = segment
        return black_box

    return make


def test_more_clicks_leave_the_first_as_it_is(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases = [*new_cases("one", labels=2), *new_cases("two")]
    once, thrice = new_black_box(), new_black_box()
    one, three = evaluate(once, cases, seed=4), evaluate(thrice, cases, seed=4, clicks=3)
    assert one.corrections is None
    assert three.corrections is not None
    assert three.dice == one.dice
    assert [prompt for prompt in _prompts(thrice) if _clicks(prompt) == 1] == _prompts(once)
    assert three.black_box_images == 3 * one.black_box_images
    # A black box that does not listen is clicked on in vain: nothing changes.
    assert three.corrections.by_clicks == pytest.approx([one.mean] * 3)
    assert three.corrections.by_clicks_std == pytest.approx([one.std] * 3)
    record = three.record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {"by_clicks", "by_clicks_std", "noc_85", "noc_85_failures"} == set(record) - set(one.record())


def test_the_same_seed_corrects_the_same(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases = new_cases()
    boxes = [new_black_box() for _ in range(3)]
    one, same, _ = (evaluate(box, cases, seed=seed, clicks=3) for box, seed in zip(boxes, (4, 4, 5), strict=True))
    assert one == same
    assert _prompts(boxes[0]) == _prompts(boxes[1])
    assert _prompts(boxes[0]) != _prompts(boxes[2])


@pytest.mark.parametrize("kind", ["click", "box"])
def test_clicks_until_it_is_good(new_cases: Callable[..., list[Case]], new_listener: NewBox, kind: str) -> None:
    """A black box that finds nothing until it has been told three times; then no click is needed any more."""
    black_box = new_listener(lambda bright, prompt: bright & (_clicks(prompt) >= 3))
    once = evaluate(black_box, new_cases(), prompt=kind)
    evaluation = evaluate(black_box, new_cases(), prompt=kind, clicks=5)
    assert evaluation.mean == once.mean == 0
    assert evaluation.corrections == InteractiveScores([0, 0, 1, 1, 1], [0] * 5, 3, 0)
    assert evaluation.black_box_images == 3 * once.black_box_images
    assert all((prompt.box is not None) == (kind == "box") for prompt in _prompts(black_box))
    assert {len(set(one.positive)) for one in _prompts(black_box)} == ({1, 2, 3} if kind == "click" else {0, 1, 2})
    # Who gives up before counts as ten.
    assert evaluate(black_box, new_cases(), prompt=kind, clicks=2).corrections == InteractiveScores(
        [0, 0], [0, 0], 10, 1
    )


def test_clicks_go_over_labels_and_then_over_cases(new_cases: Callable[..., list[Case]], new_listener: NewBox) -> None:
    """The whole ball is found: right for case two, whose label it is, but half of it false for both of case one's."""
    cases = [*new_cases("one", labels=2), *new_cases("two", shape=(40, 36, 20))]
    evaluation = evaluate(new_listener(lambda bright, _: bright), cases, clicks=2)
    assert evaluation.corrections is not None
    assert evaluation.corrections.by_clicks == pytest.approx([evaluation.mean] * 2)
    assert evaluation.corrections.noc_85 == pytest.approx((10 + 1) / 2)
    assert evaluation.corrections.noc_85_failures == pytest.approx(1 / 2)


def test_corrections_lie_where_the_mask_is_wrong(new_cases: Callable[..., list[Case]], new_listener: NewBox) -> None:
    """A black box that answers beside the organ, but right around each click, on a canvas on which the slice is
    stretched and mirrored."""
    rows, columns = np.mgrid[:64, :64]

    def answer(bright: NDArray[np.bool_], prompt: Prompt) -> NDArray[np.bool_]:
        signs = [True] * len(prompt.positive) + [False] * len(prompt.negative)
        right = np.zeros_like(bright)
        for (x, y), sign in zip(prompt.positive + prompt.negative, signs, strict=True):
            assert bright[round(y), round(x)] == sign
            right |= np.hypot(columns - x, rows - y) < 6
        return np.where(right, bright, np.roll(bright, 10, axis=1))

    black_box = new_listener(answer, side=64)
    evaluation = evaluate(black_box, new_cases(shape=(40, 18, 12), spacing=(1.0, 2.5, 2.0)), clicks=10)
    assert evaluation.corrections is not None
    by_clicks = evaluation.corrections.by_clicks
    assert by_clicks == sorted(by_clicks)
    assert by_clicks[0] < 0.75
    assert by_clicks[-1] > 0.9
    assert {bool(one.negative) for one in _prompts(black_box)} == {True, False}
    assert 1 < evaluation.corrections.noc_85 < 10
    assert evaluation.corrections.noc_85_failures == 0


@pytest.mark.parametrize("able", [{"clicks": False}, {"negative_clicks": False}])
def test_a_black_box_that_understands_no_corrections(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, able: dict[str, bool]
) -> None:
    black_box = new_black_box()
    black_box._capabilities = replace(black_box.capabilities, **able)
    with pytest.raises(InputError, match="brightness does not understand .* clicks=1"):
        evaluate(black_box, new_cases(), prompt="box", clicks=2)
    assert black_box.images_queried == 0
    assert evaluate(black_box, new_cases(), prompt="box").black_box_images


@pytest.mark.parametrize("wrong", [{"prompt": "scribble"}, {"seed": -1}, {"clicks": 0}, {"clicks": 11}], ids=str)
def test_what_cannot_be_evaluated_is_refused_at_once(new_black_box: NewBox, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="^(There is no prompt|seed must|clicks must)"):
        evaluate(new_black_box(), [], **wrong)
