"""Segment an object in a volume from prompts, starting from an earlier mask: one interface, and the model of slices.

``VolumePredictor`` is what a server of 3D prompts needs. ``SlicePredictor`` answers with the black box that segments
slices, and ``ModelPredictor`` with one that answers in 3D. Predictions are stateless: the same volume, prompts and
earlier mask give the same mask, so that undoing a prompt is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox.volumes.interface import VolumeCapabilities
from baps.imaging.canvas import SLICE_AXIS, Plane
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window
from baps.inference.loaded_volume import LoadedVolume
from baps.inference.propagation import Step, VolumeSlices, deepest_point, prompt_from_mask, propagate
from baps.inference.segmenter import LoadedAdapter, Segmenter
from baps.inference.slice_prompts import Bounds, SlicePrompts, group_by_slice, slicing_axis
from baps.inference.whole_organ import grey_levels, propagate_organ
from baps.prompts import Point, Prompt
from baps.prompts.volume_prompts import Mask, VolumePrompt

_LASSO_MARGIN = 0.1
"""Part of a lasso's width by which the object may reach beyond the line, which is drawn by hand."""

_MIN_IN_LASSO = 0.3
"""Smallest share of a lasso that an answer must fill; otherwise the model missed the object and the lasso is used."""


@dataclass(frozen=True)
class VolumeImage:
    """A volume that a viewer sent, without its position in the patient.

    Attributes:
        key: name of the volume in caches. No other volume may have it.
        voxels: grey values (X, Y, Z), or red, green and blue (X, Y, Z, 3), with the axes as they were sent.
        window: the window that its slices are shown with.
        spacing: distance of voxels along each axis, or None if unknown.
    """

    key: str
    voxels: NDArray[np.generic]
    window: Window
    spacing: tuple[float, float, float] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        x, y, z = self.voxels.shape[:3]
        return x, y, z

    def sliced_across(self, axis: int) -> tuple[LoadedVolume, tuple[int, int, int]]:
        """Return a view of the volume whose slices lie across its last axis.

        Nothing says how the array lies in the patient, so the usual order is assumed. For slices across the first two
        axes it is that of 3D Slicer and napari, whose axes run to the head, to the back and to the left; for slices
        across the last axis it is the reverse, as in most files. The black box then sees axial slices with the front on
        top, and slices across the middle axis with the head on top.

        Args:
            axis: the axis across which the slices lie.

        Returns:
            The volume, and the axes of this array that its axes I, J and K are.
        """
        columns, rows = {0: (2, 1), 1: (2, 0), 2: (0, 1)}[axis]
        order = (columns, rows, axis)
        left, back, head = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)
        directions = (left, head, back) if axis == 1 else (left, back, head)
        spacing = self.spacing or (1.0, 1.0, 1.0)
        affine = np.eye(4)
        affine[:3, :3] = np.array(directions).T * [spacing[one] for one in order]
        voxels = self.voxels.transpose(*order, *range(3, self.voxels.ndim))
        return LoadedVolume(f"{self.key} across {axis}", Volume(voxels, affine), self.window), order


@dataclass(frozen=True)
class VolumeAnswer:
    """The answer to prompts.

    Attributes:
        mask: the object, (X, Y, Z).
        adapter: name of the adapter that was used, or None.
        complete: whether it was not stopped before the end.
    """

    mask: Mask
    adapter: tuple[str, str] | None
    complete: bool


class VolumePredictor(ABC):
    """Segments an object in a volume from prompts in 3D."""

    @property
    @abstractmethod
    def capabilities(self) -> VolumeCapabilities:
        """What is understood."""

    @abstractmethod
    def predict(
        self,
        image: VolumeImage,
        prompts: Sequence[VolumePrompt],
        new: int,
        mask: Mask,
        label: str = "",
        should_continue: Callable[[], bool] = lambda: True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> VolumeAnswer:
        """Segment the object.

        Args:
            image: the volume.
            prompts: all prompts on the object, the newest last.
            new: number of prompts, the last ones, that have come since ``mask``.
            mask: the answer so far, (X, Y, Z), which is not changed; empty for a new object.
            label: the organ, whose adapter is used, or "".
            should_continue: called before each step; if it returns False, the answer holds what was segmented so far.
            progress: called with the number of steps done and their total.

        Returns:
            The new mask.
        """


class SlicePredictor(VolumePredictor):
    """Segments an object slice by slice, with the black box and the adapters of a segmenter.

    The first prompts are answered as a whole organ is: each prompted slice is segmented, and its mask is propagated to
    the others. Later prompts change that mask where they are, and what they change is propagated on its own: a click on
    the object adds the part under it, a click beside the object removes the part under it. Everything else remains, so
    a correction does not lose what was right elsewhere, drawn by whomever.

    Args:
        segmenter: segments slices.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    @property
    def capabilities(self) -> VolumeCapabilities:
        """What is understood: every prompt but clicks is converted to what the black box of slices understands."""
        model = self._segmenter.black_box.capabilities
        return VolumeCapabilities(
            name=model.name,
            weights_sha256=model.weights_sha256,
            points=model.clicks,
            boxes=True,
            flat_boxes=True,
            scribbles=True,
            lassos=True,
            negative=True,
            masks=True,
            probabilities=False,
            licence=f"that of the site's model, {model.name} (BAPS)",
        )

    def predict(
        self,
        image: VolumeImage,
        prompts: Sequence[VolumePrompt],
        new: int,
        mask: Mask,
        label: str = "",
        should_continue: Callable[[], bool] = lambda: True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> VolumeAnswer:
        """Segment the object slice by slice; ``slicing_axis`` chooses the slices.

        Args:
            image: see ``VolumePredictor.predict``, for this and the other arguments.
            prompts: all prompts.
            new: number of new ones.
            mask: the answer so far.
            label: the organ, or "".
            should_continue: called before each slice.
            progress: called with the number of slices.

        Returns:
            The new mask.
        """
        loaded, order = image.sliced_across(slicing_axis(image.shape, image.spacing, prompts))
        model = self._segmenter.black_box.capabilities
        adapter = self._segmenter.load_adapter(label)
        groups, bounds = group_by_slice([prompt.moved(order) for prompt in prompts], loaded.volume.shape, model)
        answer = np.zeros(image.shape, bool)
        work = _SliceWork(
            self._segmenter, loaded, adapter, groups, bounds, answer.transpose(order), should_continue, progress
        )
        if mask.any():
            answer[:] = mask
            added = [prompt.moved(order) for prompt in prompts[len(prompts) - new :]]
            work.correct(group_by_slice(added, loaded.volume.shape, model)[0])
        else:
            work.begin()
        return VolumeAnswer(answer, work.used_adapter, work.complete)


class _SliceWork:
    """One prediction. All masks of slices are (rows, columns), and slices are indices across K.

    Args:
        segmenter: segments slices.
        loaded: the volume.
        adapter: the adapter, or None.
        groups: all prompts by slice.
        bounds: the part of the volume that the object may reach.
        mask: the answer, (I, J, K), which is changed.
        should_continue: see ``VolumePredictor.predict``.
        progress: see ``VolumePredictor.predict``.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        loaded: LoadedVolume,
        adapter: LoadedAdapter | None,
        groups: Mapping[int, SlicePrompts],
        bounds: Bounds,
        mask: Mask,
        should_continue: Callable[[], bool],
        progress: Callable[[int, int], None],
    ) -> None:
        self._segmenter, self._loaded, self._adapter, self._groups = segmenter, loaded, adapter, groups
        self._mask, self._bounds = mask, bounds
        self._should_continue, self._progress = should_continue, progress
        self._model_capabilities = segmenter.black_box.capabilities
        self._grey = grey_levels(loaded.volume, loaded.window)
        self._inside = bounds.on_slice((mask.shape[1], mask.shape[0]))
        self.used_adapter: tuple[str, str] | None = None
        self.complete = True

    def begin(self) -> None:
        """Segment the prompted slices of a new object, and propagate their masks."""
        masks: dict[int, Mask] = {}
        for k, group in self._groups.items():
            if group.adds:
                if masks and not self._should_continue():
                    self.complete = False
                    break
                masks[k] = self._without_erased(self._segment_slice(k, group), group)
        if not masks:
            return
        background = {k: tuple(group.negative) for k, group in self._groups.items() if group.negative}
        slices = VolumeSlices(
            self._bounds.low[2],
            self._bounds.high[2] - 1,
            self._grey,
            {k: points for k, points in background.items() if k not in masks},
        )
        propagation, _ = propagate_organ(
            self._segmenter, self._loaded, masks, slices, self._adapter, self._should_continue, self._progress
        )
        self.complete = self.complete and not propagation.stopped
        for k, one in propagation.masks.items():
            self._write(k, one if k in masks else self._without_erased(one & self._inside, self._groups.get(k)))

    def correct(self, new: Mapping[int, SlicePrompts]) -> None:
        """Change the mask by new prompts.

        Args:
            new: the new prompts by slice.
        """
        added, removed = {}, {}
        for k, group in new.items():
            before = self._read(k)
            after = self._without_erased(before, group)
            if self._lacks_something(group, after):
                after = after | self._segment_slice(k, self._with_earlier(k, group))
                after = self._without_erased(after, self._groups[k])
            after = self._remove_under_clicks(k, group, after)
            added[k], removed[k] = after & ~before, before & ~after
            self._write(k, after)
        self._propagate_change(added, True)
        self._propagate_change(removed, False)

    def _lacks_something(self, group: SlicePrompts, mask: Mask) -> bool:
        """Return whether a mask lacks something that prompts mark as the object."""
        return (
            group.box is not None
            or group.lasso is not None
            or any(not mask[_pixel(point)] for point in group.positive)
            or (group.strokes is not None and bool((group.strokes & ~mask).any()))
        )

    def _with_earlier(self, k: int, new: SlicePrompts) -> SlicePrompts:
        """Add the earlier clicks of the slice to new prompts that mark the object."""
        every = self._groups[k]
        return SlicePrompts(every.positive or new.positive, every.negative, new.box, new.strokes, None, new.lasso)

    def _segment_slice(self, k: int, group: SlicePrompts) -> Mask:
        """Segment a slice from its prompts. Each click on the object lies in the mask, and no click beside it."""
        positive, box = list(group.positive), group.box
        if group.lasso is not None:
            positive.append(deepest_point(group.lasso))
        if not self._model_capabilities.clicks and box is None:
            painted = [mask for mask in (group.lasso, group.strokes) if mask is not None]
            if painted:
                rows, columns = np.nonzero(np.logical_or.reduce(painted))
                box = (float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))
        negative = tuple(group.negative)
        mask = self._ask(k, Prompt(tuple(positive), negative, box)) & self._inside
        if group.lasso is not None:
            mask = _within_lasso(mask, group.lasso) | (mask if group.positive else False)
        if group.strokes is not None:
            mask = mask | group.strokes
        for point in group.positive:
            if not mask[_pixel(point)]:
                alone = (
                    self._ask(k, Prompt((point,), negative)) & self._inside if self._model_capabilities.clicks else mask
                )
                mask = mask | (_piece_at(alone, point) if alone[_pixel(point)] else _disc(mask.shape, point))
        for point in negative:
            mask[_pixel(point)] = False
        return mask

    def _remove_under_clicks(self, k: int, group: SlicePrompts, mask: Mask) -> Mask:
        """Remove what lies under new clicks beside the object, and keep what lies under clicks on it."""
        wrong = [point for point in group.negative if mask[_pixel(point)]]
        if not wrong:
            return mask
        every = self._groups[k]
        negative, kept = tuple(every.negative), tuple(point for point in every.positive if mask[_pixel(point)])
        after, core = mask.copy(), kept or self._core(k, mask, negative)
        if not self._model_capabilities.clicks or not self._model_capabilities.negative_clicks:
            core = ()
        keep = self._ask_probability(k, Prompt(core, negative)) if core else np.zeros(mask.shape, np.float32)
        if (mask & (keep > 0.5)).any():
            after &= keep > 0.5
        for point in wrong:
            if after[_pixel(point)] and self._model_capabilities.clicks:
                part = self._ask_probability(k, Prompt((point,), core))
                part_mask = (part > 0.5) & (part >= keep)
                if part_mask[_pixel(point)] and not any(part_mask[_pixel(one)] for one in kept):
                    after &= ~part_mask
            if after[_pixel(point)]:
                after &= ~_disc(mask.shape, point)
        for point in kept:
            after[_pixel(point)] = True
        return after

    def _propagate_change(self, changes: Mapping[int, Mask], adds: bool) -> None:
        """Propagate parts that were added or removed to the other slices, as objects of their own."""
        changes = {k: mask for k, mask in changes.items() if mask.any()}
        if not changes or not self.complete:
            return

        def start_step(_: int, __: int) -> Step:
            return step

        def step(index: int, last: Mask) -> NDArray[np.float32]:
            now = self._read(index)
            background = slices.background.get(index, ())
            prompt = prompt_from_mask(last, self._model_capabilities, background)
            if adds:
                allowed = self._without_erased(self._inside & ~now, self._groups.get(index))
                return np.where(allowed, self._ask_probability(index, prompt, False), 0).astype(np.float32)
            core = self._core(index, now & ~last)
            if not core or not self._model_capabilities.clicks or not self._model_capabilities.negative_clicks:
                return np.where(now, self._ask_probability(index, prompt, False), 0).astype(np.float32)
            # What belongs rather to the rest of the object is not removed.
            part = self._ask_probability(index, Prompt(prompt.positive, (*background, *core)), False)
            keep = self._ask_probability(index, Prompt(core, prompt.positive), False)
            return np.where(now & (part >= keep), part, 0).astype(np.float32)

        background = {
            k: tuple(group.negative if adds else group.positive)
            for k, group in self._groups.items()
            if k not in changes
        }
        slices = VolumeSlices(
            self._bounds.low[2] if adds else 0,
            self._bounds.high[2] - 1 if adds else self._mask.shape[2] - 1,
            self._grey,
            {k: points for k, points in background.items() if points},
        )
        propagation = propagate(changes, start_step, slices, self._should_continue, self._progress)
        self.complete = not propagation.stopped
        for k, one in propagation.masks.items():
            if k not in changes and k not in propagation.interpolated:
                self._write(k, self._read(k) | one if adds else self._read(k) & ~one)

    def _core(self, k: int, mask: Mask, background: Sequence[Point] = ()) -> tuple[Point, ...]:
        """Find a point of a mask that is surely on the object: deep inside, and where the nearest clicked slice has it.

        Returns:
            One point, or none if the mask is empty.
        """
        free = mask.copy()
        for point in background:  # They count as borders of the mask.
            free[_pixel(point)] = False
        clicked = [one for one, group in self._groups.items() if group.adds and one != k]
        if clicked:
            common = free & self._read(min(clicked, key=lambda one: abs(one - k)))
            free = common if common.any() else free
        return (deepest_point(free),) if free.any() else ()

    def _ask(self, k: int, prompt: Prompt) -> Mask:
        return self._ask_probability(k, prompt) > 0.5

    def _ask_probability(self, k: int, prompt: Prompt, interactive: bool = True) -> NDArray[np.float32]:
        plane = Plane(SLICE_AXIS, k)
        answer = self._segmenter.segment(self._loaded, plane, prompt, self._adapter, interactive=interactive)
        self.used_adapter = self.used_adapter or answer.adapter
        return answer.probability

    def _read(self, k: int) -> Mask:
        return Plane(SLICE_AXIS, k).extract(self._mask)

    def _write(self, k: int, mask: Mask) -> None:
        Plane(SLICE_AXIS, k).insert(self._mask, mask)

    @staticmethod
    def _without_erased(mask: Mask, group: SlicePrompts | None) -> Mask:
        return mask & ~group.erased if group is not None and group.erased is not None else mask


def _pixel(point: Point) -> tuple[int, int]:
    """Return the row and the column of a point."""
    return round(point[1]), round(point[0])


def _piece_at(mask: Mask, point: Point) -> Mask:
    """Return the connected piece of a mask at a point."""
    pieces, _ = ndimage.label(mask)
    piece: Mask = pieces == pieces[_pixel(point)]
    return piece


def _disc(shape: tuple[int, ...], point: Point, radius: float = 1.5) -> Mask:
    """Return the pixels around a point."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    row, column = _pixel(point)
    disc: Mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return disc


def _within_lasso(mask: Mask, lasso: Mask) -> Mask:
    """Return the part of an answer within a lasso and its margin, or the lasso if the answer missed the object."""
    rows, columns = np.nonzero(lasso)
    margin = max(1, round(_LASSO_MARGIN * min(np.ptp(rows) + 1, np.ptp(columns) + 1)))
    inside = mask & ndimage.binary_dilation(lasso, iterations=margin)
    return inside if (inside & lasso).sum() >= _MIN_IN_LASSO * lasso.sum() else lasso
