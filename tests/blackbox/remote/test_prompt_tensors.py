from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.blackbox.remote.prompt_tensors import to_prompts, to_tensors
from baps.errors import InputError
from baps.prompts import Prompt

number = st.floats(-50, 2000, width=32)
point = st.tuples(number, number)
box = st.tuples(number, number, number, number).filter(lambda b: b[2] >= b[0] and b[3] >= b[1])


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    frame = draw(st.none() | box)
    positive = draw(st.lists(point, min_size=0 if frame else 1, max_size=4))
    return Prompt(tuple(positive), tuple(draw(st.lists(point, max_size=3))), frame)


@given(st.lists(prompts(), min_size=1, max_size=5))
def test_round_trip_of_prompts(queries: list[Prompt]) -> None:
    points, labels = to_tensors(queries)
    assert (points.dtype, labels.dtype) == (np.float32, np.int32)
    assert to_prompts(points, labels) == queries


def test_tensors_of_sams_exported_decoder() -> None:
    points, labels = to_tensors([Prompt(((1, 2),), ((3, 4),)), Prompt(((5, 6),), (), (7, 8, 9, 10))])
    assert labels.tolist() == [[1, 0, -1], [1, 2, 3]]
    assert points.tolist() == [[[1, 2], [3, 4], [0, 0]], [[5, 6], [7, 8], [9, 10]]]


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        ([[1.0, 2.0]], [[1]], "shape"),
        ([[[1.0, 2.0, 3.0]]], [[1]], "shape"),
        ([[[1.0, 2.0]]], [[1, 1]], "shape"),
        ([[[1.0, 2.0]]], [[4]], "no point label 4"),
        ([[[np.nan, 2.0]]], [[1]], "not finite"),
        ([[[1.0, 2.0]]], [[0]], "no positive click"),
        ([[[1.0, 2.0]]], [[-1]], "no positive click"),
        ([[[1.0, 2.0]]], [[2]], "A box needs"),
        ([[[1.0, 2.0], [1.0, 2.0]]], [[1, 3]], "A box needs"),
        ([[[1.0, 2.0]] * 4], [[2, 3, 2, 3]], "A box needs"),
        ([[[9.0, 2.0], [1.0, 2.0]]], [[2, 3]], "ends before it starts"),
    ],
)
def test_invalid_tensors_are_refused(points: object, labels: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_prompts(np.array(points, np.float32), np.array(labels, np.int32))


def test_padding_values_are_ignored() -> None:
    points = np.array([[[np.inf, np.nan], [1, 2]]], np.float32)
    assert to_prompts(points, np.array([[-1, 1]], np.int32)) == [Prompt(((1, 2),))]
