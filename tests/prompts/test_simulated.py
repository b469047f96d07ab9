from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from baps.errors import InputError
from baps.prompts import Prompt
from baps.prompts.simulated import check_prompts, draw_corrected_prompt, draw_correction, draw_prompt

FIRST = Prompt(positive=((0.0, 0.0),))


def _random_mask(seed: int) -> NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=(30, 45)), 3)
    mask: NDArray[np.bool_] = field > np.quantile(field, random.uniform(0.5, 0.995))
    return mask


@given(st.integers(0, 10_000))
def test_click_is_inside_the_largest_piece(seed: int) -> None:
    mask = _random_mask(seed)
    prompt = draw_prompt(mask, "click", np.random.default_rng(seed))
    ((x, y),) = prompt.positive
    assert x == int(x)
    assert y == int(y)
    assert prompt.negative == ()
    assert prompt.box is None
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    hit = pieces[int(y), int(x)]
    assert hit > 0
    assert sizes[hit - 1] == sizes.max()


def test_a_click_is_well_inside() -> None:
    mask = np.zeros((41, 41), bool)
    mask[5:36, 5:36] = True
    depth = ndimage.distance_transform_edt(mask)
    for seed in range(30):
        ((x, y),) = draw_prompt(mask, "click", np.random.default_rng(seed)).positive
        assert depth[int(y), int(x)] >= depth.max() / 2


def test_click_may_be_anywhere_well_inside() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:14, 5:14] = True
    prompts = {draw_prompt(mask, "click", np.random.default_rng(seed)).positive[0] for seed in range(400)}
    assert prompts == {(float(x), float(y)) for x in range(7, 12) for y in range(7, 12)}


def test_edge_of_the_image_counts_as_an_edge() -> None:
    mask = np.ones((21, 21), bool)
    for seed in range(30):
        ((x, y),) = draw_prompt(mask, "click", np.random.default_rng(seed)).positive
        assert 4 <= x <= 16
        assert 4 <= y <= 16


def test_a_mask_of_one_pixel_can_be_prompted() -> None:
    mask = np.zeros((9, 12), bool)
    mask[3, 7] = True
    assert draw_prompt(mask, "click", np.random.default_rng(0)).positive == ((7.0, 3.0),)
    box = draw_prompt(mask, "box", np.random.default_rng(0)).box
    assert box is not None
    np.testing.assert_allclose(box, (7, 3, 7, 3), atol=0.11)


@given(st.integers(0, 10_000))
def test_box_covers_the_object_within_a_tenth_of_its_size(seed: int) -> None:
    mask = _random_mask(seed)
    box = draw_prompt(mask, "box", np.random.default_rng(seed)).box
    assert box is not None
    rows, columns = np.nonzero(mask)
    tight = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    box_size = np.tile(tight[2:] - tight[:2] + 1, 2)
    assert (np.abs(np.array(box) - tight) <= 0.1 * box_size + 1e-9).all()
    assert 0 <= box[0] <= box[2] <= mask.shape[1] - 1
    assert 0 <= box[1] <= box[3] <= mask.shape[0] - 1


@pytest.mark.parametrize("kind", ["click", "box"])
def test_prompts_are_fixed_by_the_seed(kind: str) -> None:
    mask = _random_mask(3)
    prompts = [draw_prompt(mask, kind, np.random.default_rng(seed)) for seed in (5, 5, 6, 7, 8)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts)) > 2


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(InputError, match="empty mask"):
        draw_prompt(np.zeros((4, 4), bool), "click", np.random.default_rng(0))


def test_error_for_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'scribble'.*click, box"):
        draw_prompt(np.ones((4, 4), bool), "scribble", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [(("scribble",), "'scribble'.*click, box"), (("click", -1), "seed"), (("click", 2**63), "seed"),
     (("box", 0, 0), "clicks.*1 to 10, not 0"), (("box", 0, 11), "clicks.*1 to 10, not 11")],
)  # fmt: skip
def test_invalid_settings_are_refused(settings: tuple[str, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_prompts(*settings)
    check_prompts("click", 2**63 - 1, 10)


def _new_click(before: Prompt, after: Prompt | None) -> tuple[str, int, int]:
    """Return the sign, row and column of the click that was added to a prompt."""
    assert after is not None
    assert after.box == before.box
    added = [("foreground", *point) for point in after.positive[len(before.positive) :]]
    added += [("background", *point) for point in after.negative[len(before.negative) :]]
    assert after.positive[: len(before.positive)] == before.positive
    assert after.negative[: len(before.negative)] == before.negative
    ((sign, x, y),) = added
    assert (x, y) == (int(x), int(y))
    return sign, int(y), int(x)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_correction_is_well_inside_the_largest_error(seed: int, other_seed: int) -> None:
    target, mask = _random_mask(seed), _random_mask(20_000 + other_seed)
    before = draw_prompt(target, "box", np.random.default_rng(seed))
    after = draw_correction(before, mask, target, np.random.default_rng(seed))
    sign, row, column = _new_click(before, after)
    assert target[row, column] == (sign == "foreground")
    assert mask[row, column] == (sign == "background")
    sizes = {}
    for name, wrong in (("foreground", target & ~mask), ("background", mask & ~target)):
        pieces, count = ndimage.label(wrong)
        sizes[name] = max(((pieces == n + 1).sum() for n in range(count)), default=0)
        if name == sign:
            piece = np.pad(pieces == pieces[row, column], 1)
            depth = ndimage.distance_transform_edt(piece)
            assert piece.sum() == sizes[name]
            assert depth[row + 1, column + 1] >= depth.max() / 2
    assert sizes[sign] == max(sizes.values())


@given(st.integers(0, 10_000))
def test_every_pixel_is_clicked_once(seed: int) -> None:
    """If the mask never changes, every wrong pixel is finally clicked."""
    random = np.random.default_rng(seed)
    target, mask = random.random((2, 5, 7)) < 0.4
    target[2, 3], mask[2, 3] = True, False
    prompt = Prompt(positive=((3.0, 2.0),))
    clicked = [("foreground", 2, 3)]
    while after := draw_correction(prompt, mask, target, random):
        clicked.append(_new_click(prompt, after))
        prompt = after
    assert len(clicked) == len(set(clicked)) == (target != mask).sum()


def test_corrections_are_fixed_by_the_seed() -> None:
    target, mask = _random_mask(3), _random_mask(4)
    prompts = [draw_correction(FIRST, mask, target, np.random.default_rng(seed)) for seed in (5, 5, 6, 7, 8)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts)) > 2


@pytest.mark.parametrize("position", [(3, 7), (0, 5), (8, 11), (4, 0), (8, 0)], ids=str)
@pytest.mark.parametrize("sign", ["foreground", "background"])
def test_error_of_one_pixel_is_clicked(position: tuple[int, int], sign: str) -> None:
    mask = np.zeros((9, 12), bool)
    mask[2:6, 2:9] = True
    target = mask.copy()
    target[position] ^= True
    if target[position] != (sign == "foreground"):
        target, mask = mask, target
    after = draw_correction(FIRST, mask, target, np.random.default_rng(0))
    assert _new_click(FIRST, after) == (sign, *position)


def test_error_on_the_edge_is_clicked_away_from_the_edge() -> None:
    target = np.zeros((20, 30), bool)
    target[:, 20:] = True
    for seed in range(30):
        sign, row, column = _new_click(
            FIRST, draw_correction(FIRST, np.zeros_like(target), target, np.random.default_rng(seed))
        )
        assert sign == "foreground"
        assert 2 <= row <= 17
        assert 22 <= column <= 27


@given(st.integers(0, 10_000))
def test_correction_of_a_completely_wrong_mask(seed: int) -> None:
    target = _random_mask(seed)
    random = np.random.default_rng(seed)
    sign, row, column = _new_click(FIRST, draw_correction(FIRST, ~target, target, random))
    assert target[row, column] == (sign == "foreground")
    assert _new_click(FIRST, draw_correction(FIRST, ~target, np.zeros_like(target), random))[0] == "background"
    assert _new_click(FIRST, draw_correction(FIRST, np.zeros_like(target), target, random))[0] == "foreground"


@given(st.integers(0, 10_000))
def test_a_correct_mask_needs_no_click(seed: int) -> None:
    target = _random_mask(seed)
    assert draw_correction(FIRST, target, target.copy(), np.random.default_rng(seed)) is None


@given(st.integers(0, 10_000), st.sampled_from(["click", "box"]))
def test_drawn_corrections_agree_with_the_object(seed: int, kind: str) -> None:
    mask = _random_mask(seed)
    first = draw_prompt(mask, kind, np.random.default_rng(seed))
    prompt = draw_corrected_prompt(mask, kind, np.random.default_rng(seed))
    assert prompt.box == first.box
    assert prompt.positive[: len(first.positive)] == first.positive
    more = len(prompt.positive) - len(first.positive) + len(prompt.negative)
    assert 0 <= more <= 3
    assert all(mask[int(y), int(x)] for x, y in prompt.positive)
    assert not any(mask[int(y), int(x)] for x, y in prompt.negative)
    assert len({*prompt.positive, *prompt.negative}) == len(prompt.positive) + len(prompt.negative)


def test_drawn_corrections_have_both_signs_and_are_up_to_three() -> None:
    mask = np.zeros((40, 40), bool)
    mask[12:28, 10:26] = True
    prompts = [draw_corrected_prompt(mask, "click", np.random.default_rng(seed)) for seed in range(60)]
    assert {len(p.positive) - 1 + len(p.negative) for p in prompts} == {1, 2, 3}
    assert sum(len(p.negative) for p in prompts) > 20
    assert sum(len(p.positive) - 1 for p in prompts) > 20


def test_an_object_of_one_pixel_can_be_corrected() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    for seed in range(20):
        assert draw_corrected_prompt(mask, "click", np.random.default_rng(seed)).positive[0] == (4.0, 4.0)
