"""From a click to a mask: geometry, window, visual prompt, black box, and back.

Stateless but for the caches: the same click gives the same mask, and no user sees another's. Threads may call at once;
the black box takes them one by one, the caches lock themselves.
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
from baps.inference.propagation import deepest
from baps.io import read_volume
from baps.prompts import Point, Prompt
from baps.registry.store import AdapterStore
from baps.utils.cache import Cache
from baps.utils.limits import check_size

Identity = tuple[str, int, int]

_PIXEL_BYTES = 8
"""What segmenting takes per pixel of a slice: its probability and the resized one. A picture is one large slice."""


@dataclass(frozen=True)
class Segmentation:
    """An answer.

    Attributes:
        probability: of the object at each pixel of the slice, (rows, columns).
        volume: that was clicked on.
        window: that the slice was shown with.
        adapter: label and version that served, or None for the model as it is.
        used_fallback: the adapted answer went against the clicks, see ``fall_back_on_violated_clicks``.
        encoding_cached: the expensive half was there already.
        seconds: that it took.
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
class _Shown:
    """A slice as the black box sees it, and the adapter that serves.

    Attributes:
        volume, window: see ``Segmentation``.
        canvas: where the slice lies on it.
        pixels: of the canvas, (S, S, 3).
        served: label and version of the adapter, or None.
        adapter: it.
        key: what encodings of the slice are kept under.
        made: which file the adapter came from.
    """

    volume: Volume
    window: Window
    canvas: Canvas
    pixels: NDArray[np.uint8]
    served: tuple[str, str] | None
    adapter: Adapter | None
    key: tuple[Hashable, ...]
    made: Hashable


class Segmenter:
    """Answers clicks.

    Args:
        black_box: the model.
        store: where published adapters lie.
        cache_bytes: bound on decoded volumes, encodings and adapters together.
        ahead: neighbouring slices on either side that are encoded while the user looks.
    """

    def __init__(self, black_box: BlackBox, store: AdapterStore, cache_bytes: int = 2 << 30, ahead: int = 0) -> None:
        self.black_box, self.store, self._ahead = black_box, store, ahead
        self.looking_ahead = Prefetcher()
        self._cache = Cache(cache_bytes, _size)

    def volume(self, path: Path) -> tuple[Volume, Window]:
        """A volume and its window, decoded once as long as the file stays the same.

        Raises:
            InputError: as ``read_volume``.
        """
        return self._volume(path, _identity(path))

    def _volume(self, path: Path, identity: Identity) -> tuple[Volume, Window]:
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
        clicked: bool = True,
    ) -> Segmentation:
        """Segment one slice.

        Args:
            path: the volume.
            plane: the slice.
            prompt: in pixels of the slice.
            label: the organ, or "" for none in particular.
            adapted: with the adapter that serves the label, if there is one, on a slice across K: nobody checked it on
                others.
            window: another one than the volume's own.
            clicked: a person prompted this slice. A prompt that was carried here from another slice holds the answer to
                nothing, and no neighbours are looked at ahead.

        Raises:
            InputError: if the volume, the slice or the prompt cannot be used.
        """

        def show(plane: Plane) -> _Shown:
            return self._show(path, plane, label, adapted, window)

        with self.looking_ahead.answering():
            begun = time.perf_counter()
            shown = show(plane)
            drawn = prompt.mapped(shown.canvas.to_canvas)
            kept: list[bool] = []

            def ask(one: Adapter | None) -> NDArray[np.float32]:
                return segment_cached(self.black_box, one, shown.pixels, drawn, self._keep(shown, one, kept))

            probability, used = ask(shown.adapter), shown.adapter
            if clicked:
                probability, used = fall_back_on_violated_clicks(probability, used, drawn, ask)
            answer = Segmentation(
                probability=shown.canvas.restore(probability),
                volume=shown.volume,
                window=shown.window,
                adapter=shown.served if used else None,
                used_fallback=used is not shown.adapter,
                encoding_cached=bool(kept) and all(kept),
                seconds=time.perf_counter() - begun,
            )
        if clicked and self.black_box.capabilities.encodings:
            self._look_ahead(show, plane, prompt, answer.volume.shape[plane.axis])
        return answer

    def carry(
        self,
        path: Path,
        masks: Mapping[int, NDArray[np.bool_]],
        start: int,
        end: int,
        label: str,
        adapted: bool = True,
        background: Mapping[int, tuple[Point, ...]] | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Carry an object on across K by the black box's own memory, see ``BlackBox.carry``.

        Args:
            path, label, adapted: as for ``segment``. The adapter must be one that ``can_carry`` allows.
            masks: where the object is known to be, (rows, columns) by slice.
            start, end: as there.
            background: clicks beside the object by slice, in its pixels.

        Yields:
            Each slice and the probability of the object at each of its pixels, (rows, columns).
        """
        shown = self._show(path, Plane(SLICE_AXIS, start), label, adapted, None)
        canvas, adapter = shown.canvas, shown.adapter

        def pixels(index: int) -> NDArray[np.uint8]:
            return self._show(path, Plane(SLICE_AXIS, index), label, adapted, None).pixels

        def seen(index: int) -> NDArray[np.uint8]:
            # Where the click lies is no matter: only adapters are used here whose change does not depend on it.
            return (
                adapter.transform_images(adapter.crop(pixels(index)[None], [Prompt(((0.0, 0.0),))]))[0]
                if adapter
                else pixels(index)
            )

        drawn = {index: canvas.draw(mask) > 0.5 for index, mask in masks.items()}
        placed = {index: tuple(map(canvas.to_canvas, points)) for index, points in (background or {}).items()}
        carried = self.black_box.propagate(seen, drawn, start, end, placed)
        while True:
            with self.looking_ahead.answering():
                index, answer = next(carried, (end, None))
            if answer is None:
                return
            if adapter and (answer > 0.5).any():  # A head asks for a click too.
                click = Prompt((deepest(answer > 0.5),))
                answer = adapter.refine_masks(adapter.crop(pixels(index)[None], [click]), answer[None])[0]
            yield index, canvas.restore(answer)

    def can_carry(self, label: str, adapted: bool = True) -> bool:
        """Whether what is seen of a slice depends on no prompt, so that the black box's memory can be used.

        That is so without an adapter, and with one that neither enlarges a part nor looks at the click.
        """
        adapter = self._adapter(label)[2] if adapted else None
        return adapter is None or adapter.prompt_independent

    def _adapter(self, label: str) -> tuple[tuple[str, str] | None, Hashable, Adapter | None]:
        """Label and version of what serves a label, which file it came from, and the adapter."""
        served = self.store.served(label, self.black_box.capabilities.weights_sha256)
        if served is None:
            return None, None, None
        made = (*served, _identity(self.store.file(*served)))
        return served, made, self._cache.get_or_compute(("adapter", made), lambda: self.store.load(*served).adapter)[0]

    def _show(self, path: Path, plane: Plane, label: str, adapted: bool, window: Window | None) -> _Shown:
        identity = _identity(path)  # Once: the file may be replaced meanwhile.
        volume, own_window = self._volume(path, identity)
        check_size(f"A slice of {path.name}", plane.extract(volume.voxels).shape[:2], _PIXEL_BYTES)
        window = window or own_window
        canvas = Canvas.fit(volume, plane, self.black_box.capabilities.input_size)
        place = (identity, plane, window)
        pixels, _ = self._cache.get_or_compute(("canvas", *place), lambda: canvas_image(volume, plane, canvas, window))
        adapted = adapted and plane.axis == SLICE_AXIS
        served, made, adapter = self._adapter(label) if adapted else (None, None, None)
        return _Shown(volume, window, canvas, pixels, served, adapter, ("encoding", *place), made)

    def _keep(self, shown: _Shown, one: Adapter | None, kept: list[bool]) -> GetEncoding:
        """Keeps encodings of a slice through an adapter; notes for each whether it was there."""

        def keep(seen: Hashable, encode: Callable[[], Encoding]) -> Encoding:
            through = (shown.made, one is shown.adapter) if one else None  # The model as it is: one for all labels.
            encoding, there = self._cache.get_or_compute((*shown.key, through, seen), encode)
            kept.append(there)
            return encoding

        return keep

    def _look_ahead(self, show: Callable[[Plane], _Shown], plane: Plane, prompt: Prompt, slices: int) -> None:
        """Have the neighbouring slices encoded, for a click at the same place."""

        def encode(index: int) -> None:
            shown = show(Plane(plane.axis, index))
            keep = self._keep(shown, shown.adapter, [])
            encode_cached(
                self.black_box, shown.adapter, shown.pixels, prompt.mapped(shown.canvas.to_canvas), keep, prefetch=True
            )

        near = [plane.index + step for far in range(1, self._ahead + 1) for step in (far, -far)]
        self.looking_ahead.plan([partial(encode, index) for index in near if index in range(slices)])


def _size(value: Encoding | Adapter | NDArray[np.uint8] | tuple[Volume, Window]) -> int:
    if isinstance(value, tuple):
        return value[0].voxels.nbytes
    if isinstance(value, Adapter):
        return sum(tensor.nbytes for tensor in value.state_dict().values())
    return value.nbytes


def _identity(path: Path) -> Identity:
    """Changes when the file does; a file that is not there is left to the reader to complain of."""
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size
