"""Tests that every 3D black box passes. Add a new backend to the fixture ``black_box``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox.volumes.interface import VolumeBlackBox, VolumeCapabilities
from baps.blackbox.volumes.loading import load_volume_black_box
from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import BapsError, BudgetSpentError, InputError
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumePrompt, VolumeRegion
from tests.support.bright_volumes import BrightVolumesBlackBox
from tests.support.nninteractive_server import KEY

SHAPE = (30, 26, 12)
SPACING = (0.8, 0.8, 3.0)
CENTRE = (12, 11, 6)


def volume() -> NDArray[np.int16]:
    """A bright ball, in millimetres, and a second one in a corner."""
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    voxels = np.random.default_rng(0).normal(40, 5, SHAPE)
    for centre, radius in ((CENTRE, 5.0), ((25, 21, 3), 2.5)):
        squares = sum(
            (spacing * (axis - at)) ** 2 for axis, at, spacing in zip((i, j, k), centre, SPACING, strict=True)
        )
        voxels[squares < radius**2] += 150
    return voxels.round().astype(np.int16)


def region(lasso: bool, include: bool = True) -> VolumeRegion:
    painted = np.zeros((9, 9, 1), bool)
    painted[slice(None) if lasso else 4] = True
    return VolumeRegion.of(painted, (8, 7, 6), lasso, include)


PROMPTS: dict[str, list[VolumePrompt]] = {
    "point": [VolumePoint(CENTRE, True)],
    "points": [VolumePoint((10, 11, 6), True), VolumePoint((25, 21, 3), False), VolumePoint((14, 11, 6), True)],
    "box": [VolumeBox((7, 6, 5), (18, 17, 8), True)],
    "flat box": [VolumeBox((7, 6, 6), (18, 17, 7), True)],
    "flat box across the first axis": [VolumeBox((12, 6, 4), (13, 17, 9), True)],
    "scribble": [region(lasso=False)],
    "lasso": [region(lasso=True)],
    "all": [VolumeBox((7, 6, 5), (18, 17, 8), True), region(lasso=True), region(False), VolumePoint(CENTRE, True)],
}


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "bundled3d",
        pytest.param("nninteractive", marks=[pytest.mark.server, pytest.mark.xdist_group("nninteractive-server")]),
    ],
)
def black_box(request: pytest.FixtureRequest) -> Iterator[VolumeBlackBox]:
    if request.param == "fake":
        yield BrightVolumesBlackBox()
        return
    if request.param == "bundled3d":
        yield load_volume_black_box("bundled3d", device="cpu")
        return
    address = request.getfixturevalue("real_server").address
    with closing(load_volume_black_box("nninteractive", VolumeRemoteSettings(address, KEY))) as made:
        yield made


def test_capabilities(black_box: VolumeBlackBox) -> None:
    capabilities = black_box.capabilities
    assert isinstance(capabilities, VolumeCapabilities)
    assert capabilities.name
    assert len(capabilities.weights_sha256) == 64


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_the_answer_lies_where_the_prompts_are(black_box: VolumeBlackBox, prompts: list[VolumePrompt]) -> None:
    before = black_box.images_queried
    answer = black_box.predict(volume(), SPACING, prompts)
    assert black_box.images_queried == before + 1
    assert (answer.shape, answer.dtype) == (SHAPE, np.float32)
    assert answer[CENTRE] > 0.5
    assert answer[25, 21, 3] < 0.5
    assert 0 <= answer.min() <= answer.max() <= 1
    if not black_box.capabilities.probabilities:
        assert set(np.unique(answer)) <= {0.0, 1.0}


def test_answers_depend_on_nothing_but_the_arguments(black_box: VolumeBlackBox) -> None:
    voxels, mask = volume(), volume() > 100
    jobs = [(prompts, start) for prompts in PROMPTS.values() for start in (None, mask)]
    first = [black_box.predict(voxels, SPACING, prompts, start) for prompts, start in jobs]
    black_box.predict(np.flip(voxels), SPACING, PROMPTS["point"])
    for (prompts, start), expected in zip(reversed(jobs), reversed(first), strict=True):
        assert np.array_equal(black_box.predict(voxels.copy(), SPACING, prompts, start), expected)


def test_another_image_gives_another_answer_even_in_the_same_array(black_box: VolumeBlackBox) -> None:
    voxels = volume()
    first = black_box.predict(voxels, SPACING, PROMPTS["point"])
    voxels[:] = np.where(np.arange(SHAPE[0])[:, None, None] < CENTRE[0], 40, voxels)
    assert not np.array_equal(black_box.predict(voxels, SPACING, PROMPTS["point"]), first)


def test_the_arguments_are_not_changed(black_box: VolumeBlackBox) -> None:
    voxels, mask = volume(), volume() > 100
    voxels.setflags(write=False)
    mask.setflags(write=False)
    black_box.predict(voxels, SPACING, PROMPTS["all"], mask)
    assert np.array_equal(voxels, volume())
    assert np.array_equal(mask, volume() > 100)


@pytest.mark.parametrize("dtype", ["bool", "uint8", ">i2", "float16", "float64", "int64"])
def test_every_real_type_of_voxels_is_segmented(black_box: VolumeBlackBox, dtype: str) -> None:
    voxels = volume() > 100 if dtype == "bool" else volume()
    black_box.predict(voxels.clip(0, 255).astype(dtype), SPACING, PROMPTS["point"])


def test_arrays_of_another_order_in_memory_are_segmented(black_box: VolumeBlackBox) -> None:
    expected = black_box.predict(volume(), SPACING, PROMPTS["lasso"])
    answer = black_box.predict(np.asfortranarray(volume()), SPACING, PROMPTS["lasso"])
    assert np.allclose(answer, expected, atol=1e-3)  # A model may resample in the order of memory.


def test_a_negative_prompt_removes(black_box: VolumeBlackBox) -> None:
    voxels, mask = volume(), volume() > 100
    assert black_box.capabilities.negative
    assert black_box.capabilities.masks
    negative = [VolumePoint((25, 21, 3), False)]
    answer = black_box.predict(voxels, SPACING, negative, mask)
    assert answer[25, 21, 3] < 0.5 < answer[CENTRE]


def test_a_spent_budget_stops_predictions(black_box: VolumeBlackBox) -> None:
    before, black_box.budget = black_box.images_queried, black_box.images_queried + 1
    try:
        black_box.predict(volume(), SPACING, PROMPTS["point"])
        with pytest.raises(BudgetSpentError, match="max_predictions"):
            black_box.predict(volume(), SPACING, PROMPTS["point"])
        assert black_box.images_queried == before + 1
    finally:
        black_box.budget = None


def test_long_work_waits_before_each_prediction(black_box: VolumeBlackBox) -> None:
    waited: list[int] = []
    black_box.wait = lambda: waited.append(black_box.images_queried)
    try:
        black_box.predict(volume(), SPACING, PROMPTS["point"])
        assert waited == [black_box.images_queried - 1]
    finally:
        black_box.wait = None


NAN = volume().astype(np.float32)
NAN[3, 4, 5] = np.nan


@pytest.mark.parametrize(
    ("voxels", "spacing", "prompts", "mask", "message"),
    [
        (volume()[0], SPACING, PROMPTS["point"], None, "volumes of real numbers"),
        (volume()[None], SPACING, PROMPTS["point"], None, "volumes of real numbers"),
        (volume()[:0], SPACING, PROMPTS["point"], None, "volumes of real numbers"),
        (volume() + 1j, SPACING, PROMPTS["point"], None, "volumes of real numbers"),
        (NAN, SPACING, PROMPTS["point"], None, "not finite"),
        (volume(), (1.0, 0.0, 1.0), PROMPTS["point"], None, "three positive numbers"),
        (volume(), (1.0, float("nan"), 1.0), PROMPTS["point"], None, "three positive numbers"),
        (volume(), SPACING, PROMPTS["point"], np.ones((3, 3, 3), bool), "must be equal"),
        (volume(), SPACING, [VolumePoint((30, 5, 5), True)], None, "outside the volume"),
        (volume(), SPACING, [VolumePoint((-1, 5, 5), True)], None, "outside the volume"),
        (volume(), SPACING, [VolumeBox((5, 5, 5), (9, 9, 13), True)], None, "outside the volume"),
        (volume(), SPACING, [VolumeBox((5, 5, 5), (5, 9, 9), True)], None, "outside the volume"),
        (volume(), SPACING, [VolumeRegion.of(np.ones((4, 4, 4)), (28, 0, 0), True, True)], None, "outside the volume"),
        (volume(), SPACING, [], None, "none of the prompts"),
        (volume(), SPACING, [VolumePoint(CENTRE, False)], None, "none of the prompts"),
        (volume(), SPACING, [VolumePoint(CENTRE, False)], np.zeros(SHAPE, bool), "none of the prompts"),
    ],
)
def test_what_cannot_be_segmented_is_refused_and_not_counted(
    black_box: VolumeBlackBox, voxels: object, spacing: object, prompts: object, mask: object, message: str
) -> None:
    before = black_box.images_queried
    with pytest.raises(InputError, match=message) as error:
        black_box.predict(voxels, spacing, prompts, mask)  # type: ignore[arg-type]
    assert str(error.value).endswith(".")
    assert black_box.images_queried == before


@pytest.mark.parametrize(
    ("missing", "prompts", "understood"),
    [
        ("points", PROMPTS["all"], 3),
        ("boxes", PROMPTS["all"], 3),
        ("flat_boxes", [*PROMPTS["flat box"], *PROMPTS["point"]], 1),
        ("scribbles", PROMPTS["all"], 3),
        ("lassos", PROMPTS["all"], 3),
        ("negative", PROMPTS["points"], 2),
    ],
)
def test_prompts_that_are_not_understood_are_left_out(
    missing: str, prompts: list[VolumePrompt], understood: int
) -> None:
    black_box = BrightVolumesBlackBox(**{missing: False})
    black_box.predict(volume(), SPACING, prompts)
    ((sent, _),) = black_box.asked
    assert len(sent) == understood
    assert all(black_box.capabilities.understands(prompt) for prompt in sent)


def test_the_sentence_names_what_is_understood() -> None:
    with pytest.raises(InputError, match=r"Draw a box in one slice or a lasso\."):
        BrightVolumesBlackBox(points=False, boxes=False, scribbles=False).predict(volume(), SPACING, PROMPTS["point"])


def test_a_model_that_cannot_start_from_a_mask_gets_none() -> None:
    black_box = BrightVolumesBlackBox(masks=False)
    black_box.predict(volume(), SPACING, PROMPTS["point"], volume() > 100)
    assert black_box.asked[0][1] is None
    with pytest.raises(InputError, match="none of the prompts"):
        black_box.predict(volume(), SPACING, [], volume() > 100)


@pytest.mark.parametrize("answer", [np.full(SHAPE, np.nan, np.float32), np.zeros((3, 3, 3), np.float32)])
def test_an_answer_of_other_numbers_is_refused(answer: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    black_box = BrightVolumesBlackBox()
    monkeypatch.setattr(black_box, "_predict", lambda *_: answer)
    with pytest.raises(BapsError, match="not probabilities"):
        black_box.predict(volume(), SPACING, PROMPTS["point"])


def test_capabilities_tell_what_is_understood() -> None:
    capabilities = replace(BrightVolumesBlackBox().capabilities, boxes=False, negative=False)
    assert not capabilities.understands(PROMPTS["box"][0])
    assert capabilities.understands(PROMPTS["flat box"][0])
    assert not capabilities.understands(VolumePoint(CENTRE, False))
