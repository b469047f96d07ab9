"""Every black box passes these tests. A new backend is one more entry in ``backend``."""

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
    """A black box and one batch that it segmented: one image each with clicks, with negatives, with a box.

    There are neither encodings nor weights of a model that is elsewhere.
    """

    black_box: BlackBox
    images: NDArray[np.uint8]
    answer: NDArray[np.float32]
    encodings: list[Encoding]
    counts: list[int]
    weights: list[str]

    def ask(self, row: int, prompt: Prompt) -> NDArray[np.float32]:
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
        # Each is loaded, or served, by one worker of xdist.
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
    here = request.param in ("bundled", "sam", "sam2")
    images = _images(shape)
    counts, weights = [black_box.images_queried], [_digest(black_box)] if here else []
    answer = black_box.segment(images, PROMPTS)
    counts.append(black_box.images_queried)
    encodings = [black_box.encode(image) for image in images] if black_box.capabilities.encodings else []
    counts.append(black_box.images_queried)
    weights += [_digest(black_box)] if here else []
    return Backend(black_box, images, answer, encodings, counts, weights)


def test_capabilities(backend: Backend) -> None:
    able = backend.black_box.capabilities
    assert able.name
    assert len(able.weights_sha256) == 64
    assert able.clicks
    assert able.negative_clicks
    assert able.boxes
    assert able.encodings == bool(backend.encodings)
    assert able.batch_size >= 1
    assert able.input_size >= 64


def test_form_of_the_answer(backend: Backend) -> None:
    assert backend.answer.shape == backend.images.shape[:3]
    assert backend.answer.dtype == np.float32
    assert np.isfinite(backend.answer).all()
    assert backend.answer.min() >= 0
    assert backend.answer.max() <= 1


def test_decode_of_encode_is_segment(backend: Backend) -> None:
    """The batch mixes prompts of three kinds, so this also shows that every mask is in its own row."""
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(backend.ask(row, prompt), backend.answer[row], atol=2e-4)


def test_the_prompt_matters(backend: Backend) -> None:
    answers = [backend.ask(0, prompt) for prompt in PROMPTS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(answers[first] - answers[second]).max() > 1e-3


def test_a_negative_click_is_none_of_the_positive(backend: Backend) -> None:
    here, there = (30.0, 8.0), (10.0, 25.0)
    both = backend.ask(1, Prompt((here, there)))
    beside = backend.ask(1, Prompt((here,), (there,)))
    assert np.abs(both - beside).max() > 1e-3


def test_batch_is_one_by_one(backend: Backend) -> None:
    one = backend.black_box.segment(backend.images[1:2], PROMPTS[1:2])
    assert one.shape == (1, *backend.images.shape[1:3])
    np.testing.assert_allclose(one[0], backend.answer[1], atol=2e-4)


def test_memory_of_an_encoding_is_told(backend: Backend) -> None:
    assert all(encoding.nbytes >= 64 * 64 for encoding in backend.encodings)


def test_the_counter_counts_masks_and_nothing_else(backend: Backend) -> None:
    assert backend.counts == [0, 3, 3]
    before = backend.black_box.images_queried
    backend.ask(0, PROMPTS[0])
    assert backend.black_box.images_queried == before + 1


def test_a_spent_budget_asks_nothing(backend: Backend) -> None:
    black_box = backend.black_box
    before = black_box.images_queried
    black_box.budget = before + 2
    try:
        with pytest.raises(BudgetSpentError, match="3 more exceed the budget"):
            black_box.segment(backend.images, PROMPTS)
        assert black_box.images_queried == before
        backend.ask(0, PROMPTS[0])
        backend.ask(0, PROMPTS[0])
        with pytest.raises(BudgetSpentError):
            backend.ask(0, PROMPTS[0])
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
def test_images_of_another_form_are_refused(backend: Backend, images: NDArray[np.uint8]) -> None:
    before = backend.black_box.images_queried
    with pytest.raises(InputError, match=r"\(B, H, W, 3\) and type uint8"):
        backend.black_box.segment(images, [PROMPTS[0]] * len(images))
    assert backend.black_box.images_queried == before


@pytest.mark.parametrize("shape", [(36, 50), (1, 36, 50, 3), (3, 36, 50)])
def test_an_image_of_another_form_is_not_encoded(backend: Backend, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="uint8|has no encodings"):
        backend.black_box.encode(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_another_number_of_prompts_is_refused(backend: Backend, count: int) -> None:
    before = backend.black_box.images_queried
    with pytest.raises(InputError, match=f"3 images but {count} prompts"):
        backend.black_box.segment(backend.images, PROMPTS[:1] * count)
    assert backend.black_box.images_queried == before


def test_weights_stay_and_no_gradient_is_kept(backend: Backend) -> None:
    if not backend.weights:
        pytest.skip("There are no weights here.")
    assert backend.weights[0] == backend.weights[1]
    model = backend.black_box._model  # type: ignore[attr-defined]
    assert not model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_images_are_not_changed_in_place(backend: Backend) -> None:
    np.testing.assert_array_equal(backend.images, _images(backend.images.shape[1:3]))  # type: ignore[arg-type]


def _carry(backend: Backend) -> list[tuple[int, NDArray[np.float32]]]:
    mask = np.zeros(backend.images.shape[1:3], bool)
    mask[10:30, 8:25] = True
    return list(backend.black_box.propagate(lambda index: backend.images[index], {0: mask}, 0, 2))


def test_a_memory_of_slices_is_there_where_it_is_declared(backend: Backend) -> None:
    """A mask is propagated to each slice, each slice is counted, and another mask gives another result."""
    black_box, before = backend.black_box, backend.black_box.images_queried
    if not black_box.capabilities.video:
        with pytest.raises(InputError, match="has no memory of slices; use segment on each"):
            _carry(backend)
        assert black_box.images_queried == before
        return
    ((index, probability),) = _carry(backend)
    assert index == 1
    assert probability.shape == backend.images.shape[1:3]
    assert probability.dtype == np.float32
    assert 0 <= probability.min() <= probability.max() <= 1
    assert black_box.images_queried == before + 1
    np.testing.assert_allclose(_carry(backend)[0][1], probability, atol=1e-5)  # Nothing is left of the first time.
    everywhere = np.ones(backend.images.shape[1:3], bool)
    ((_, other),) = black_box.propagate(lambda index: backend.images[index], {0: everywhere}, 0, 2)
    assert np.abs(other - probability).max() > 1e-4


def test_threads_get_the_answers_that_one_gets(backend: Backend) -> None:
    jobs = [(row, prompt) for row in range(3) for prompt in PROMPTS]
    expected = [backend.ask(row, prompt) for row, prompt in jobs]
    before = backend.black_box.images_queried
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: backend.ask(*job), jobs))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert backend.black_box.images_queried == before + len(jobs)


def test_threads_segment_at_once(bundled: BlackBox) -> None:
    images, before = _images(), bundled.images_queried
    expected = bundled.segment(images, PROMPTS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: bundled.segment(images, PROMPTS), range(8)))
    for answer in found:
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert bundled.images_queried == before + 27


@pytest.mark.parametrize("shape", [(128, 128), (128, 40), (17, 300), (1, 9), (200, 200)])
def test_any_shape_comes_back(bundled: BlackBox, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, *shape, 3)).astype(np.uint8)
    answer = bundled.segment(images, [Prompt(((0.0, 0.0),))] * 2)
    assert answer.shape == (2, *shape)


def test_more_images_than_fit_in_a_batch(bundled: BlackBox) -> None:
    count = bundled.capabilities.batch_size + 3
    images = np.random.default_rng(0).integers(0, 255, (count, 40, 40, 3)).astype(np.uint8)
    prompts = [Prompt(((float(row), 20.0),)) for row in range(count)]
    answer = bundled.segment(images, prompts)
    assert answer.shape == (count, 40, 40)
    for row in (0, count - 4, count - 3, count - 1):
        alone = bundled.segment(images[row : row + 1], prompts[row : row + 1])[0]
        np.testing.assert_allclose(alone, answer[row], atol=2e-4)


def test_a_click_finds_its_own_blob(bundled: BlackBox) -> None:
    """The mask is where the click is, on an image that is not square."""
    rows, columns = np.mgrid[:60, :120]
    grey = np.full((60, 120), 40, np.uint8)
    blobs = {(25.0, 30.0): None, (90.0, 20.0): None}
    for x, y in blobs:
        grey[(rows - y) ** 2 + (columns - x) ** 2 < 121] = 190
    images = np.repeat(np.repeat(grey[None, ..., None], 3, axis=-1), 2, axis=0)
    answer = bundled.segment(images, [Prompt((point,)) for point in blobs]) > 0.5
    for mask, (x, y) in zip(answer, blobs, strict=True):
        found = np.argwhere(mask).mean(0)
        np.testing.assert_allclose(found, (y, x), atol=4)


def test_sam_predictor_gives_the_answer_of_the_black_box(bundled: BlackBox) -> None:
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
def test_sizes_that_the_bundled_model_cannot_have(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        build_bundled_model(size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("declared", "file", "warned"),
    [("medsam", "model.safetensors", False), ("medsam", "MedSAM.safetensors", False), ("sam", "MedSAM.pt", True)],
)
def test_medsam_is_declared_and_a_name_is_a_hint(
    sam_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, declared: str, file: str, warned: bool
) -> None:
    """Earlier releases recognised MedSAM by the name of its file alone; their settings still load it."""
    path = tmp_path / file
    if warned:
        torch.save(load_file(sam_weights), path)
    else:
        path.hardlink_to(sam_weights)
    black_box = load_black_box(declared, weights=path, device="cpu")
    able = black_box.capabilities
    assert (able.name, able.preprocessing) == ("medsam_vit_b", "medsam")
    assert (able.clicks, able.negative_clicks, able.boxes) == (False, False, True)
    assert ("MedSAM.pt is loaded as MedSAM because of its name. Declare it with black_box=medsam" in caplog.text) is (
        warned
    )
    with pytest.raises(InputError, match="medsam_vit_b understands boxes only. Draw a box"):
        black_box.segment(_images()[:1], PROMPTS[:1])
    assert black_box.images_queried == 0


@pytest.mark.slow
def test_a_sam_is_told_by_its_weights(sam_weights: Path) -> None:
    able = load_black_box("sam", weights=sam_weights, device="cpu").capabilities
    assert (able.name, able.input_size, able.preprocessing) == ("sam_vit_b", 1024, "sam")
    assert able.weights_sha256 == hashlib.sha256(sam_weights.read_bytes()).hexdigest()
