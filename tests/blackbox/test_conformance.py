"""Tests that every black box passes. Add a new backend to the fixture ``backend``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor, sam_model_registry

from baps.blackbox import BlackBox, Encoding, RemoteSettings, load_black_box
from baps.blackbox.bundled_model import build_bundled_model
from baps.blackbox.sam2 import build_sam2_model
from baps.errors import BudgetSpentError, InputError
from baps.prompts import Prompt

PROMPTS = [
    Prompt(((12.0, 20.0),)),
    Prompt(((30.0, 8.0), (25.5, 10.0)), ((2.0, 30.0),)),
    Prompt(box=(5.0, 4.0, 40.0, 28.0)),
]


@dataclass
class Backend:
    """A black box and a batch that it segmented: an image with clicks, one with negative clicks, and one with a box.

    A remote model has neither encodings nor weights.
    """

    black_box: BlackBox
    images: NDArray[np.uint8]
    answer: NDArray[np.float32]
    encodings: list[Encoding]
    counts: list[int]
    weights: list[str]

    def segment_one(self, row: int, prompt: Prompt) -> NDArray[np.float32]:
        """Segment one prompt on one image of the batch, with its encoding if there is one."""
        if self.encodings:
            return self.black_box.decode(self.encodings[row], prompt)
        return self.black_box.segment(self.images[row : row + 1], [prompt])[0]


def _digest(black_box: BlackBox) -> str:
    digest = hashlib.sha256()
    for name, value in black_box._model.state_dict().items():  # type: ignore[attr-defined]
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _images(shape: tuple[int, int] = (36, 50)) -> NDArray[np.uint8]:
    """Draw three images of blobs on noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    grey = random.normal(70, 10, (3, *shape))
    for row, (x, y) in enumerate(((12, 20), (28, 9), (22, 16))):
        grey[row][(rows - y) ** 2 + (columns - x) ** 2 < 49] += 90
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.fixture(scope="session")
def sam_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write SAM vit_b with random weights in half precision."""
    path = tmp_path_factory.mktemp("sam") / "random_vit_b.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = sam_model_registry["vit_b"]().state_dict()
    save_file({key: value.half() for key, value in state.items()}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def sam2_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write SAM 2.1 tiny with random weights in the form of the published file."""
    path = tmp_path_factory.mktemp("sam2") / "random_tiny.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({"model": build_sam2_model("t").state_dict()}, path)
    yield path
    path.unlink()


@pytest.fixture(
    scope="session",
    params=[
        "bundled",
        # Each one is loaded or served by one worker of xdist.
        pytest.param("sam", marks=[pytest.mark.slow, pytest.mark.xdist_group("sam")]),
        pytest.param("sam2", marks=[pytest.mark.slow, pytest.mark.xdist_group("sam2")]),
        pytest.param("http", marks=[pytest.mark.server, pytest.mark.xdist_group("tests/blackbox::bundled_host")]),
        pytest.param("grpc", marks=[pytest.mark.server, pytest.mark.xdist_group("tests/blackbox::bundled_host")]),
    ],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    shape = (36, 50)
    if request.param == "bundled":
        black_box = load_black_box("bundled", device="cpu")
    elif request.param in ("sam", "sam2"):
        weights_file = request.getfixturevalue(f"{request.param}_weights")
        black_box = load_black_box(request.param, weights=weights_file, device="cpu")
    else:
        address = request.getfixturevalue("bundled_host").addresses[request.param]
        black_box = load_black_box("remote", remote=RemoteSettings(address))
        shape = (black_box.capabilities.input_size,) * 2
    local = request.param in ("bundled", "sam", "sam2")
    images = _images(shape)
    counts, weights = [black_box.images_queried], [_digest(black_box)] if local else []
    answer = black_box.segment(images, PROMPTS)
    counts.append(black_box.images_queried)
    encodings = [black_box.encode(image) for image in images] if black_box.capabilities.encodings else []
    counts.append(black_box.images_queried)
    weights += [_digest(black_box)] if local else []
    return Backend(black_box, images, answer, encodings, counts, weights)


def test_capabilities(backend: Backend) -> None:
    capabilities = backend.black_box.capabilities
    assert capabilities.name
    assert len(capabilities.weights_sha256) == 64
    assert capabilities.clicks
    assert capabilities.negative_clicks
    assert capabilities.boxes
    assert capabilities.encodings == bool(backend.encodings)
    assert capabilities.batch_size >= 1
    assert capabilities.input_size >= 64


def test_shape_and_type_of_the_probabilities(backend: Backend) -> None:
    assert backend.answer.shape == backend.images.shape[:3]
    assert backend.answer.dtype == np.float32
    assert np.isfinite(backend.answer).all()
    assert backend.answer.min() >= 0
    assert backend.answer.max() <= 1


def test_encode_and_decode_equal_segment(backend: Backend) -> None:
    """The batch mixes prompts of three kinds, so this also shows that every mask is in its own row."""
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(backend.segment_one(row, prompt), backend.answer[row], atol=2e-4)


def test_prompt_changes_the_mask(backend: Backend) -> None:
    answers = [backend.segment_one(0, prompt) for prompt in PROMPTS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(answers[first] - answers[second]).max() > 1e-3


def test_negative_click_differs_from_a_positive_one(backend: Backend) -> None:
    local, second_point = (30.0, 8.0), (10.0, 25.0)
    both = backend.segment_one(1, Prompt((local, second_point)))
    beside = backend.segment_one(1, Prompt((local,), (second_point,)))
    assert np.abs(both - beside).max() > 1e-3


def test_batch_equals_single_images(backend: Backend) -> None:
    first = backend.black_box.segment(backend.images[1:2], PROMPTS[1:2])
    assert first.shape == (1, *backend.images.shape[1:3])
    np.testing.assert_allclose(first[0], backend.answer[1], atol=2e-4)


def test_encoding_reports_its_memory(backend: Backend) -> None:
    assert all(encoding.nbytes >= 64 * 64 for encoding in backend.encodings)


def test_counter_counts_masks_only(backend: Backend) -> None:
    assert backend.counts == [0, 3, 3]
    before = backend.black_box.images_queried
    backend.segment_one(0, PROMPTS[0])
    assert backend.black_box.images_queried == before + 1


def test_spent_budget_stops_queries(backend: Backend) -> None:
    black_box = backend.black_box
    before = black_box.images_queried
    black_box.budget = before + 2
    try:
        with pytest.raises(BudgetSpentError, match="3 more exceed the budget"):
            black_box.segment(backend.images, PROMPTS)
        assert black_box.images_queried == before
        backend.segment_one(0, PROMPTS[0])
        backend.segment_one(0, PROMPTS[0])
        with pytest.raises(BudgetSpentError):
            backend.segment_one(0, PROMPTS[0])
        assert black_box.images_queried == before + 2
    finally:
        black_box.budget = None


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((36, 50, 3), np.uint8),
        np.zeros((1, 3, 36, 50), np.uint8),
        np.zeros((1, 36, 50, 1), np.uint8),
        np.zeros((1, 36, 50, 3), np.float32),
        np.zeros((1, 36, 50, 3), np.int16),
        np.zeros((1, 0, 50, 3), np.uint8),
        np.zeros((0, 36, 50, 3), np.uint8),
    ],
    ids=lambda images: f"{images.shape} {images.dtype}",
)
def test_images_of_another_shape_or_type_are_refused(backend: Backend, images: NDArray[np.uint8]) -> None:
    before = backend.black_box.images_queried
    with pytest.raises(InputError, match=r"\(B, H, W, 3\) and type uint8"):
        backend.black_box.segment(images, [PROMPTS[0]] * len(images))
    assert backend.black_box.images_queried == before


@pytest.mark.parametrize("shape", [(36, 50), (1, 36, 50, 3), (3, 36, 50)])
def test_image_of_another_shape_or_type_is_not_encoded(backend: Backend, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="uint8|has no encodings"):
        backend.black_box.encode(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_another_number_of_prompts_is_refused(backend: Backend, count: int) -> None:
    before = backend.black_box.images_queried
    with pytest.raises(InputError, match=f"3 images but {count} prompts"):
        backend.black_box.segment(backend.images, PROMPTS[:1] * count)
    assert backend.black_box.images_queried == before


def test_weights_are_unchanged_and_have_no_gradient(backend: Backend) -> None:
    if not backend.weights:
        pytest.skip("There are no weights here.")
    assert backend.weights[0] == backend.weights[1]
    model = backend.black_box._model  # type: ignore[attr-defined]
    assert not model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_images_are_not_changed_in_place(backend: Backend) -> None:
    np.testing.assert_array_equal(backend.images, _images(backend.images.shape[1:3]))  # type: ignore[arg-type]


def _propagate(backend: Backend) -> list[tuple[int, NDArray[np.float32]]]:
    mask = np.zeros(backend.images.shape[1:3], bool)
    mask[10:30, 8:25] = True
    return list(backend.black_box.propagate(lambda index: backend.images[index], {0: mask}, 0, 2))


def test_declared_propagation_works(backend: Backend) -> None:
    """A mask is propagated to each slice, each slice is counted, and another mask gives another result."""
    black_box, before = backend.black_box, backend.black_box.images_queried
    if not black_box.capabilities.video:
        with pytest.raises(InputError, match="has no memory of slices; use segment on each"):
            _propagate(backend)
        assert black_box.images_queried == before
        return
    ((index, probability),) = _propagate(backend)
    assert index == 1
    assert probability.shape == backend.images.shape[1:3]
    assert probability.dtype == np.float32
    assert 0 <= probability.min() <= probability.max() <= 1
    assert black_box.images_queried == before + 1
    np.testing.assert_allclose(
        _propagate(backend)[0][1], probability, atol=1e-5
    )  # The first propagation leaves no state.
    everywhere = np.ones(backend.images.shape[1:3], bool)
    ((_, second),) = black_box.propagate(lambda index: backend.images[index], {0: everywhere}, 0, 2)
    assert np.abs(second - probability).max() > 1e-4


def test_threads_get_the_same_masks(backend: Backend) -> None:
    jobs = [(row, prompt) for row in range(3) for prompt in PROMPTS]
    expected = [backend.segment_one(row, prompt) for row, prompt in jobs]
    before = backend.black_box.images_queried
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda job: backend.segment_one(*job), jobs))
    for first, second in zip(result, expected, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)
    assert backend.black_box.images_queried == before + len(jobs)


def test_threads_segment_at_once(bundled: BlackBox) -> None:
    images, before = _images(), bundled.images_queried
    expected = bundled.segment(images, PROMPTS)
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda _: bundled.segment(images, PROMPTS), range(8)))
    for answer in result:
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert bundled.images_queried == before + 27


@pytest.mark.parametrize("shape", [(128, 128), (128, 40), (17, 300), (1, 9), (200, 200)])
def test_masks_have_the_shape_of_the_image(bundled: BlackBox, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, *shape, 3)).astype(np.uint8)
    answer = bundled.segment(images, [Prompt(((0.0, 0.0),))] * 2)
    assert answer.shape == (2, *shape)


def test_more_images_than_a_batch(bundled: BlackBox) -> None:
    count = bundled.capabilities.batch_size + 3
    images = np.random.default_rng(0).integers(0, 255, (count, 40, 40, 3)).astype(np.uint8)
    prompts = [Prompt(((float(row), 20.0),)) for row in range(count)]
    answer = bundled.segment(images, prompts)
    assert answer.shape == (count, 40, 40)
    for row in (0, count - 4, count - 3, count - 1):
        alone = bundled.segment(images[row : row + 1], prompts[row : row + 1])[0]
        np.testing.assert_allclose(alone, answer[row], atol=2e-4)


def test_click_segments_its_own_blob(bundled: BlackBox) -> None:
    """The mask is where the click is, on an image that is not square."""
    rows, columns = np.mgrid[:60, :120]
    grey = np.full((60, 120), 40, np.uint8)
    blobs = {(25.0, 30.0): None, (90.0, 20.0): None}
    for x, y in blobs:
        grey[(rows - y) ** 2 + (columns - x) ** 2 < 121] = 190
    images = np.repeat(np.repeat(grey[None, ..., None], 3, axis=-1), 2, axis=0)
    answer = bundled.segment(images, [Prompt((point,)) for point in blobs]) > 0.5
    for mask, (x, y) in zip(answer, blobs, strict=True):
        result = np.argwhere(mask).mean(0)
        np.testing.assert_allclose(result, (y, x), atol=4)


def test_sam_predictor_gives_the_same_mask(bundled: BlackBox) -> None:
    """The package's own predictor accepts the bundled model; its mask differs only by the resizing."""
    side = bundled.capabilities.input_size
    model = build_bundled_model(side).eval()
    model.load_state_dict(bundled._model.state_dict())  # type: ignore[attr-defined]
    rows, columns = np.mgrid[:side, :side]
    image = np.full((side, side, 3), 50, np.uint8)
    image[(rows - 70) ** 2 + (columns - 50) ** 2 < 400] = 180
    predictor = SamPredictor(model)
    predictor.set_image(image)
    logits, _, _ = predictor.predict(
        np.array([[50.0, 70.0]]), np.array([1]), multimask_output=False, return_logits=True
    )
    ours = bundled.segment(image[None], [Prompt(((50.0, 70.0),))])[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[0])), ours, atol=1e-3)


@pytest.mark.parametrize("size", [0, -32, 100])
def test_invalid_image_sizes_of_the_bundled_model_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        build_bundled_model(size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("declared", "file", "warned"),
    [("medsam", "model.safetensors", False), ("medsam", "MedSAM.safetensors", False), ("sam", "MedSAM.pt", True)],
)
def test_medsam_is_declared_and_its_file_name_is_a_hint(
    sam_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, declared: str, file: str, warned: bool
) -> None:
    """Earlier releases recognised MedSAM by the name of its file alone; their settings still load it."""
    path = tmp_path / file
    if warned:
        torch.save(load_file(sam_weights), path)
    else:
        path.hardlink_to(sam_weights)
    black_box = load_black_box(declared, weights=path, device="cpu")
    capabilities = black_box.capabilities
    assert (capabilities.name, capabilities.preprocessing) == ("medsam_vit_b", "medsam")
    assert (capabilities.clicks, capabilities.negative_clicks, capabilities.boxes) == (False, False, True)
    assert ("MedSAM.pt is loaded as MedSAM because of its name. Declare it with black_box=medsam" in caplog.text) is (
        warned
    )
    with pytest.raises(InputError, match="medsam_vit_b understands boxes only. Draw a box"):
        black_box.segment(_images()[:1], PROMPTS[:1])
    assert black_box.images_queried == 0


@pytest.mark.slow
def test_sam_variant_is_recognised_by_its_weights(sam_weights: Path) -> None:
    capabilities = load_black_box("sam", weights=sam_weights, device="cpu").capabilities
    assert (capabilities.name, capabilities.input_size, capabilities.preprocessing) == ("sam_vit_b", 1024, "sam")
    assert capabilities.weights_sha256 == hashlib.sha256(sam_weights.read_bytes()).hexdigest()
