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
    """Return a function that writes a phantom with a ball, whose right half has label 2 with ``labels=2``."""

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


def _random_adapter(kind: str, condition: str, head: OutputHead | None = None) -> Adapter:
    """Make an adapter that changes images."""
    visual_prompt = build_visual_prompt(kind, condition=condition)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in visual_prompt.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Adapter(visual_prompt, head)


def _prompts(black_box: Any) -> list[Prompt]:
    return [prompt for _, prompts in black_box.queries for prompt in prompts]


def test_mean_is_over_labels_and_then_over_cases() -> None:
    """Case a has two labels, b one. Each case has the same weight; a mean over labels would differ (0.5)."""
    dice = {"a": {1: [0.1] * 5, 2: [0.5] * 5}, "b": {1: [0.9] * 5}}
    evaluation = Evaluation(dice, {}, 0)
    assert evaluation.by_case == pytest.approx({"a": 0.3, "b": 0.9})
    assert evaluation.mean == pytest.approx(0.6)
    assert evaluation.std == pytest.approx(0)


def test_std_is_that_of_the_mean_over_sets_of_clicks() -> None:
    first = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert Evaluation({"a": {1: first}}, {}, 0).std == pytest.approx(np.std(first))
    # With other clicks one case gains what the other loses.
    assert Evaluation({"a": {1: first}, "b": {1: first[::-1]}}, {}, 0).std == pytest.approx(0)
    assert Evaluation({"a": {1: first, 2: [0.0] * 5}}, {}, 0).std == pytest.approx(np.std(first) / 2)
    # Over labels first, then over cases, like the mean.
    uneven = Evaluation({"a": {1: first, 2: first}, "b": {1: [0.5] * 5}}, {}, 0)
    assert uneven.std == pytest.approx(np.std(first) / 2)


def test_record_is_json() -> None:
    evaluation = Evaluation({"a.nii.gz": {1: [0.1] * 5, 2: [0.5] * 5}}, {"b.nii.gz, label 1": "It is broken."}, 120)
    record = evaluation.to_dict()
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


def test_dice_is_measured_at_the_voxels(new_cases: Callable[..., list[Case]], new_model: NewBox) -> None:
    """If a black box marks the whole canvas, Dice follows from the number of voxels."""
    shape = (40, 18, 12)
    (case,) = new_cases(shape=shape, spacing=(1.0, 2.5, 2.0))
    areas = [int(area) for area in _areas(case) if area >= _areas(case).max() / 10]
    assert 2 < len(areas) <= 12
    expected = np.mean([2 * area / (area + shape[0] * shape[1]) for area in areas])
    evaluation = evaluate(new_model(lambda image: np.ones(image.shape[:2])), [case])
    assert evaluation.dice == {"one.nii.gz": {1: [pytest.approx(expected)] * CLICK_SEEDS}}
    nothing = evaluate(new_model(lambda image: np.zeros(image.shape[:2])), [case])
    assert nothing.mean == 0


def test_a_black_box_that_sees_the_organ_scores_well(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox
) -> None:
    assert evaluate(new_black_box(side=64), new_cases()).mean > 0.9


def test_queried_images_are_counted(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases, black_box = new_cases("long", shape=(40, 36, 60), spacing=(1.0, 1.0, 1.0)), new_black_box()
    evaluate(black_box, cases)
    evaluation = evaluate(black_box, cases)
    assert evaluation.black_box_images == 12 * CLICK_SEEDS  # At most twelve slices.
    assert black_box.images_queried == 2 * evaluation.black_box_images


def test_same_seed_gives_the_same_queries(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases = new_cases()
    boxes = [new_black_box() for _ in range(3)]
    first, same, second = (evaluate(box, cases, seed=seed) for box, seed in zip(boxes, (4, 4, 5), strict=True))
    assert first == same
    assert _prompts(boxes[0]) == _prompts(boxes[1])
    assert _prompts(boxes[0]) != _prompts(boxes[2])
    assert len(_prompts(boxes[0])) == len(_prompts(boxes[2]))
    assert second.black_box_images == first.black_box_images


def test_the_sets_of_clicks_differ(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    black_box = new_black_box(side=64)
    evaluate(black_box, new_cases())
    for _, prompts in black_box.queries:
        assert len(prompts) == CLICK_SEEDS
        assert len(set(prompts)) > 1


def test_clicks_and_boxes_are_on_the_organ(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    """The organ is bright on the canvas."""
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
    first, two = new_cases("one", labels=2), new_cases("two", seed=1, shape=(36, 36, 12))
    alone, together = new_black_box(), new_black_box()
    expected = evaluate(alone, two)
    result = evaluate(together, first + two)
    assert _prompts(together)[-len(_prompts(alone)) :] == _prompts(alone)
    assert result.dice["two.nii.gz"] == expected.dice["two.nii.gz"]
    assert set(result.dice["one.nii.gz"]) == {1, 2}
    assert result.dice == {**evaluate(new_black_box(), first).dice, **expected.dice}


@pytest.mark.parametrize(("kind", "condition"), [("basis", "label"), ("concat", "click")])
def test_unadapted_and_adapted_get_the_same_prompts(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, kind: str, condition: str
) -> None:
    cases, plain, adapted = new_cases(), new_black_box(), new_black_box()
    evaluate(plain, cases)
    evaluate(adapted, cases, _random_adapter(kind, condition))
    assert _prompts(plain) == _prompts(adapted)
    assert not all(
        np.array_equal(first, second) for (first, _), (second, _) in zip(plain.queries, adapted.queries, strict=True)
    )


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["basis", "concat"])
def test_an_untrained_adapter_changes_nothing(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, kind: str, head: bool
) -> None:
    cases, untrained = new_cases(), Adapter(build_visual_prompt(kind), OutputHead().eval() if head else None)
    assert evaluate(new_black_box(), cases, untrained) == evaluate(new_black_box(), cases)


class _EncodingBlackBox(BlackBox):
    """Wraps a black box with encodings; ``encoded`` records the images."""

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
def test_encodings_give_the_same_scores(
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
    prompt_module = visual_prompt and _random_adapter(*visual_prompt, lively_head if head else None)
    plain, encoding = new_black_box(), _EncodingBlackBox(new_black_box())
    result = evaluate(plain, cases, prompt_module, clicks=clicks)
    assert result == evaluate(encoding, cases, prompt_module, clicks=clicks)
    assert result.black_box_images == plain.images_queried == encoding.images_queried == len(_prompts(plain))
    assert _prompts(plain) == _prompts(encoding.inner)
    if clicks > 1 and near < 1:  # If a mask violates its clicks, the fallback is queried too.
        return
    slices = sum(len(first.positive) + len(first.negative) == 1 for first in _prompts(plain)) // CLICK_SEEDS
    assert len(_prompts(plain)) == clicks * slices * CLICK_SEEDS
    by_slice = [
        set(_prompts(plain)[n : n + clicks * CLICK_SEEDS]) for n in range(0, len(_prompts(plain)), clicks * CLICK_SEEDS)
    ]
    images = sum(map(len, by_slice)) if visual_prompt == ("concat", "click") else slices
    assert len(encoding.encoded) == images


@pytest.mark.parametrize("encodings", [False, True])
def test_head_corrects_each_mask_with_its_click_and_the_original_image(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, lively_head: OutputHead, encodings: bool
) -> None:
    cases = new_cases()
    bare, headed = _random_adapter("basis", "label"), _random_adapter("basis", "label", lively_head)
    plain = new_black_box()
    result = evaluate(_EncodingBlackBox(plain) if encodings else plain, cases, headed)
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
        scores.append([dice(canvas.restore(first) > 0.5, plane.extract(target)) for first in corrected])
    assert next(queries, None) is None
    assert result.dice["one.nii.gz"][1] == pytest.approx(np.mean(scores, axis=0))


def test_encodings_of_the_bundled_model_give_the_same_scores(
    bundled: BlackBox, new_cases: Callable[..., list[Case]], lively_head: OutputHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = new_cases(shape=(40, 36, 5), spacing=(1.0, 1.0, 6.0))
    adapter = _random_adapter("basis", "label", lively_head)
    first = evaluate(bundled, cases, adapter)
    model_capabilities = bundled.capabilities
    monkeypatch.setattr(type(bundled), "capabilities", property(lambda _: replace(model_capabilities, encodings=False)))
    second = evaluate(bundled, cases, adapter)
    assert model_capabilities.encodings
    assert first.black_box_images == second.black_box_images
    np.testing.assert_allclose(first.dice["one.nii.gz"][1], second.dice["one.nii.gz"][1], atol=0.01)


def test_prompt_conditioned_on_the_click_is_applied_for_every_click(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox
) -> None:
    cases = new_cases()
    for condition in ("label", "click"):
        black_box = new_black_box(side=64)
        evaluate(black_box, cases, _random_adapter("concat", condition))
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


def test_unannotated_slices_are_not_queried(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    (case,) = new_cases()
    evaluation = evaluate(new_black_box(), [replace(case, annotated_slices=frozenset({5, 6}))])
    assert evaluation.black_box_images == 2 * CLICK_SEEDS


def test_no_case_is_an_error(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    with pytest.raises(InputError, match=r"^No case can be evaluated\. There are none\.$"):
        evaluate(new_black_box(), [])
    (case,) = new_cases()
    with pytest.raises(InputError, match=r"No case can be evaluated\. .*no voxel of value 7"):
        evaluate(new_black_box(), [replace(case, value=7)])


def _areas(case: Case) -> NDArray[np.integer[Any]]:
    return (read_volume(case.labels).voxels == case.value).sum((0, 1))


@pytest.fixture
def new_model(new_black_box: NewBox) -> NewBox:
    """Return a function that makes a black box whose mask is a function of the image."""

    def make(answer: Callable[[NDArray[np.uint8]], NDArray[np.float64]]) -> BlackBox:
        black_box = new_black_box()
        black_box._segment = lambda images, prompts: np.stack([answer(image) for image in images]).astype(np.float32)
        return black_box

    return make


def test_identical_cases_get_different_clicks(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    """Pictures have a single slice, number 0; their clicks must not all be at the same position of the organ."""
    cases = [*new_cases("one"), *new_cases("two")]
    black_box = new_black_box()
    evaluate(black_box, cases)
    queried = _prompts(black_box)
    half = len(queried) // 2
    assert sum(a == b for a, b in zip(queried[:half], queried[half:], strict=True)) < half / 4


def _clicks(prompt: Prompt) -> int:
    return len(prompt.positive) + len(prompt.negative) + (prompt.box is not None)


@pytest.fixture
def new_prompted_model(new_black_box: NewBox) -> NewBox:
    """Return a function that makes a black box whose mask is a function of the image and the prompt."""

    def make(answer: Callable[[NDArray[np.bool_], Prompt], NDArray[np.bool_]], side: int = 40) -> BlackBox:
        black_box = new_black_box(side=side)

        def segment(images: NDArray[np.uint8], prompts: list[Prompt]) -> NDArray[np.float32]:
            black_box.queries.append((images, prompts))
            answers = [answer(image[..., 0] > 128, first) for image, first in zip(images, prompts, strict=True)]
            return np.stack(answers).astype(np.float32)

        black_box._segment = segment
        return black_box

    return make


def test_more_clicks_do_not_change_the_first(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases = [*new_cases("one", labels=2), *new_cases("two")]
    once, thrice = new_black_box(), new_black_box()
    first, three = evaluate(once, cases, seed=4), evaluate(thrice, cases, seed=4, clicks=3)
    assert first.corrections is None
    assert three.corrections is not None
    assert three.dice == first.dice
    assert [prompt for prompt in _prompts(thrice) if _clicks(prompt) == 1] == _prompts(once)
    assert three.black_box_images == 3 * first.black_box_images
    # If a black box ignores corrections, nothing changes.
    assert three.corrections.by_clicks == pytest.approx([first.mean] * 3)
    assert three.corrections.by_clicks_std == pytest.approx([first.std] * 3)
    record = three.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {"by_clicks", "by_clicks_std", "noc_85", "noc_85_failures"} == set(record) - set(first.to_dict())


def test_same_seed_gives_the_same_corrections(new_cases: Callable[..., list[Case]], new_black_box: NewBox) -> None:
    cases = new_cases()
    boxes = [new_black_box() for _ in range(3)]
    first, same, _ = (evaluate(box, cases, seed=seed, clicks=3) for box, seed in zip(boxes, (4, 4, 5), strict=True))
    assert first == same
    assert _prompts(boxes[0]) == _prompts(boxes[1])
    assert _prompts(boxes[0]) != _prompts(boxes[2])


@pytest.mark.parametrize("kind", ["click", "box"])
def test_number_of_clicks_until_the_mask_is_good(
    new_cases: Callable[..., list[Case]], new_prompted_model: NewBox, kind: str
) -> None:
    """A black box returns nothing until the third click, and then the correct mask."""
    black_box = new_prompted_model(lambda bright, prompt: bright & (_clicks(prompt) >= 3))
    once = evaluate(black_box, new_cases(), prompt=kind)
    evaluation = evaluate(black_box, new_cases(), prompt=kind, clicks=5)
    assert evaluation.mean == once.mean == 0
    assert evaluation.corrections == InteractiveScores([0, 0, 1, 1, 1], [0] * 5, 3, 0)
    assert evaluation.black_box_images == 3 * once.black_box_images
    assert all((prompt.box is not None) == (kind == "box") for prompt in _prompts(black_box))
    assert {len(set(first.positive)) for first in _prompts(black_box)} == ({1, 2, 3} if kind == "click" else {0, 1, 2})
    # Slices that never reach it count as ten.
    assert evaluate(black_box, new_cases(), prompt=kind, clicks=2).corrections == InteractiveScores(
        [0, 0], [0, 0], 10, 1
    )


def test_number_of_clicks_is_averaged_over_labels_and_then_cases(
    new_cases: Callable[..., list[Case]], new_prompted_model: NewBox
) -> None:
    """The mask is the whole ball: correct for case two, but half wrong for both labels of case one."""
    cases = [*new_cases("one", labels=2), *new_cases("two", shape=(40, 36, 20))]
    evaluation = evaluate(new_prompted_model(lambda bright, _: bright), cases, clicks=2)
    assert evaluation.corrections is not None
    assert evaluation.corrections.by_clicks == pytest.approx([evaluation.mean] * 2)
    assert evaluation.corrections.noc_85 == pytest.approx((10 + 1) / 2)
    assert evaluation.corrections.noc_85_failures == pytest.approx(1 / 2)


def test_corrections_are_where_the_mask_is_wrong(
    new_cases: Callable[..., list[Case]], new_prompted_model: NewBox
) -> None:
    """A black box is right around each click and wrong elsewhere, on a canvas with a stretched and mirrored slice."""
    rows, columns = np.mgrid[:64, :64]

    def answer(bright: NDArray[np.bool_], prompt: Prompt) -> NDArray[np.bool_]:
        signs = [True] * len(prompt.positive) + [False] * len(prompt.negative)
        right = np.zeros_like(bright)
        for (x, y), sign in zip(prompt.positive + prompt.negative, signs, strict=True):
            assert bright[round(y), round(x)] == sign
            right |= np.hypot(columns - x, rows - y) < 6
        return np.where(right, bright, np.roll(bright, 10, axis=1))

    black_box = new_prompted_model(answer, side=64)
    evaluation = evaluate(black_box, new_cases(shape=(40, 18, 12), spacing=(1.0, 2.5, 2.0)), clicks=10)
    assert evaluation.corrections is not None
    by_clicks = evaluation.corrections.by_clicks
    assert by_clicks == sorted(by_clicks)
    assert by_clicks[0] < 0.75
    assert by_clicks[-1] > 0.9
    assert {bool(first.negative) for first in _prompts(black_box)} == {True, False}
    assert 1 < evaluation.corrections.noc_85 < 10
    assert evaluation.corrections.noc_85_failures == 0


@pytest.mark.parametrize("model_capabilities", [{"clicks": False}, {"negative_clicks": False}])
def test_black_box_without_negative_clicks_is_refused(
    new_cases: Callable[..., list[Case]], new_black_box: NewBox, model_capabilities: dict[str, bool]
) -> None:
    black_box = new_black_box()
    black_box._capabilities = replace(black_box.capabilities, **model_capabilities)
    with pytest.raises(InputError, match="brightness does not understand .* clicks=1"):
        evaluate(black_box, new_cases(), prompt="box", clicks=2)
    assert black_box.images_queried == 0
    assert evaluate(black_box, new_cases(), prompt="box").black_box_images


@pytest.mark.parametrize("wrong", [{"prompt": "scribble"}, {"seed": -1}, {"clicks": 0}, {"clicks": 11}], ids=str)
def test_invalid_options_are_refused_at_once(new_black_box: NewBox, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="^(There is no prompt|seed must|clicks must)"):
        evaluate(new_black_box(), [], **wrong)
