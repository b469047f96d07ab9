"""Segment one slice from a prompt: geometry, window, visual prompt, black box, and back to the slice's pixels.

The segmenter is stateless except for its caches: the same click gives the same mask, and no user sees another user's
data. Threads may call it concurrently: the black box serves one call at a time, and the caches lock themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, GetEncoding, encode_cached, segment_cached
from baps.adapters.click_consistency import fall_back_on_violated_clicks
from baps.blackbox import BlackBox, Encoding
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window
from baps.inference.loaded_volume import LoadedVolume, Source
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
class LoadedAdapter:
    """An adapter for one request. All slices of the request use it, even if another version is published meanwhile.

    Attributes:
        name: label and version.
        adapter: the adapter.
        key: cache key of what is computed with it.
    """

    name: tuple[str, str]
    adapter: Adapter
    key: Hashable


@dataclass(frozen=True)
class Segmentation:
    """The answer to one prompt.

    Attributes:
        probability: probability of the object at each pixel of the slice, (rows, columns).
        volume: the volume that the slice belongs to.
        window: the window that the slice was shown with.
        adapter: name of the adapter that was used, or None for the unadapted model.
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
    """A slice as the black box sees it, with the adapter that is used on it.

    Attributes:
        volume: the volume that the slice belongs to.
        window: the window that the slice is shown with.
        canvas: maps the slice to the black box's input.
        pixels: the canvas, (S, S, 3).
        loaded: the adapter, or None for the unadapted model.
        key: cache key of the encodings of the slice.
    """

    volume: Volume
    window: Window
    canvas: Canvas
    pixels: NDArray[np.uint8]
    loaded: LoadedAdapter | None
    key: tuple[Hashable, ...]

    @property
    def adapter(self) -> Adapter | None:
        """The adapter itself, or None."""
        return self.loaded.adapter if self.loaded else None


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

    def volume(self, path: Source) -> tuple[Volume, Window]:
        """Read a volume and choose its window; both are cached until the file changes.

        Args:
            path: file or DICOM series, or a volume in memory.

        Returns:
            The volume, and the window that suits it.

        Raises:
            InputError: as ``read_volume``.
        """
        return self._volume(path, file_identity(path))

    def load_adapter(self, label: str) -> LoadedAdapter | None:
        """Load the adapter that serves a label now. Call it once per request, and pass the result on.

        Args:
            label: the organ, or "" if none is named.

        Returns:
            The adapter, or None if the label is served by the unadapted model.
        """
        served = self.store.served(label, *self.black_box.capabilities.identity)
        if served is None:
            return None
        key = (*served, file_identity(self.store.file(*served)))
        adapter, _ = self._cache.get_or_compute(("adapter", key), lambda: self.store.load(*served).adapter)
        return LoadedAdapter(served, adapter, key)

    def _volume(self, path: Source, identity: FileIdentity) -> tuple[Volume, Window]:
        if isinstance(path, LoadedVolume):
            return path.volume, path.window

        def read() -> tuple[Volume, Window]:
            volume = read_volume(path)
            return volume, choose_window(volume)

        return self._cache.get_or_compute(("volume", identity), read)[0]

    def segment(
        self,
        path: Source,
        plane: Plane,
        prompt: Prompt,
        adapter: LoadedAdapter | None = None,
        window: Window | None = None,
        interactive: bool = True,
    ) -> Segmentation:
        """Segment one slice.

        Args:
            path: the volume.
            plane: the slice.
            prompt: clicks and box, (X, Y) in pixels of the slice.
            adapter: the adapter, or None for the unadapted model. It is used on slices across K only, because adapters
                are not evaluated on others.
            window: a window to use instead of the volume's own.
            interactive: whether a person prompted this slice. For a prompt that was propagated from another slice,
                violated clicks cause no fallback and no neighbours are prefetched.

        Returns:
            The mask in the frame of the slice, and how it was made.

        Raises:
            InputError: if the volume, the slice or the prompt cannot be used.
        """

        def prepare(plane: Plane) -> _PreparedSlice:
            return self._prepare(path, plane, adapter, window)

        with self.prefetcher.paused():
            start = time.perf_counter()
            prepared = prepare(plane)
            canvas_prompt = prompt.mapped(prepared.canvas.to_canvas)
            cache_hits: list[bool] = []

            def predict(candidate: Adapter | None) -> NDArray[np.float32]:
                return segment_cached(
                    self.black_box,
                    candidate,
                    prepared.pixels,
                    canvas_prompt,
                    self._encoding_cache(prepared, candidate, cache_hits),
                    prepared.canvas.size,
                )

            probability, used = predict(prepared.adapter), prepared.adapter
            if interactive:
                probability, used = fall_back_on_violated_clicks(probability, used, canvas_prompt, predict)
            answer = Segmentation(
                probability=prepared.canvas.restore(probability),
                volume=prepared.volume,
                window=prepared.window,
                adapter=prepared.loaded.name if prepared.loaded and used else None,
                used_fallback=used is not prepared.adapter,
                encoding_cached=bool(cache_hits) and all(cache_hits),
                seconds=time.perf_counter() - start,
            )
        if interactive and self.black_box.capabilities.encodings:
            self._prefetch(prepare, plane, prompt, answer.volume.shape[plane.axis])
        return answer

    def propagate_with_memory(
        self,
        path: Source,
        masks: Mapping[int, NDArray[np.bool_]],
        start: int,
        end: int,
        adapter: LoadedAdapter | None = None,
        background: Mapping[int, tuple[Point, ...]] | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Propagate an object across K with the black box's own memory, see ``BlackBox.propagate``.

        Args:
            path: the volume.
            masks: known masks of the object by slice index, (rows, columns) each.
            start: slice to propagate from; its mask must be known.
            end: slice at which to stop, exclusive; smaller than ``start`` to propagate downwards.
            adapter: the adapter, or None for the unadapted model. It must be ``prompt_independent``, because the other
                slices have no prompt.
            background: background clicks by slice index, (X, Y) in pixels of the slice.

        Yields:
            Each slice index with the probability of the object at each of its pixels, (rows, columns).
        """
        prepared = self._prepare(path, Plane(SLICE_AXIS, start), adapter, None)
        canvas, used = prepared.canvas, prepared.adapter

        def pixels(index: int) -> NDArray[np.uint8]:
            return self._prepare(path, Plane(SLICE_AXIS, index), adapter, None).pixels

        def seen(index: int) -> NDArray[np.uint8]:
            # The click's position does not matter: only adapters are used here that do not depend on it.
            return (
                used.transform_images(used.crop(pixels(index)[None], [Prompt(((0.0, 0.0),))]))[0]
                if used
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
            if used and (answer > 0.5).any():  # A head needs a click too.
                click = Prompt((deepest_point(answer > 0.5),))
                answer = used.refine_masks(used.crop(pixels(index)[None], [click]), answer[None])[0]
            yield index, canvas.restore(answer)

    def _prepare(
        self, path: Source, plane: Plane, loaded: LoadedAdapter | None, window: Window | None
    ) -> _PreparedSlice:
        identity = file_identity(path)  # Computed once: the file may be replaced meanwhile.
        volume, own_window = self._volume(path, identity)
        check_size(f"A slice of {path.name}", plane.extract(volume.voxels).shape[:2], _PIXEL_BYTES)
        window = window or own_window
        canvas = Canvas.fit(volume, plane, self.black_box.capabilities.input_size)
        place = (identity, plane, window)
        pixels, _ = self._cache.get_or_compute(("canvas", *place), lambda: canvas_image(volume, plane, canvas, window))
        used = loaded if plane.axis == SLICE_AXIS else None
        return _PreparedSlice(volume, window, canvas, pixels, used, ("encoding", *place))

    def _encoding_cache(
        self, prepared: _PreparedSlice, candidate: Adapter | None, cache_hits: list[bool]
    ) -> GetEncoding:
        """Cache encodings of the slice through an adapter, and append to ``cache_hits`` whether each was there."""

        def keep(seen: Hashable, encode: Callable[[], Encoding]) -> Encoding:
            # Encodings of the unadapted model are shared by all labels.
            adapter_key = (
                (prepared.loaded.key, candidate is prepared.adapter) if prepared.loaded and candidate else None
            )
            encoding, there = self._cache.get_or_compute((*prepared.key, adapter_key, seen), encode)
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


def file_identity(path: Source) -> FileIdentity:
    """Return what changes when a file changes, for keys of caches.

    Args:
        path: file or DICOM series, or a volume in memory.

    Returns:
        Its name, its time in ns and its size; a missing file, which the reader reports, has 0 and 0.
    """
    if isinstance(path, LoadedVolume):
        return path.key, -1, -1
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size
