"""Segment a whole organ from a few clicks: segment the clicked slices, and propagate their masks through the volume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import SLICE_AXIS, Plane
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window
from baps.inference.loaded_volume import Source
from baps.inference.propagation import Propagation, Step, VolumeSlices, prompt_from_mask, propagate
from baps.inference.requests.click import OrganClicks
from baps.inference.segmenter import LoadedAdapter, Segmentation, Segmenter

_MEMORY_NOT_USED = (
    "The adapter crops around the click or depends on it, which the model's memory of slices does not support; each "
    "slice was prompted from the previous one instead."
)


@dataclass(frozen=True)
class WholeOrgan:
    """The mask of an organ.

    Attributes:
        mask: 1 on the organ, (I, J, K).
        volume: the volume that the mask belongs to.
        window: the window that its slices were shown with.
        slices: indices across K of the slices that show the organ, in order.
        stopped: slices at which propagation was stopped before the organ ended.
        adapter: name of the adapter that was used, or None.
        notes: sentences for the user.
        seconds: time that the answer took.
    """

    mask: NDArray[np.uint8]
    volume: Volume
    window: Window
    slices: tuple[int, ...]
    stopped: tuple[int, ...]
    adapter: tuple[str, str] | None
    notes: tuple[str, ...]
    seconds: float


def segment_organ(
    segmenter: Segmenter,
    path: Source,
    clicks: OrganClicks,
    adapter: LoadedAdapter | None = None,
    should_continue: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> WholeOrgan:
    """Segment an organ on all slices.

    The mask of a clicked slice equals what the same clicks give on that slice alone. Nothing is propagated from a slice
    that has background clicks only; its clicks prompt what is propagated there, and a mask that would cover one of them
    ends there.

    Args:
        segmenter: segments each slice. If its black box has a memory of slices, the memory propagates the masks.
        path: the volume.
        clicks: clicks on one or more slices.
        adapter: the adapter for all slices, or None for the unadapted model.
        should_continue: called before each slice; if it returns False, the result holds what was segmented so far. The
            first clicked slice is always segmented.
        progress: called with the number of slices done and the total, see ``propagate``.

    Returns:
        The mask, and how it was made.

    Raises:
        InputError: as ``Segmenter.segment``.
    """
    start = time.perf_counter()
    volume, window = segmenter.volume(path)
    answers: dict[int, Segmentation] = {}
    for index, prompt in clicks.prompts.items():
        if not answers or should_continue():
            answers[index] = segmenter.segment(path, Plane(SLICE_AXIS, index), prompt, adapter)
    masks = {index: answer.mask for index, answer in answers.items()}
    bounds = VolumeSlices(clicks.first, clicks.last, grey_levels(volume, window), clicks.background)
    propagation, memory_not_used = propagate_organ(segmenter, path, masks, bounds, adapter, should_continue, progress)
    mask = np.zeros(volume.shape, np.uint8, order="F")  # The memory order of files.
    for index, one in propagation.masks.items():
        Plane(SLICE_AXIS, index).insert(mask, one)
    skipped = [index for index in clicks.prompts if index not in answers]
    return WholeOrgan(
        mask=mask,
        volume=volume,
        window=window,
        slices=tuple(propagation.masks),
        stopped=tuple(sorted({*propagation.stopped, *skipped})),
        adapter=next((answer.adapter for answer in answers.values() if answer.adapter), None),
        notes=_notes(answers, propagation.interpolated, memory_not_used),
        seconds=time.perf_counter() - start,
    )


def propagate_organ(
    segmenter: Segmenter,
    path: Source,
    masks: Mapping[int, NDArray[np.bool_]],
    slices: VolumeSlices,
    adapter: LoadedAdapter | None = None,
    should_continue: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Propagation, bool]:
    """Propagate known masks of an organ to the other slices: by the black box's memory if it has one, else by prompts.

    Args:
        segmenter: segments each slice.
        path: the volume.
        masks: known masks, (rows, columns) by slice index across K.
        slices: the slices that the organ may reach, with the background clicks of slices that are not known.
        adapter: the adapter for all slices, or None for the unadapted model.
        should_continue: see ``propagate``.
        progress: see ``propagate``.

    Returns:
        The organ, and whether the black box has a memory that the adapter does not allow to be used.
    """
    capabilities = segmenter.black_box.capabilities
    use_memory = capabilities.video and (adapter is None or adapter.adapter.prompt_independent)

    def step_by_prompt(_: int, __: int) -> Step:
        def step(index: int, last: NDArray[np.bool_]) -> NDArray[np.float32]:
            background = slices.background.get(index, ())
            prompt = prompt_from_mask(last, capabilities, background)
            plane = Plane(SLICE_AXIS, index)
            return segmenter.segment(path, plane, prompt, adapter, interactive=bool(background)).probability

        return step

    def step_by_memory(start: int, end: int) -> Step:
        known = {index: masks[index] for index in (start, end) if index in masks}
        propagated = segmenter.propagate_with_memory(path, known, start, end, adapter, slices.background)
        return lambda index, last: next(propagated)[1]

    step = step_by_memory if use_memory else step_by_prompt
    return propagate(masks, step, slices, should_continue, progress), capabilities.video and not use_memory


def grey_levels(volume: Volume, window: Window) -> Callable[[int], NDArray[np.float32]]:
    """Make the function that returns the grey levels of a slice across K, (rows, columns), 0 to 255.

    Args:
        volume: the volume.
        window: the window that its slices are shown with.

    Returns:
        The function, which takes the index of the slice.
    """

    def grey(index: int) -> NDArray[np.float32]:
        levels = window.apply(Plane(SLICE_AXIS, index).extract(volume.voxels))
        return levels.mean(-1) if volume.colour else levels

    return grey


def _notes(answers: Mapping[int, Segmentation], interpolated: Sequence[int], memory_not_used: bool) -> tuple[str, ...]:
    notes = []
    if used_fallback := [index for index, answer in answers.items() if answer.used_fallback]:
        notes.append(
            f"The adapted mask violated a click on {format_slices(used_fallback)}; the mask there is less adapted."
        )
    if empty := [index for index, answer in answers.items() if not answer.mask.any()]:
        notes.append(f"The mask is empty on {format_slices(empty)}; click deeper inside the organ there.")
    if interpolated:
        notes.append(
            f"The organ was lost on {format_slices(interpolated)}; the shape there is interpolated between the clicked "
            "slices. Click there."
        )
    return (*notes, _MEMORY_NOT_USED) if memory_not_used else tuple(notes)


def format_slices(indices: Sequence[int]) -> str:
    """Format slice indices for a sentence; three or more neighbours become a range.

    Args:
        indices: slice indices, in any order.

    Returns:
        Text such as "slices 3, 5 to 8".
    """
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        first, last = ranges.pop() if ranges and ranges[-1][1] == index - 1 else (index, index)
        ranges.append((first, max(last, index)))
    names = [
        f"{first} to {last}" if last - first > 1 else ", ".join(map(str, range(first, last + 1)))
        for first, last in ranges
    ]
    return f"slice{'' if len(indices) == 1 else 's'} {', '.join(names)}"
