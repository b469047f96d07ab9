from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sam2.sam2_image_predictor import SAM2ImagePredictor

from baps.blackbox import load_black_box
from baps.blackbox.sam2 import Sam2BlackBox, build_sam2_model, sam2_from_state
from baps.blackbox.sam2_memory import Sam2Memory
from baps.errors import InputError
from baps.prompts import Prompt

pytestmark = pytest.mark.slow

PROMPTS = [
    Prompt(((100.0, 50.0),)),
    Prompt(((100.0, 50.0), (30.0, 200.0)), ((20.0, 30.0),)),
    Prompt(box=(10.0, 12.0, 200.0, 220.0)),
    Prompt(((100.0, 50.0),), ((20.0, 30.0),), (10.0, 12.0, 200.0, 220.0)),
]


@pytest.mark.parametrize("shape", [(300, 400), (256, 256), (1024, 1024), (1200, 700)], ids=str)
def test_masks_equal_the_packages_predictor(shape: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        black_box = Sam2BlackBox(build_sam2_model("t"), "random")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    predictor = SAM2ImagePredictor(black_box._model)
    predictor.set_image(image)
    encoding = black_box.encode(image)
    answers = [black_box.decode(encoding, prompt) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        clicks = [*prompt.positive, *prompt.negative]
        logits, _, _ = predictor.predict(
            np.array(clicks) if clicks else None,
            np.array([1] * len(prompt.positive) + [0] * len(prompt.negative)) if clicks else None,
            box=np.array(prompt.box) if prompt.box else None,
            multimask_output=False,
            return_logits=True,
        )
        np.testing.assert_allclose(answer, 1 / (1 + np.exp(-logits[0])), atol=1e-5)
    assert all(np.abs(image - next_mask).max() > 1e-4 for image, next_mask in itertools.pairwise(answers))


@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
@pytest.mark.parametrize("version", ["2", "2.1"])
def test_sizes_and_versions_are_recognised_by_their_weights(size: str, version: str) -> None:
    state = build_sam2_model(size, version).state_dict()
    model, name = sam2_from_state(state)
    assert name == f"sam{version}_hiera_{size}"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_incompatible_tensors_are_refused(tmp_path: Path) -> None:
    state = build_sam2_model("t").state_dict()
    del state["no_mem_embed"]
    file = tmp_path / "a.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    with pytest.raises(
        InputError, match=r"(?s)a.safetensors: It looks like SAM 2.1 t, but its tensors do not fit.*no_mem_embed"
    ):
        load_black_box("sam2", file, device="cpu")


@pytest.fixture(scope="module")
def video() -> tuple[Sam2BlackBox, NDArray[np.uint8], NDArray[np.bool_]]:
    """Make SAM 2.1 tiny with random weights, five slices, and a mask."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        black_box = Sam2BlackBox(build_sam2_model("t"), "random")
    slices = np.random.default_rng(0).integers(0, 256, (5, 96, 128, 3), np.uint8)
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:90] = True
    return black_box, slices, mask


def test_propagation_equals_the_packages_video_predictor(
    video: tuple[Sam2BlackBox, NDArray[np.uint8], NDArray[np.bool_]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package reads frames from a folder, so its loader is replaced by one that returns these slices."""
    black_box, slices, mask = video
    model = black_box._model
    with torch.inference_mode():
        frames = torch.cat([black_box._normalised(black_box._pixels(image[None])) for image in slices[:3]])
    monkeypatch.setattr("sam2.sam2_video_predictor.load_video_frames", lambda **_: (frames, 96, 128))
    state = model.init_state("a folder")
    model.add_new_mask(state, 0, 1, mask)
    expected = {index: logits[0, 0] for index, _, logits in model.propagate_in_video(state)}
    results = dict(black_box.propagate(lambda index: slices[index], {0: mask}, 0, 3))
    assert list(results) == [1, 2]
    for index, probability in results.items():
        np.testing.assert_allclose(probability, expected[index].sigmoid().numpy(), atol=1e-5)


def test_background_click_and_second_mask_change_the_propagation(
    video: tuple[Sam2BlackBox, NDArray[np.uint8], NDArray[np.bool_]],
) -> None:
    black_box, slices, mask = video
    plain = dict(black_box.propagate(lambda index: slices[index], {2: mask}, 2, 0))
    corrected = dict(black_box.propagate(lambda index: slices[index], {2: mask}, 2, 0, {1: [(50.0, 40.0)]}))
    between = dict(black_box.propagate(lambda index: slices[index], {2: mask, 0: ~mask}, 2, 0))
    assert list(plain) == list(corrected) == list(between) == [1]
    assert np.abs(plain[1] - corrected[1]).max() > 1e-4
    assert np.abs(plain[1] - between[1]).max() > 1e-4


def test_distant_slices_are_forgotten(
    video: tuple[Sam2BlackBox, NDArray[np.uint8], NDArray[np.bool_]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first mask is not forgotten."""
    black_box, slices, mask = video
    memory = Sam2Memory(black_box._model, mask.shape)
    monkeypatch.setattr(black_box._model, "num_maskmem", 1)
    monkeypatch.setattr(black_box._model, "max_obj_ptrs_in_encoder", 1)
    with torch.inference_mode():
        images = [black_box._normalised(black_box._pixels(image[None])) for image in slices[:4]]
        memory.remember(0, images[0], mask)
        for index in (1, 2, 3):
            memory.propagate(index, images[index], False, ())
    (outputs,) = memory._state["output_dict_per_obj"].values()
    assert list(outputs["cond_frame_outputs"]) == [0]
    assert list(outputs["non_cond_frame_outputs"]) == [2, 3]
    assert list(memory._state["images"]) == [3]
