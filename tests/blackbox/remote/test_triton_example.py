"""The model that docs/triton-sam serves gives the answers of the local SAM."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from baps.blackbox.loading import bundled_network
from baps.blackbox.sam import SamBlackBox
from baps.prompts import Prompt
from tests.support.paths import ROOT

SIZES = [(200, 256), (256, 120)]


@pytest.fixture
def triton_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    modules = {name: ModuleType(name) for name in ("triton_python_backend_utils", "segment_anything")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["segment_anything"].sam_model_registry = {}  # type: ignore[attr-defined]
    for name, value in {
        "get_input_tensor_by_name": lambda request, name: request[name],
        "Tensor": lambda name, values: values,
        "InferenceResponse": lambda outputs, error=None: error or outputs[0],
        "TritonError": lambda message: message,
    }.items():
        setattr(modules["triton_python_backend_utils"], name, value)
    spec = importlib.util.spec_from_file_location("triton_sam", ROOT / "docs" / "triton-sam" / "sam" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.model, model.device = bundled_network()[0].eval(), torch.device("cpu")
    return model


def test_padded_slices_get_the_answers_of_the_local_model(triton_model: Any) -> None:
    side = triton_model.model.image_encoder.img_size
    sizes = [(side * height // 256, side * width // 256) for height, width in SIZES]
    images = np.zeros((2, side, side, 3), np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = np.random.default_rng(3).integers(0, 256, (height, width, 3))
    prompts = [Prompt(((30, 40),), ((60, 20),)), Prompt(((50, 70),), box=(10, 15, 55, 90))]
    points = np.array([[(30, 40), (60, 20), (0, 0)], [(50, 70), (10, 15), (55, 90)]], np.float32)
    labels = np.array([[1, 0, -1], [1, 2, 3]], np.int32)

    local = SamBlackBox(triton_model.model, "sam").segment(images, prompts, sizes)
    served = triton_model.segment(images, points, labels, np.array(sizes, np.int32))

    for ours, theirs, (height, width) in zip(local, served, sizes, strict=True):
        np.testing.assert_allclose(theirs[:height, :width], ours[:height, :width], atol=1e-4)


def test_a_slice_with_padding_is_not_answered_as_a_black_image(triton_model: Any) -> None:
    side = triton_model.model.image_encoder.img_size
    images = np.zeros((1, side, side, 3), np.uint8)
    images[:, : side // 2] = np.random.default_rng(3).integers(0, 256, (1, side // 2, side, 3))
    points, labels = np.array([[(30, 40)]], np.float32), np.array([[1]], np.int32)
    padded = triton_model.segment(images, points, labels, np.array([(side // 2, side)], np.int32))
    whole = triton_model.segment(images, points, labels, np.array([(side, side)], np.int32))
    assert np.abs(padded - whole)[:, : side // 2].max() > 1e-3


class _Input:
    def __init__(self, values: Any) -> None:
        self.values = values

    def as_numpy(self) -> Any:
        return self.values


def test_requests_that_are_batched_get_their_own_answers(triton_model: Any) -> None:
    """Also those with another number of clicks; one that cannot be used gets an error, and the others do not."""
    side, random = triton_model.model.image_encoder.img_size, np.random.default_rng(3)
    points = [np.array([[(30, 40)]], np.float32), np.array([[(50, 60), (9, 9)]] * 2, np.float32)]
    labels = [np.array([[1]], np.int32), np.array([[1, 0], [1, -1]], np.int32)]
    requests = []
    for point, label in zip(points, labels, strict=True):
        images = random.integers(0, 256, (len(point), side, side, 3)).astype(np.uint8)
        sizes = np.full((len(point), 2), side, np.int32)
        requests.append({"image": images, "points": point, "labels": label, "sizes": sizes})
    broken = {**requests[0], "labels": np.array([[2]], np.int32)}  # The second corner of the box is missing.
    answers = triton_model.execute(
        [{name: _Input(values) for name, values in request.items()} for request in (requests[0], broken, requests[1])]
    )
    for request, answer in zip(requests, (answers[0], answers[2]), strict=True):
        alone = triton_model.segment(request["image"], request["points"], request["labels"], request["sizes"])
        np.testing.assert_allclose(answer, alone, atol=1e-4)
    assert isinstance(answers[1], str)
