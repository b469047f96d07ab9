from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters import click_consistency
from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt, to_pixels, to_tensor
from baps.adapters.zoom import Crop, crop_for_prompt, crop_images, paste_crops, prompt_to_crop
from baps.blackbox import BlackBox
from baps.errors import InputError, NotFoundError
from baps.imaging.canvas import Canvas, Plane
from baps.imaging.metrics import dice
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window
from baps.inference.segmenter import Segmenter
from baps.io import write_nifti
from baps.prompts import Prompt
from baps.registry.store import SHARED, AdapterStore
from tests.support.brightness import BrightnessBlackBox

Phantom = tuple[Volume, NDArray[np.bool_]]
CENTRE = (20, 18, 6)
MIDDLE = Plane(2, CENTRE[2])
CLICK = Prompt((MIDDLE.project(CENTRE),))


@pytest.fixture
def phantom(new_phantom: Callable[..., Phantom]) -> Phantom:
    return new_phantom()


@pytest.fixture
def path(tmp_path: Path, phantom: Phantom) -> Path:
    write_nifti(tmp_path / "phantom.nii.gz", phantom[0])
    return tmp_path / "phantom.nii.gz"


@pytest.fixture
def segmenter(bundled: BlackBox, tmp_path: Path) -> Segmenter:
    return Segmenter(bundled, AdapterStore(tmp_path / "adapters"))


def _publish(
    segmenter: Segmenter,
    label: str,
    kind: str = "basis",
    shift: float = 0.0,
    code: int = 0,
    head: OutputHead | None = None,
    zoom: float = 1.0,
) -> str:
    """Publish an adapter that adds ``shift`` (of white for ``basis``) to every pixel."""
    visual_prompt = build_visual_prompt(kind, condition="click" if kind == "concat" else "label")
    bias = dict(visual_prompt.named_parameters())["head.bias" if kind == "basis" else "last.bias"]
    with torch.no_grad():
        bias.view(3, -1)[:, code] = shift
    capabilities = segmenter.black_box.capabilities
    adapter = Adapter(visual_prompt, head, zoom)
    record = {"adapter": adapter.to_dict(), "black_box": {"weights_sha256": capabilities.weights_sha256}}
    version = segmenter.store.add(label, adapter, record)
    segmenter.store.publish(label, version)
    return version


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ball_is_found_on_every_axis(segmenter: Segmenter, path: Path, phantom: Phantom, axis: int) -> None:
    plane = Plane(axis, CENTRE[axis])
    result = segmenter.segment(path, plane, Prompt((plane.project(CENTRE),)))
    target = plane.extract(phantom[1])
    assert result.mask.shape == target.shape
    assert result.mask.dtype == bool
    assert dice(result.mask, target) > 0.8


@pytest.mark.parametrize("zoom", [1.0, 0.75])
def test_model_with_its_own_preprocessing_sees_the_slice_without_padding(
    path: Path, tmp_path: Path, new_black_box: Callable[..., BrightnessBlackBox], zoom: float
) -> None:
    """The slice is 40 x 36 pixels; its mask is that of a model that sees the padding too."""
    masks = []
    for preprocessing in ("canvas", "sam"):
        black_box = new_black_box(side=64, preprocessing=preprocessing)
        segmenter = Segmenter(black_box, AdapterStore(tmp_path / preprocessing))
        made_for = {"weights_sha256": black_box.capabilities.weights_sha256, "preprocessing": preprocessing}
        adapter = Adapter(build_visual_prompt("basis"), None, zoom)
        version = segmenter.store.add("", adapter, {"adapter": adapter.to_dict(), "black_box": made_for}, "accepted")
        segmenter.store.publish("", version)
        corner = Prompt(((1.0, 34.0),))  # The crop around it reaches into the padding.
        segmentation = segmenter.segment(path, MIDDLE, corner, segmenter.load_adapter(""), interactive=False)
        assert segmentation.adapter == ("", version)
        masks.append(segmentation.probability)
        ((images, _),) = black_box.queries
        height = {"canvas": 64, "sam": 58 if zoom == 1 else 56}[preprocessing]
        assert images.shape == (1, height, 64, 3)
    np.testing.assert_allclose(masks[1], masks[0], atol=2e-3)  # Black padding is not an object either.


def test_too_large_slice_is_refused(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_MAX_VOLUME_MB", "1")
    large = tmp_path / "large.nii.gz"
    write_nifti(large, Volume(np.zeros((400, 400, 2), np.uint8), np.eye(4)))
    with pytest.raises(InputError, match=r"A slice of large.nii.gz .* 1 MB are allowed"):
        segmenter.segment(large, Plane(2, 0), Prompt(((5.0, 5.0),)))


def test_ball_is_found_with_a_box(segmenter: Segmenter, path: Path, phantom: Phantom) -> None:
    target = MIDDLE.extract(phantom[1])
    rows, columns = np.nonzero(target)
    box = (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))
    assert dice(segmenter.segment(path, MIDDLE, Prompt(box=box)).mask, target) > 0.8


def test_same_click_gives_the_same_mask_from_a_cached_encoding(segmenter: Segmenter, path: Path) -> None:
    queried = segmenter.black_box.images_queried
    first = segmenter.segment(path, MIDDLE, CLICK)
    second = segmenter.segment(path, MIDDLE, CLICK)
    assert (first.encoding_cached, second.encoding_cached) == (False, True)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert second.volume is first.volume
    assert segmenter.black_box.images_queried == queried + 2
    assert first.adapter is None
    assert first.seconds > 0


def test_other_slices_and_windows_are_encoded_again(segmenter: Segmenter, path: Path) -> None:
    segmenter.segment(path, MIDDLE, CLICK)
    assert segmenter.segment(path, MIDDLE, Prompt(((3, 3),))).encoding_cached
    assert not segmenter.segment(path, Plane(2, 5), CLICK).encoding_cached
    assert not segmenter.segment(path, Plane(1, 6), CLICK).encoding_cached
    second = segmenter.segment(path, MIDDLE, CLICK, window=Window(0, 400))
    assert not second.encoding_cached
    assert second.window == Window(0, 400)
    assert segmenter.segment(path, MIDDLE, CLICK).window.source == "percentiles"


def test_masks_are_the_same_without_a_cache(segmenter: Segmenter, path: Path, tmp_path: Path) -> None:
    bare = Segmenter(segmenter.black_box, AdapterStore(tmp_path / "adapters"), cache_bytes=0)
    expected = segmenter.segment(path, MIDDLE, CLICK).mask
    for _ in range(2):
        result = bare.segment(path, MIDDLE, CLICK)
        assert not result.encoding_cached
        np.testing.assert_array_equal(result.mask, expected)


@pytest.mark.parametrize("head", [False, True])
def test_an_untrained_adapter_changes_nothing(segmenter: Segmenter, path: Path, head: bool) -> None:
    plain = segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
    for kind in ("basis", "concat"):
        version = _publish(segmenter, "spleen", kind, head=OutputHead() if head else None)
        adapted = segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
        assert adapted.adapter == ("spleen", version)
        np.testing.assert_array_equal(adapted.mask, plain.mask)


def test_published_adapter_is_served_at_once(segmenter: Segmenter, path: Path) -> None:
    plain = segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
    _publish(segmenter, "spleen", shift=-2.0)  # The image becomes black, so the mask must change.
    black = segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
    assert not np.array_equal(black.mask, plain.mask)
    assert not black.encoding_cached
    unadapted = segmenter.segment(path, MIDDLE, CLICK)
    assert unadapted.adapter is None
    np.testing.assert_array_equal(unadapted.mask, plain.mask)
    _publish(segmenter, "spleen", shift=0.0)
    np.testing.assert_array_equal(
        segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen")).mask, plain.mask
    )
    segmenter.store.publish("spleen", "v0001")
    rolled_back = segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
    assert rolled_back.adapter == ("spleen", "v0001")
    np.testing.assert_array_equal(rolled_back.mask, black.mask)


@pytest.mark.parametrize("side", [None, 64], ids=["encodings", "none"])
def test_head_corrects_the_mask_of_every_click(
    segmenter: Segmenter,
    new_black_box: Callable[..., BlackBox],
    path: Path,
    phantom: Phantom,
    lively_head: OutputHead,
    side: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds for the first click on a slice and for the next ones, which use the cached encoding."""
    monkeypatch.setattr(click_consistency, "_TOLERANCE", 9.0)  # No mask violates its clicks.
    segmenter = segmenter if side is None else Segmenter(new_black_box(side=side), segmenter.store)
    _publish(segmenter, "spleen", shift=0.1, head=lively_head)
    adapter = segmenter.store.load("spleen", "v0001").adapter
    black_box = segmenter.black_box
    canvas = Canvas.fit(phantom[0], MIDDLE, black_box.capabilities.input_size)
    pixels = canvas_image(phantom[0], MIDDLE, canvas, choose_window(phantom[0]))[None]
    masks: list[NDArray[np.bool_]] = []
    for prompt in (CLICK, Prompt(((3, 3),)), Prompt((*CLICK.positive, (3, 3)), ((30, 30),)), CLICK):
        placed = [prompt.mapped(canvas.to_canvas)]
        crops = adapter.crop(pixels, placed)
        answer = black_box.segment(adapter.transform_images(crops), placed)
        expected = canvas.restore(adapter.refine_masks(crops, answer)[0]) > 0.5
        result = segmenter.segment(path, MIDDLE, prompt, segmenter.load_adapter("spleen"))
        assert result.encoding_cached == bool(masks and side is None)
        np.testing.assert_array_equal(result.mask, expected)
        assert not np.array_equal(result.mask, canvas.restore(answer[0]) > 0.5)
        masks.append(result.mask)
    np.testing.assert_array_equal(masks[0], masks[3])
    assert not np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("kind", ["basis", "concat"])
@pytest.mark.parametrize("side", [None, 64], ids=["encodings", "none"])
def test_click_is_cropped_once_and_equals_the_separate_steps(
    segmenter: Segmenter,
    new_black_box: Callable[..., BlackBox],
    path: Path,
    phantom: Phantom,
    lively_head: OutputHead,
    side: int | None,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(click_consistency, "_TOLERANCE", 9.0)  # No mask violates its clicks.
    segmenter = segmenter if side is None else Segmenter(new_black_box(side=side), segmenter.store)
    _publish(segmenter, "spleen", kind, shift=0.1, head=lively_head, zoom=0.5)
    adapter, black_box = segmenter.store.load("spleen", "v0001").adapter, segmenter.black_box
    size = black_box.capabilities.input_size
    canvas = Canvas.fit(phantom[0], MIDDLE, size)
    pixels = canvas_image(phantom[0], MIDDLE, canvas, choose_window(phantom[0]))[None]
    cropped: list[Prompt] = []

    def count(prompt: Prompt, *arguments: float) -> Crop:
        cropped.append(prompt)
        return crop_for_prompt(prompt, *arguments)

    monkeypatch.setattr("baps.adapters.adapter.crop_for_prompt", count)
    for prompt in (CLICK, Prompt(((3, 3),)), Prompt((*CLICK.positive, (3, 3)), ((30, 30),)), CLICK):
        placed = prompt.mapped(canvas.to_canvas)
        view = crop_for_prompt(placed, size, 0.5)
        inside, image = [prompt_to_crop(placed, view, size)], to_tensor(pixels)
        part, features = crop_images(image, [view]), adapter.visual_prompt.encoder.features(image)
        transformed = to_pixels(adapter.visual_prompt.transform_images(part, features, inside))
        answer = torch.from_numpy(black_box.segment(transformed, inside))
        refined = lively_head.refine_masks(part, answer, inside)
        expected = canvas.restore(paste_crops(refined, [view], size)[0].numpy())
        cropped.clear()
        result = segmenter.segment(path, MIDDLE, prompt, segmenter.load_adapter("spleen"))
        assert cropped == [placed]
        if side is None:  # Encoding and decoding separately may round differently.
            np.testing.assert_allclose(result.probability, expected, atol=1e-5)
        else:
            np.testing.assert_array_equal(result.probability, expected)
        np.testing.assert_array_equal(result.mask, expected > 0.5)


def test_the_shared_adapter_serves_other_labels(segmenter: Segmenter, path: Path) -> None:
    _publish(segmenter, SHARED, shift=0.1)
    assert segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("liver")).adapter == (SHARED, "v0001")
    assert segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("")).adapter == (SHARED, "v0001")


@pytest.mark.parametrize(("kind", "caching"), [("basis", True), ("concat", False)])
def test_encoding_is_shared_unless_the_prompt_depends_on_the_click(
    segmenter: Segmenter, path: Path, kind: str, caching: bool
) -> None:
    _publish(segmenter, "spleen", kind)
    segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
    assert segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen")).encoding_cached
    assert (
        segmenter.segment(path, MIDDLE, Prompt(((3, 3),)), segmenter.load_adapter("spleen")).encoding_cached is caching
    )


def test_changed_file_is_read_again(segmenter: Segmenter, path: Path, new_phantom: Callable[..., Phantom]) -> None:
    window = Window(0, 255)
    first = segmenter.segment(path, MIDDLE, CLICK, window=window)
    write_nifti(path, new_phantom(inside=10, outside=10, seed=1)[0])
    second = segmenter.segment(path, MIDDLE, CLICK, window=window)
    assert not np.array_equal(first.mask, second.mask)
    assert second.volume is not first.volume
    assert not second.encoding_cached


def test_black_box_without_encodings_is_used(
    new_black_box: Callable[..., BlackBox], tmp_path: Path, path: Path, phantom: Phantom
) -> None:
    segmenter = Segmenter(new_black_box(side=64), AdapterStore(tmp_path / "adapters"))
    result = segmenter.segment(path, MIDDLE, CLICK)
    assert not result.encoding_cached
    assert dice(result.mask, MIDDLE.extract(phantom[1])) > 0.9
    _publish(segmenter, "spleen", shift=-2.0)
    assert not segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen")).mask.any()


def test_prompt_is_scaled_to_the_canvas(
    new_black_box: Callable[..., BlackBox], tmp_path: Path, new_phantom: Callable[..., Phantom]
) -> None:
    volume, _ = new_phantom(shape=(40, 20, 4), spacing=(1.0, 3.0, 1.0))
    write_nifti(tmp_path / "a.nii", volume)
    black_box = new_black_box(side=60)
    Segmenter(black_box, AdapterStore(tmp_path / "adapters")).segment(
        tmp_path / "a.nii", Plane(2, 1), Prompt(((39, 19),), ((0, 0),), (0, 0, 39, 19))
    )
    ((images, (prompt,)),) = black_box.queries  # type: ignore[attr-defined]
    # 40 x 60 mm on 60 pixels: 40 across and 60 down, so a factor of 1 and of 3.
    assert images.shape == (1, 60, 60, 3)
    assert prompt.positive == ((39.0, 58.0),)
    assert prompt.negative == ((0.0, 1.0),)
    assert prompt.box == (0.0, 1.0, 39.0, 58.0)
    assert not images[0, :, 40:].any()
    assert images[0, :, :40].any()


def test_errors_are_raised(segmenter: Segmenter, path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        segmenter.segment(tmp_path / "absent.nii", MIDDLE, CLICK)
    with pytest.raises(InputError, match="Slice 12 lies outside"):
        segmenter.segment(path, Plane(2, 12), CLICK)
    with pytest.raises(InputError, match="Slice -1 lies outside"):
        segmenter.segment(path, Plane(2, -1), CLICK)


def test_threads_get_the_same_masks(segmenter: Segmenter, path: Path) -> None:
    queried = [(Plane(2, index), Prompt(((x, 18.0),))) for index in (5, 6, 7) for x in (10.0, 20.0)]
    expected = [segmenter.segment(path, plane, prompt).mask for plane, prompt in queried]
    fresh = Segmenter(segmenter.black_box, segmenter.store)
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda pair: fresh.segment(path, *pair).mask, queried * 3))
    for number, mask in enumerate(result):
        np.testing.assert_array_equal(mask, expected[number % len(queried)])


def test_correction_falls_back_on_the_unadapted_model(
    segmenter: Segmenter, new_black_box: Callable[..., BlackBox], path: Path
) -> None:
    """The visual prompt hides everything, and a correction marks the ball."""
    segmenter = Segmenter(new_black_box(side=64), segmenter.store)
    _publish(segmenter, "spleen", shift=-2.0)
    corrected = Prompt((*CLICK.positive, (CLICK.positive[0][0] + 3, CLICK.positive[0][1])))
    unadapted = segmenter.segment(path, MIDDLE, corrected)
    first = segmenter.segment(path, MIDDLE, CLICK, segmenter.load_adapter("spleen"))
    assert first.adapter == ("spleen", "v0001")
    assert not first.used_fallback
    result = segmenter.segment(path, MIDDLE, corrected, segmenter.load_adapter("spleen"))
    assert result.used_fallback
    assert result.adapter is None
    np.testing.assert_array_equal(result.mask, unadapted.mask)
    assert result.mask.any()


def _prefetching(segmenter: Segmenter, prefetch_slices: int = 2) -> Segmenter:
    return Segmenter(segmenter.black_box, segmenter.store, prefetch_slices=prefetch_slices)


@pytest.mark.parametrize("label", ["", "spleen"])
def test_neighbouring_slices_are_prefetched(segmenter: Segmenter, path: Path, label: str) -> None:
    _publish(segmenter, "spleen", shift=0.1)
    fresh, prefetching = _prefetching(segmenter, 0), _prefetching(segmenter)
    first = prefetching.segment(path, MIDDLE, CLICK, prefetching.load_adapter(label))
    assert not first.encoding_cached
    prefetching.prefetcher.wait()
    queried = segmenter.black_box.images_queried
    for index, is_cached in ((7, True), (5, True), (8, True), (4, True), (11, False)):
        result = prefetching.segment(path, Plane(2, index), CLICK, prefetching.load_adapter(label))
        assert result.encoding_cached == is_cached
        np.testing.assert_array_equal(
            result.mask, fresh.segment(path, Plane(2, index), CLICK, fresh.load_adapter(label)).mask
        )
        prefetching.prefetcher.wait()
    assert segmenter.black_box.images_queried == queried + 10  # Prefetching computes no mask.


@pytest.mark.parametrize(("index", "neighbours"), [(0, {1, 2}), (11, {9, 10}), (1, {0, 2, 3})])
def test_prefetch_stops_at_the_ends_of_the_volume(
    segmenter: Segmenter, path: Path, monkeypatch: pytest.MonkeyPatch, index: int, neighbours: set[int]
) -> None:
    prefetching, drawn_slices = _prefetching(segmenter), []
    monkeypatch.setattr(
        "baps.inference.segmenter.canvas_image",
        lambda *arguments: drawn_slices.append(arguments[1].index) or canvas_image(*arguments),
    )
    prefetching.segment(path, Plane(2, index), CLICK)
    prefetching.prefetcher.wait()
    assert set(drawn_slices) == {index, *neighbours}


def test_black_box_without_encodings_is_not_prefetched(
    segmenter: Segmenter, new_black_box: Callable[..., BlackBox], path: Path
) -> None:
    prefetching = Segmenter(new_black_box(side=64), segmenter.store, prefetch_slices=2)
    prefetching.segment(path, MIDDLE, CLICK)
    prefetching.prefetcher.wait()
    assert prefetching.black_box.images_queried == 1
