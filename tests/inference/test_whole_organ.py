from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import BlackBox, Capabilities
from baps.imaging.canvas import Canvas, Plane
from baps.imaging.metrics import dice
from baps.imaging.volume import Volume
from baps.inference.requests.click import OrganClicks
from baps.inference.segmenter import Segmenter
from baps.inference.whole_organ import segment_organ
from baps.io import write_nifti
from baps.prompts import Point, Prompt
from baps.registry.store import AdapterStore

Phantom = tuple[Volume, NDArray[np.bool_]]
CENTRE = (20.0, 18.0)
LAST = 23


class MemoryBlackBox(BlackBox):
    """Segments bright pixels, and propagates masks with a memory: it returns the bright pixels of a slice.

    ``carried`` keeps (slices known, index, downwards, background) of every answer from memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prompted = 0
        self.carried: list[tuple[tuple[int, ...], int, bool, tuple[Point, ...]]] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("remembering", "b" * 64, True, True, True, False, 16, 64, video=True)

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        self.prompted += len(prompts)
        return (images.mean(-1) / 255).astype(np.float32)

    def _remember(
        self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]
    ) -> dict[int, NDArray[np.bool_]]:
        known = memory if isinstance(memory, dict) else {}
        return {**known, index: mask}

    def _propagate(
        self, memory: object, index: int, image: NDArray[np.uint8], downwards: bool, background: Sequence[Point]
    ) -> NDArray[np.float32]:
        assert isinstance(memory, dict)
        self.carried.append((tuple(memory), index, downwards, tuple(background)))
        answer = (image.mean(-1) / 255).astype(np.float32) * np.any(list(memory.values()), axis=0)
        return np.asarray(answer, np.float32)


@pytest.fixture
def phantom(new_phantom: Callable[..., Phantom]) -> Phantom:
    return new_phantom(shape=(40, 36, LAST + 1), spacing=(1.0, 1.0, 1.0))


@pytest.fixture
def path(tmp_path: Path, phantom: Phantom) -> Path:
    write_nifti(tmp_path / "phantom.nii.gz", phantom[0])
    return tmp_path / "phantom.nii.gz"


def clicks(*indices: int, **settings: object) -> OrganClicks:
    prompts = {index: Prompt((CENTRE,)) for index in indices}
    return replace(OrganClicks("spleen", prompts, {}, 0, LAST), **settings)  # type: ignore[arg-type]


def publish(segmenter: Segmenter, adapter: Adapter) -> None:
    record = {
        "adapter": adapter.to_dict(),
        "black_box": {"weights_sha256": segmenter.black_box.capabilities.weights_sha256},
    }
    segmenter.store.publish("spleen", segmenter.store.add("spleen", adapter, record, "accepted"))


def brighter(shift: float = 0.1, zoom: float = 1.0, head: OutputHead | None = None) -> Adapter:
    """Make a visual prompt that adds ``shift`` of white to every pixel."""
    visual_prompt = build_visual_prompt("basis")
    with torch.no_grad():
        dict(visual_prompt.named_parameters())["head.bias"].view(3, -1)[:, 0] = shift
    return Adapter(visual_prompt, head, zoom)


@pytest.fixture(params=["bundled", "brightness", "memory"])
def segmenter(
    request: pytest.FixtureRequest, bundled: BlackBox, new_black_box: Callable[..., BlackBox], tmp_path: Path
) -> Segmenter:
    created = {"bundled": bundled, "brightness": new_black_box(side=64), "memory": MemoryBlackBox()}
    return Segmenter(created[request.param], AdapterStore(tmp_path / "adapters"))


@pytest.mark.parametrize("indices", [(12,), (9, 14)])
def test_whole_ball_is_segmented(segmenter: Segmenter, path: Path, phantom: Phantom, indices: tuple[int, ...]) -> None:
    volume, ball = phantom
    result = segment_organ(segmenter, path, clicks(*indices))
    assert result.mask.shape == volume.shape
    assert result.mask.dtype == np.uint8
    assert dice(result.mask > 0, ball) > 0.8
    assert result.slices == tuple(np.flatnonzero(result.mask.any((0, 1))))
    assert set(indices) < set(result.slices) < set(range(LAST + 1))
    assert (result.stopped, result.notes, result.adapter) == ((), (), None)


def test_clicked_slice_has_the_mask_of_the_click(segmenter: Segmenter, path: Path) -> None:
    prompts = {9: Prompt((CENTRE,)), 13: Prompt((CENTRE, (22.0, 18.0)), ((3.0, 3.0),))}
    result = segment_organ(segmenter, path, clicks(prompts=prompts))
    for index, prompt in prompts.items():
        alone = segmenter.segment(path, Plane(2, index), prompt).mask
        np.testing.assert_array_equal(Plane(2, index).extract(result.mask), alone)


def test_the_same_clicks_give_the_same_organ(segmenter: Segmenter, path: Path) -> None:
    first, again = (segment_organ(segmenter, path, clicks(11)).mask for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_mask_stays_within_the_slices_of_the_box(segmenter: Segmenter, path: Path) -> None:
    assert segment_organ(segmenter, path, clicks(12, first=10, last=13)).slices == (10, 11, 12, 13)


def test_background_click_inside_ends_the_organ(segmenter: Segmenter, path: Path) -> None:
    inside = tuple((x, y) for x in (14.0, 17.0, 20.0, 23.0) for y in (12.0, 15.0, 18.0, 21.0))
    full = segment_organ(segmenter, path, clicks(12))
    result = segment_organ(segmenter, path, clicks(12, background={15: inside}))
    assert max(full.slices) > 15
    expected_mask = Plane(2, 15).extract(result.mask)
    assert not any(expected_mask[int(y), int(x)] for x, y in inside)
    assert [k for k in result.slices if k < 15] == [k for k in full.slices if k < 15]


def test_stopped_segmentation_returns_the_mask_so_far(segmenter: Segmenter, path: Path) -> None:
    result = segment_organ(segmenter, path, clicks(12), should_continue=lambda: False)
    assert (result.slices, result.stopped) == ((12,), (11, 13))
    result = segment_organ(segmenter, path, clicks(9, 14), should_continue=lambda: False)
    assert (result.slices, result.stopped) == ((9,), (8, 10, 14))


def test_each_slice_is_queried_once_per_direction(
    new_black_box: Callable[..., BlackBox], path: Path, tmp_path: Path
) -> None:
    black_box = new_black_box(side=64)
    reports: list[tuple[int, int]] = []
    segment_organ(
        Segmenter(black_box, AdapterStore(tmp_path / "a")), path, clicks(12), progress=lambda *n: reports.append(n)
    )
    assert black_box.images_queried == 1 + reports[-1][0]


def test_adapter_is_used_on_every_slice(new_black_box: Callable[..., Any], path: Path, tmp_path: Path) -> None:
    black_box = new_black_box(side=64)
    segmenter = Segmenter(black_box, AdapterStore(tmp_path / "adapters"))

    def darkest(adapted: bool) -> list[int]:
        """Record the minimum of every queried image; the canvas is black outside the slice."""
        black_box.queries.clear()
        result = segment_organ(segmenter, path, clicks(12), segmenter.load_adapter("spleen") if adapted else None)
        assert result.adapter == (("spleen", "v0001") if adapted else None)
        return [int(images.min()) for images, _ in black_box.queries]

    publish(segmenter, brighter())
    assert set(darkest(adapted=False)) == {0}
    assert min(darkest(adapted=True)) > 15


@pytest.mark.parametrize("video", [False, True])
def test_a_version_published_meanwhile_is_not_used(
    new_black_box: Callable[..., BlackBox], path: Path, tmp_path: Path, video: bool
) -> None:
    black_box = MemoryBlackBox() if video else new_black_box(side=64)
    segmenter = Segmenter(black_box, AdapterStore(tmp_path / "adapters"))
    publish(segmenter, brighter())
    loaded = segmenter.load_adapter("spleen")
    expected = segment_organ(segmenter, path, clicks(12), loaded)
    published: list[int] = []

    def publish_another(done: int, _: int) -> None:
        if not published:
            published.append(done)
            publish(segmenter, brighter(-2.0))

    result = segment_organ(segmenter, path, clicks(12), loaded, progress=publish_another)
    assert published
    assert result.adapter == ("spleen", "v0001")
    np.testing.assert_array_equal(result.mask, expected.mask)
    another = segmenter.load_adapter("spleen")
    assert another is not None
    assert another.name == ("spleen", "v0002")
    assert not segment_organ(segmenter, path, clicks(12), another).mask.any()  # It would have changed the mask.


def test_empty_result_has_a_note(new_black_box: Callable[..., BlackBox], path: Path, tmp_path: Path) -> None:
    segmenter = Segmenter(new_black_box(side=64), AdapterStore(tmp_path / "adapters"))
    result = segment_organ(segmenter, path, clicks(0, 23))
    assert (result.slices, result.mask.any()) == ((), False)
    assert result.notes == ("The mask is empty on slices 0, 23; click deeper inside the organ there.",)


def test_interpolated_shape_has_a_note(
    new_black_box: Callable[..., BlackBox], path: Path, tmp_path: Path, new_phantom: Callable[..., Phantom]
) -> None:
    """The organ is invisible on two slices between the clicked ones."""
    volume, _ = new_phantom(shape=(40, 36, LAST + 1), spacing=(1.0, 1.0, 1.0))
    voxels = volume.voxels.copy()
    voxels[..., 11:13] = 0
    write_nifti(path, Volume(voxels, volume.affine))
    segmenter = Segmenter(new_black_box(side=64), AdapterStore(tmp_path / "adapters"))
    result = segment_organ(segmenter, path, clicks(9, 14))
    assert result.notes == (
        "The organ was lost on slices 11, 12; the shape there is interpolated between the clicked slices. Click there.",
    )
    assert {11, 12} < set(result.slices)


def test_memory_propagates_from_each_clicked_slice(path: Path, tmp_path: Path) -> None:
    black_box = MemoryBlackBox()
    segmenter = Segmenter(black_box, AdapterStore(tmp_path / "adapters"))
    assert segment_organ(segmenter, path, clicks(10, 13, background={8: ((1.0, 2.0),)})).notes == ()
    assert black_box.prompted == 2  # Only the clicked slices are prompted.
    known = {(memory, index, downwards) for memory, index, downwards, _ in black_box.carried}
    assert {((13,), 14, False), ((10,), 9, True), ((10, 13), 11, False), ((13, 10), 12, True)} <= known
    ((x, y),) = next(background for _, index, _, background in black_box.carried if index == 8)
    canvas = Canvas.fit(segmenter.volume(path)[0], Plane(2, 8), 64)
    assert (x, y) == canvas.to_canvas((1.0, 2.0))


@pytest.mark.parametrize("with_head", [False, True])
def test_memory_gets_the_adapted_slices(path: Path, tmp_path: Path, with_head: bool, lively_head: OutputHead) -> None:
    black_box = MemoryBlackBox()
    segmenter = Segmenter(black_box, AdapterStore(tmp_path / "adapters"))
    plain = dict(segmenter.propagate_with_memory(path, {12: np.ones((36, 40), bool)}, 12, 15))
    publish(segmenter, brighter(head=lively_head if with_head else None))
    adapter = segmenter.load_adapter("spleen")
    adapted = dict(segmenter.propagate_with_memory(path, {12: np.ones((36, 40), bool)}, 12, 15, adapter))
    assert list(adapted) == [13, 14]
    difference = np.abs(adapted[13] - plain[13])
    assert difference.mean() > 0.02
    if not with_head:
        assert (adapted[13] - plain[13]).min() > -0.01  # A little brighter everywhere.


def test_memory_is_not_used_with_a_zoom_and_has_a_note(path: Path, tmp_path: Path) -> None:
    black_box = MemoryBlackBox()
    segmenter = Segmenter(black_box, AdapterStore(tmp_path / "adapters"))
    publish(segmenter, brighter(zoom=0.75))
    result = segment_organ(segmenter, path, clicks(12), segmenter.load_adapter("spleen"))
    assert "prompted from the previous one" in result.notes[0]
    assert not black_box.carried
    assert len(result.slices) > 5
    assert segment_organ(segmenter, path, clicks(12)).notes == ()
    assert black_box.carried
