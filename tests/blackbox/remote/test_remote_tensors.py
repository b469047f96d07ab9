from __future__ import annotations

import numpy as np
import pytest

from baps.blackbox.remote.inference_protocol import Description, Tensor
from baps.blackbox.remote.remote_tensors import TensorForm, check_description, check_output
from baps.errors import BapsError, InputError

INPUTS = {
    "image": Tensor("UINT8", (-1, 64, 64, 3)),
    "points": Tensor("FP32", (-1, -1, 2)),
    "labels": Tensor("INT32", (-1, -1)),
}
OUTPUTS = {"probabilities": Tensor("FP32", (-1, 64, 64))}


def _read(inputs: dict[str, Tensor | None] | None = None, outputs: dict[str, Tensor] | None = None) -> TensorForm:
    """Check the metadata of a model with changed tensors; None omits one."""
    merged = {name: tensor for name, tensor in {**INPUTS, **(inputs or {})}.items() if tensor}
    return check_description(Description("m", (), "", merged, OUTPUTS if outputs is None else outputs), "there")


def test_compatible_model_is_accepted() -> None:
    assert _read() == TensorForm("probabilities", 64, False, False)


def test_sizes_of_the_slices_are_sent_to_a_model_that_declares_them() -> None:
    assert _read({"sizes": Tensor("INT32", (-1, 2))}) == TensorForm("probabilities", 64, False, True)


@pytest.mark.parametrize("datatype", ["UINT8", "BOOL"])
def test_masks_are_accepted(datatype: str) -> None:
    assert _read(outputs={"masks": Tensor(datatype, (-1, 64, 64)), "iou": Tensor("FP32", (-1,))}).output == "masks"


def test_probabilities_are_preferred_to_masks() -> None:
    assert _read(outputs={"masks": Tensor("BOOL", (-1, 64, 64)), **OUTPUTS}).output == "probabilities"


def test_any_image_size_is_accepted() -> None:
    free = {"image": Tensor("UINT8", (-1, -1, -1, 3))}
    assert _read(free, {"probabilities": Tensor("FP32", (-1, -1, -1))}).image_size is None
    assert _read(free).image_size == 64
    assert _read(outputs={"probabilities": Tensor("FP32", (-1, -1, -1))}).image_size == 64


def test_single_image_per_request_is_recognised() -> None:
    assert _read({"image": Tensor("UINT8", (1, 64, 64, 3))}).single_image


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": Tensor("FP32", (-1, 64, 64, 3))}, r"image is FP32 \[-1, 64, 64, 3\], but UINT8 \[-1, H, W, 3\] is"),
        ({"image": Tensor("UINT8", (-1, 3, 64, 64))}, r"image is UINT8 \[-1, 3, 64, 64\]"),
        ({"image": Tensor("UINT8", (64, 64, 3))}, r"image is UINT8 \[64, 64, 3\]"),
        ({"image": Tensor("UINT8", (8, 64, 64, 3))}, r"image is UINT8 \[8, "),
        ({"image": Tensor("UINT8", (-1, 0, 64, 3))}, r"image is UINT8 \[-1, 0, "),
        ({"image": Tensor("UINT8", (-1, 64, 48, 3))}, "squares of one size"),
        ({"image": Tensor("UINT8", (-1, 32, 32, 3))}, "squares of one size"),
        ({"points": Tensor("FP64", (-1, -1, 2))}, r"points is FP64 \[-1, -1, 2\], but FP32 \[-1, -1, 2\] is expected"),
        ({"points": Tensor("FP32", (-1, 4, 2))}, r"points is FP32 \[-1, 4, 2\]"),
        ({"labels": None}, r"labels is missing, but INT32 \[-1, -1\] is expected"),
        ({"sizes": Tensor("INT32", (-1, 3))}, r"sizes is INT32 \[-1, 3\], but INT32 \[-1, 2\] is expected"),
        ({"mask_input": Tensor("FP32", (-1, 256, 256))}, "an input mask_input, for which there is no value"),
    ],
)
def test_other_inputs_are_refused(inputs: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _read(inputs)
    assert "there cannot be used as a black box" in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, r"output probabilities is missing, but FP32 \[-1, H, W\] is expected"),
        ({"logits": Tensor("FP32", (-1, 64, 64))}, "probabilities is missing"),
        ({"probabilities": Tensor("FP16", (-1, 64, 64))}, "probabilities is FP16"),
        ({"probabilities": Tensor("FP32", (-1, 1, 64, 64))}, r"is FP32 \[-1, 1, 64, 64\]"),
        ({"masks": Tensor("INT64", (-1, 64, 64))}, r"masks is INT64 .*, but UINT8 or BOOL \[-1, H, W\] is expected"),
    ],
)
def test_other_outputs_are_refused(outputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(outputs=outputs)


def test_error_names_every_problem() -> None:
    with pytest.raises(InputError, match="points.*labels.*probabilities"):
        _read({"points": None, "labels": None}, {})


SHAPE = (2, 3, 3)


def test_valid_probabilities_are_unchanged() -> None:
    values = np.random.default_rng(0).random(SHAPE, np.float32)
    np.testing.assert_array_equal(check_output(values, SHAPE, "probabilities", "there"), values)


def test_rounding_errors_beyond_0_and_1_are_clipped() -> None:
    values = np.full(SHAPE, 1 + 1e-6, np.float32)
    values[0] = -1e-6
    result = check_output(values, SHAPE, "probabilities", "there")
    assert (result.min(), result.max()) == (0, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.bool_])
def test_masks_are_converted_to_probabilities(kind: type) -> None:
    result = check_output(np.eye(3, dtype=kind)[None].repeat(2, 0), SHAPE, "masks", "there")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.eye(3, dtype=np.float32)[None].repeat(2, 0))


@pytest.mark.parametrize(
    ("answer", "output", "message"),
    [
        (np.zeros((1, 3, 3), np.float32), "probabilities", r"shape \(1, 3, 3\) and type float32, but \(2, 3, 3\)"),
        (np.zeros((2, 1, 3, 3), np.float32), "probabilities", "shape"),
        (np.zeros(SHAPE, np.float64), "probabilities", "type float64"),
        (np.zeros(SHAPE, np.float32), "masks", "type float32"),
        (np.full(SHAPE, np.nan, np.float32), "probabilities", "not finite"),
        (np.full(SHAPE, np.inf, np.float32), "probabilities", "not finite"),
        (np.full(SHAPE, 1.01, np.float32), "probabilities", "reach from 1.01 to 1.01"),
        (np.full(SHAPE, -3, np.float32), "probabilities", "reach from -3"),
        (np.full(SHAPE, 255, np.uint8), "masks", "reach from 255 to 255"),
    ],
)
def test_invalid_outputs_are_refused(answer: np.ndarray, output: str, message: str) -> None:
    with pytest.raises(BapsError, match=message) as caught:
        check_output(answer, SHAPE, output, "there")
    assert not isinstance(caught.value, InputError)  # An error of the server, not of the user.
