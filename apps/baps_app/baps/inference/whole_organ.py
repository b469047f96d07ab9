"""A whole organ from a few clicks: the clicked slices are segmented, and their masks carried on through the volume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import SLICE_AXIS, Plane
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window
from baps.inference.propagation import Slices, Step, prompt_from_mask, propagate
from baps.inference.requests.click import OrganClicks
from baps.inference.segmenter import Segmentation, Segmenter

_BY_PROMPTS = (
    "The adapter enlarges a part or looks at the click, which the model's memory of slices cannot; each slice was "
    "prompted from the last instead."
)


@dataclass(frozen=True)
class WholeOrgan:
    """An answer.

    Attributes:
        mask: 1 on the organ, (I, J, K).
        volume, window: see ``Segmentation``.
        slices: across K that show it, in order.
        stopped: slices at which it was given up before the organ ended.
        adapter: label and version that served, or None.
        notes: sentences for whoever clicked.
        seconds: that it took.
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
    path: Path,
    clicks: OrganClicks,
    label: str,
    adapted: bool = True,
    go_on: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> WholeOrgan:
    """Segment an organ on all slices.

    The mask of a clicked slice is what the same clicks give on that slice alone. A slice with background clicks alone
    begins nothing; they hold for what is carried there, and a mask that goes on to cover one ends there.

    Args:
        segmenter: answers for each slice, through the adapter of the label. Where its black box has a memory of slices,
            that carries on.
        path: the volume.
        clicks: on one slice or more.
        label, adapted: as for ``Segmenter.segment``.
        go_on, progress: as for ``propagate``. The first clicked slice is answered in any case.

    Raises:
        InputError: as ``Segmenter.segment``.
    """
    begun = time.perf_counter()
    volume, window = segmenter.volume(path)
    answers: dict[int, Segmentation] = {}
    for index, prompt in clicks.prompts.items():
        if not answers or go_on():
            answers[index] = segmenter.segment(path, Plane(SLICE_AXIS, index), prompt, label, adapted)
    masks = {index: answer.mask for index, answer in answers.items()}
    able = segmenter.black_box.capabilities
    by_memory = able.video and segmenter.can_carry(label, adapted)

    def by_prompts(_: int, __: int) -> Step:
        def step(index: int, last: NDArray[np.bool_]) -> NDArray[np.float32]:
            background = clicks.background.get(index, ())
            prompt = prompt_from_mask(last, able, background)
            plane = Plane(SLICE_AXIS, index)
            return segmenter.segment(path, plane, prompt, label, adapted, clicked=bool(background)).probability

        return step

    def by_own_memory(start: int, end: int) -> Step:
        known = {index: masks[index] for index in (start, end) if index in masks}
        carried = segmenter.carry(path, known, start, end, label, adapted, clicks.background)
        return lambda index, last: next(carried)[1]

    def grey(index: int) -> NDArray[np.float32]:
        levels = window.apply(Plane(SLICE_AXIS, index).extract(volume.voxels))
        return levels.mean(-1) if volume.colour else levels

    slices = Slices(clicks.first, clicks.last, grey, clicks.background)
    found = propagate(masks, by_own_memory if by_memory else by_prompts, slices, go_on, progress)
    mask = np.zeros(volume.shape, np.uint8, order="F")  # As files have it.
    for index, one in found.masks.items():
        Plane(SLICE_AXIS, index).insert(mask, one)
    skipped = [index for index in clicks.prompts if index not in answers]
    return WholeOrgan(
        mask=mask,
        volume=volume,
        window=window,
        slices=tuple(found.masks),
        stopped=tuple(sorted({*found.stopped, *skipped})),
        adapter=next((answer.adapter for answer in answers.values() if answer.adapter), None),
        notes=_notes(answers, found.between, able.video and not by_memory),
        seconds=time.perf_counter() - begun,
    )


def _notes(answers: Mapping[int, Segmentation], between: Sequence[int], memory_left_out: bool) -> tuple[str, ...]:
    notes = []
    if used_fallback := [index for index, answer in answers.items() if answer.used_fallback]:
        notes.append(
            f"The adapted answer went against a click on {name_slices(used_fallback)}; there it was given with less "
            "of the adapter."
        )
    if empty := [index for index, answer in answers.items() if not answer.mask.any()]:
        notes.append(f"Nothing was found on {name_slices(empty)}; click deeper inside the organ there.")
    if between:
        notes.append(
            f"On {name_slices(between)} the organ was lost; the shape between the clicked slices was taken. Click "
            "there."
        )
    return (*notes, _BY_PROMPTS) if memory_left_out else tuple(notes)


def name_slices(indices: Sequence[int]) -> str:
    """For a sentence; three neighbours or more as a range."""
    found: list[tuple[int, int]] = []
    for index in sorted(indices):
        first, last = found.pop() if found and found[-1][1] == index - 1 else (index, index)
        found.append((first, max(last, index)))
    names = [
        f"{first} to {last}" if last - first > 1 else ", ".join(map(str, range(first, last + 1)))
        for first, last in found
    ]
    return f"slice{'' if len(indices) == 1 else 's'} {', '.join(names)}"
