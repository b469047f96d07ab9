"""Segment one slice from a prompt: geometry, window, visual prompt, black box, and back to the slice's pixels.

The segmenter is stateless except for its caches: the same click gives the same mask, and no user sees another user's
data. Threads may call it concurrently: the black box serves one call at a time, and the caches lock themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, GetEncoding, encode_cached, segment_cached
from baps.adapters.click_consistency import fall_back_on_violated_clicks
from baps.blackbox import BlackBox, Encoding
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window
from baps.inference.prefetch import Prefetcher
from baps.inference.propagation import deepest_point
from baps.io import read_volume
from baps.prompts import Point, Prompt
from baps.registry.store import AdapterStore
from baps.utils.cache import Cache
from baps.utils.limits import check_size

FileIdentity = tuple[str, int, int]

_PIXEL_BYTES = 8
"""Memory per pixel of a slice: its probability and the resized probability. A picture is one large slice."""


@dataclass(frozen=True)
class Segmentation:
    """The answer to one prompt.

    Attributes:
        probability: probability of the object at each pixel of the slice, (rows, columns).
        volume: the volume that the slice belongs to.
        window: the window that the slice was shown with.
        adapter: label and version of the adapter that was used, or None for the unadapted model.
        used_fallback: whether the adapted answer violated the clicks, see ``fall_back_on_violated_clicks``.
        encoding_cached: whether the encoding of the slice was in the cache already.
        seconds: time that the answer took.
    """

    probability: NDArray[np.float32]
    volume: Volume
    window: Window
    adapter: tuple[str, str] | None
    used_fallback: bool
    encoding_cached: bool
    seconds: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The object on the slice, (rows, columns)."""
        return self.probability > 0.5


@dataclass(frozen=True)
class _PreparedSlice:
    """A slice as the black box sees it, with the adapter that is served.

    Attributes:
        volume: the volume that the slice belongs to.
        window: the window that the slice is shown with.
        canvas: maps the slice to the black box's input.
        pixels: the canvas, (S, S, 3).
        served: label and version of the adapter, or None.
        adapter: the adapter, or None.
        key: cache key of the encodings of the slice.
        adapter_key: cache key of the adapter: its version and the identity of its file.
    """

    volume: Volume
    window: Window
    canvas: Canvas
    pixels: NDArray[np.uint8]
    served: tuple[str, str] | None
    adapter: Adapter | None
    key: tuple[Hashable, ...]
    adapter_key: Hashable


class Segmenter:
    """Segment slices of volumes from prompts.

    Args:
        black_box: the model.
        store: the published adapters.
        cache_bytes: upper bound on decoded volumes, encodings and adapters together.
        prefetch_slices: number of neighbouring slices on either side that are encoded in the background after a click.
    """

    def __init__(
        self, black_box: BlackBox, store: AdapterStore, cache_bytes: int = 2 << 30, prefetch_slices: int = 0
    ) -> None:
        self.black_box, self.store, self._prefetch_slices = black_box, store, prefetch_slices
        self.prefetcher = Prefetcher()
        self._cache = Cache(cache_bytes, _size)

    def volume(self, path: Path) -> tuple[Volume, Window]:
        """Read a volume and choose its window; both are cached until the file changes.

        Args:
            path: file or DICOM series.

        Returns:
            The volume, and the window that suits it.

        Raises:
            InputError: as ``read_volume``.
        """
        return self._volume(path, _file_identity(path))

    def _volume(self, path: Path, identity: FileIdentity) -> tuple[Volume, Window]:
        def read() -> tuple[Volume, Window]:
            volume = read_volume(path)
            return volume, choose_window(volume)

        return self._cache.get_or_compute(("volume", identity), read)[0]

    def segment(
        self,
        path: Path,
        plane: Plane,
        prompt: Prompt,
        label: str,
        adapted: bool = True,
        window: Window | None = None,
        interactive: bool = True,
    ) -> Segmentation:
        """Segment one slice.

        Args:
            path: the volume.
            plane: the slice.
            prompt: clicks and box, (X, Y) in pixels of the slice.
            label: the organ, or "" if none is named.
            adapted: whether to use the adapter of the label, if there is one. It is used on slices across K only,
                because adapters are not evaluated on others.
            window: a window to use instead of the volume's own.
            interactive: whether a person prompted this slice. For a prompt that was propagated from another slice,
                violated clicks cause no fallback and no neighbours are prefetched.

        Returns:
            The mask in the frame of the slice, and how it was made.

        Raises:
            InputError: if the volume, the slice or the prompt cannot be used.
        """

        def prepare(plane: Plane) -> _PreparedSlice:
            return self._prepare(path, plane, label, adapted, window)

        with self.prefetcher.paused():
            begun = time.perf_counter()
            prepared = prepare(plane)
            canvas_prompt = prompt.mapped(prepared.canvas.to_canvas)
            cache_hits: list[bool] = []

            def segment_through(one: Adapter | None) -> NDArray[np.float32]:
                cache = self._encoding_cache(prepared, one, cache_hits)
                size = prepared.canvas.size
                return segment_cached(self.black_box, one, prepared.pixels, canvas_prompt, cache, size)

            probability, used = segment_through(prepared.adapter), prepared.adapter
            if interactive:
                probability, used = fall_back_on_violated_clicks(probability, used, canvas_prompt, segment_through)
            answer = Segmentation(
                probability=prepared.canvas.restore(probability),
                volume=prepared.volume,
                window=prepared.window,
                adapter=prepared.served if used else None,
                used_fallback=used is not prepared.adapter,
                encoding_cached=bool(cache_hits) and all(cache_hits),
                seconds=time.perf_counter() - begun,
            )
        if interactive and self.black_box.capabilities.encodings:
            self._prefetch(prepare, plane, prompt, answer.volume.shape[plane.axis])
        return answer

    def propagate_with_memory(
        self,
        path: Path,
        masks: Mapping[int, NDArray[np.bool_]],
        start: int,
        end: int,
        label: str,
        adapted: bool = True,
        background: Mapping[int, tuple[Point, ...]] | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Propagate an object across K with the black box's own memory, see ``BlackBox.propagate``.

        Args:
            path: the volume.
            masks: known masks of the object by slice index, (rows, columns) each.
            start: slice to propagate from; its mask must be known.
            end: slice at which to stop, exclusive; smaller than ``start`` to propagate downwards.
            label: the organ, or "".
            adapted: whether to use the adapter of the label. It must be one that ``can_use_memory`` allows.
            background: background clicks by slice index, (X, Y) in pixels of the slice.

        Yields:
            Each slice index with the probability of the object at each of its pixels, (rows, columns).
        """
        prepared = self._prepare(path, Plane(SLICE_AXIS, start), label, adapted, None)
        canvas, adapter = prepared.canvas, prepared.adapter

        def pixels(index: int) -> NDArray[np.uint8]:
            return self._prepare(path, Plane(SLICE_AXIS, index), label, adapted, None).pixels

        def seen(index: int) -> NDArray[np.uint8]:
            # The click's position does not matter: only adapters are used here that do not depend on it.
            return (
                adapter.transform_images(adapter.crop(pixels(index)[None], [Prompt(((0.0, 0.0),))]))[0]
                if adapter
                else pixels(index)
            )

        drawn = {index: canvas.draw(mask) > 0.5 for index, mask in masks.items()}
        placed = {index: tuple(map(canvas.to_canvas, points)) for index, points in (background or {}).items()}
        propagated = self.black_box.propagate(seen, drawn, start, end, placed, canvas.size)
        while True:
            with self.prefetcher.paused():
                index, answer = next(propagated, (end, None))
            if answer is None:
                return
            if adapter and (answer > 0.5).any():  # A head needs a click too.
                click = Prompt((deepest_point(answer > 0.5),))
                answer = adapter.refine_masks(adapter.crop(pixels(index)[None], [click]), answer[None])[0]
            yield index, canvas.restore(answer)

    def can_use_memory(self, label: str, adapted: bool = True) -> bool:
        """Return whether the black box's own memory can propagate masks.

        It can if the image that the black box sees is independent of the prompt: without an adapter, or with one that
        neither crops nor is conditioned on the click.

        Args:
            label: the organ, or "".
            adapted: whether the adapter of the label would be used.

        Returns:
            Whether it can.
        """
        adapter = self._adapter(label)[2] if adapted else None
        return adapter is None or adapter.prompt_independent

    def _adapter(self, label: str) -> tuple[tuple[str, str] | None, Hashable, Adapter | None]:
        """Load the adapter of a label; return its label and version, its cache key, and the adapter."""
        served = self.store.served(label, *self.black_box.capabilities.identity)
        if served is None:
            return None, None, None
        adapter_key = (*served, _file_identity(self.store.file(*served)))
        return (
            served,
            adapter_key,
            self._cache.get_or_compute(("adapter", adapter_key), lambda: self.store.load(*served).adapter)[0],
        )

    def _prepare(self, path: Path, plane: Plane, label: str, adapted: bool, window: Window | None) -> _PreparedSlice:
        identity = _file_identity(path)  # Computed once: the file may be replaced meanwhile.
        volume, own_window = self._volume(path, identity)
        check_size(f"A slice of {path.name}", plane.extract(volume.voxels).shape[:2], _PIXEL_BYTES)
        window = window or own_window
        canvas = Canvas.fit(volume, plane, self.black_box.capabilities.input_size)
        place = (identity, plane, window)
        pixels, _ = self._cache.get_or_compute(("canvas", *place), lambda: canvas_image(volume, plane, canvas, window))
        adapted = adapted and plane.axis == SLICE_AXIS
        served, adapter_key, adapter = self._adapter(label) if adapted else (None, None, None)
        return _PreparedSlice(volume, window, canvas, pixels, served, adapter, ("encoding", *place), adapter_key)

    def _encoding_cache(self, prepared: _PreparedSlice, one: Adapter | None, cache_hits: list[bool]) -> GetEncoding:
        """Cache encodings of the slice through an adapter, and append to ``cache_hits`` whether each was there."""

        def keep(seen: Hashable, encode: Callable[[], Encoding]) -> Encoding:
            # Encodings of the unadapted model are shared by all labels.
            through = (prepared.adapter_key, one is prepared.adapter) if one else None
            encoding, there = self._cache.get_or_compute((*prepared.key, through, seen), encode)
            cache_hits.append(there)
            return encoding

        return keep

    def _prefetch(self, prepare: Callable[[Plane], _PreparedSlice], plane: Plane, prompt: Prompt, slices: int) -> None:
        """Schedule the encoding of neighbouring slices, for a click at the same place."""

        def encode(index: int) -> None:
            prepared = prepare(Plane(plane.axis, index))
            keep = self._encoding_cache(prepared, prepared.adapter, [])
            encode_cached(
                self.black_box,
                prepared.adapter,
                prepared.pixels,
                prompt.mapped(prepared.canvas.to_canvas),
                keep,
                prepared.canvas.size,
                prefetch=True,
            )

        neighbours = [plane.index + step for far in range(1, self._prefetch_slices + 1) for step in (far, -far)]
        self.prefetcher.schedule([partial(encode, index) for index in neighbours if index in range(slices)])


def _size(value: Encoding | Adapter | NDArray[np.uint8] | tuple[Volume, Window]) -> int:
    if isinstance(value, tuple):
        return value[0].voxels.nbytes
    if isinstance(value, Adapter):
        return sum(tensor.nbytes for tensor in value.state_dict().values())
    return value.nbytes


def _file_identity(path: Path) -> FileIdentity:
    """Return what changes when the file changes; a missing file is reported by the reader."""
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size
