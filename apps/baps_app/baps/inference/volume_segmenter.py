"""Segment volumes with a 3D black box and the adapters of a site."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import ShownVolume, VolumeAdapter
from baps.adapters.volumes.adapter_file import read_volume_adapter
from baps.blackbox.volumes.interface import VolumeBlackBox
from baps.errors import BapsError
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window
from baps.inference.remembered_masks import RememberedMasks
from baps.inference.segmenter import file_identity
from baps.io import read_volume
from baps.prompts.volume_prompts import ClickOrBox, Mask, VolumePoint, VolumePrompt
from baps.registry.store import AdapterStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedVolumeAdapter:
    """An adapter for one request.

    Attributes:
        name: label and version.
        adapter: the adapter.
    """

    name: tuple[str, str]
    adapter: VolumeAdapter


LoadedFile = tuple[Volume, Window]
"""A volume, and the window that suits it."""


def _read(path: Path) -> LoadedFile:
    volume = read_volume(path)
    return volume, choose_window(volume)


class VolumeSegmenter:
    """Segment objects in volumes from prompts.

    Args:
        black_box: returns the 3D black box; the first call may load it.
        store: the published adapters of 3D black boxes.
        read: reads a volume and chooses its window, maybe from a cache.
    """

    def __init__(
        self, black_box: Callable[[], VolumeBlackBox], store: AdapterStore, read: Callable[[Path], LoadedFile] = _read
    ) -> None:
        self._black_box, self.store, self.read = black_box, store, read
        self._loaded: dict[str, LoadedVolumeAdapter] = {}
        self._remembered = RememberedMasks()

    @property
    def black_box(self) -> VolumeBlackBox:
        """The 3D black box."""
        return self._black_box()

    def load_adapter(self, label: str) -> LoadedVolumeAdapter | None:
        """Load the adapter that serves a label now.

        Args:
            label: the organ, or "".

        Returns:
            The adapter, or None for the unadapted model; also if the adapter is damaged.
        """
        name = self.store.served(label, *self.black_box.capabilities.identity) if label else None
        if name is None:
            return None
        loaded = self._loaded.get(label)
        if loaded is None or loaded.name != name:
            try:
                adapter, _ = read_volume_adapter(self.store.file(*name))
            except BapsError as error:
                logger.warning("%s", error)
                return None
            loaded = self._loaded[label] = LoadedVolumeAdapter(name, adapter)
        return loaded

    def segment_all(
        self, path: Path, image: ShownVolume, prompts: Sequence[ClickOrBox], loaded: LoadedVolumeAdapter | None = None
    ) -> NDArray[np.bool_]:
        """Segment an object from all prompts on it, for viewers that send them all with every request and no mask.

        Adapters learn to correct masks. So the answer goes on from that to most of these prompts; where none is
        remembered, from that to the first prompt alone.

        Args:
            path: the file of the volume, or its DICOM series.
            image: the volume.
            prompts: all prompts, in its voxels, at least one.
            loaded: the adapter, or None for the unadapted model.

        Returns:
            The mask, (I, J, K).

        Raises:
            InputError: if the model understands none of the prompts.
            BapsError: if the model cannot be reached.
        """
        capabilities = self.black_box.capabilities
        if not capabilities.masks:
            return self.segment(image, prompts, None, loaded)
        key = (file_identity(path), capabilities.identity, loaded.name if loaded else None)
        complete, start = self._remembered.find(key, prompts) or (False, None)
        if complete and start is not None:
            return start
        if start is None and len(prompts) > 1 and capabilities.understands(prompts[0]):
            start = self.segment(image, prompts[:1], None, loaded)
        answer = self.segment(image, prompts, start, loaded)
        self._remembered.add(key, prompts, answer)
        return answer

    def segment(
        self,
        image: ShownVolume,
        prompts: Sequence[VolumePrompt],
        mask: Mask | None = None,
        loaded: LoadedVolumeAdapter | None = None,
    ) -> NDArray[np.bool_]:
        """Segment an object. The voxel of each click on it is in the mask, and that of each click beside it is not.

        Args:
            image: the volume.
            prompts: prompts in its voxels.
            mask: a mask to be corrected, (I, J, K), or None.
            loaded: the adapter, or None for the unadapted model.

        Returns:
            The mask, (I, J, K).

        Raises:
            InputError: if the model understands none of the prompts.
            BapsError: if the model cannot be reached.
        """
        adapter = loaded.adapter if loaded else VolumeAdapter()
        answer = adapter.predict(self.black_box, image, prompts, mask) > 0.5
        for prompt in prompts:
            if isinstance(prompt, VolumePoint):
                answer[prompt.voxel] = prompt.include
        return np.asarray(answer)
