"""Segment organs of a volume without clicks, each by its adapter or by the unadapted model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.blackbox.local import convert_out_of_memory
from baps.errors import BapsError, InputError
from baps.fseft.adapter_file import read_organ_adapter
from baps.fseft.adapters import FewShotAdapter, build_adapter
from baps.fseft.expected_dice import expected_dice
from baps.fseft.feature_cache import FeatureCache, InputGetter
from baps.fseft.inference import segment
from baps.fseft.models import OrganModel
from baps.fseft.preprocessing import PreparedVolume, WindowSides
from baps.imaging.volume import Volume
from baps.registry.store import AdapterStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OrganMasks:
    """Masks of the organs of a volume.

    Attributes:
        labelmap: (I, J, K) uint8, the value of the organ at each voxel of the volume, 0 for none.
        served: version of the adapter of each organ that was segmented, or "" for the unadapted model.
        unknown: organs that neither the model nor an adapter knows, or whose adapter is broken.
        stopped: organs that were not segmented because the request was stopped.
    """

    labelmap: NDArray[np.uint8]
    served: Mapping[str, str]
    unknown: tuple[str, ...]
    stopped: tuple[str, ...]


class OrganSegmenter:
    """Segment organs of volumes. Threads may call concurrently; they take turns, because the model uses all cores.

    Args:
        model: the foundation model.
        store: the published adapters of organs.
        feature_cache: cache of the model's features.
    """

    def __init__(self, model: OrganModel, store: AdapterStore, feature_cache: FeatureCache) -> None:
        self.model, self.store, self.feature_cache = model, store, feature_cache
        self._adapters: dict[str, tuple[str, FewShotAdapter]] = {}
        self.turn = threading.Lock()
        """Lock of the thread that uses the model."""

    def served(self, organ: str) -> str | None:
        """Return what segments an organ.

        Args:
            organ: the organ.

        Returns:
            The version of its adapter, "" for the unadapted model, or None if neither knows it.
        """
        version = self.store.served(organ, self.model.sha256)
        if version is not None:
            return version[1]
        return None if self.model.network.index(organ) is None else ""

    def expected_dice(self, organ: str) -> float | None:
        """Estimate the Dice of an organ on the next patient, see ``baps.fseft.expected_dice``.

        Args:
            organ: the organ.

        Returns:
            0 to 1, or None if neither the model nor an adapter knows the organ, or nothing was measured.
        """
        version = self.served(organ)
        return None if version is None else expected_dice(self.store, self.model, organ, version)

    @convert_out_of_memory
    def segment(
        self,
        volume: Volume,
        labels: Mapping[str, int],
        should_continue: Callable[[], bool] = lambda: True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> OrganMasks:
        """Segment organs; a voxel that several organs claim goes to the smallest of them.

        A large organ loses little by that, and a small one is not lost in it: the bundled model's liver includes the
        right kidney, with a higher probability than that of the kidney.

        Args:
            volume: a volume of any orientation.
            labels: organs and their values, 1 to 255.
            should_continue: called before every organ; if it returns False, the result holds what was segmented so far.
            progress: called with the number of organs done, and of all organs.

        Returns:
            The masks.

        Raises:
            InputError: if none of the organs is known, or the volume is in colour.
            BapsError: if the GPU is out of memory.
        """
        versions = {organ: version for organ in labels if (version := self.served(organ)) is not None}
        if not versions:
            raise InputError(
                f"The organ model {self.model.name} knows {', '.join(self.model.network.classes) or 'no organ by name'}"
                f", and has no adapter for {', '.join(labels)}. Label a volume or more, and train `organs`."
            )
        with self.turn:
            prepared = self.model.prepare(volume)
            get_inputs = self.feature_cache.for_image(self.model, prepared.image)
            masks: dict[str, NDArray[np.intp]] = {}  # Flat indices of the voxels.
            served: dict[str, str] = {}
            stopped: list[str] = []
            for number, (organ, version) in enumerate(versions.items()):
                progress(number, len(versions))
                if stopped or not should_continue():
                    stopped.append(organ)
                    continue
                try:
                    probability = predict(self._adapter(organ, version), prepared, get_inputs, self.model.side)
                except BapsError as error:  # The adapter is broken: the other organs are still segmented.
                    logger.warning("%s", error)
                    continue
                served[organ] = version
                masks[organ] = np.flatnonzero(probability > 0.5)
        labelmap = np.zeros(volume.shape, np.uint8)
        for organ, voxels in sorted(masks.items(), key=lambda item: -len(item[1])):
            labelmap.flat[voxels] = labels[organ]
        unknown = tuple(organ for organ in labels if organ not in {*served, *stopped})
        return OrganMasks(labelmap, served, unknown, tuple(stopped))

    def _adapter(self, organ: str, version: str) -> FewShotAdapter | None:
        """Load the adapter of an organ, and keep it while it is served."""
        if not version:
            return unadapted(self.model, organ)
        if self._adapters.get(organ, ("",))[0] != version:
            adapter, _ = read_organ_adapter(self.store.file(organ, version), self.model)
            self._adapters[organ] = version, adapter
        return self._adapters[organ][1]


def unadapted(model: OrganModel, organ: str) -> FewShotAdapter | None:
    """Build the adapter that segments an organ as the unadapted model does.

    Args:
        model: the organ model.
        organ: the organ.

    Returns:
        The adapter, or None if the model does not know the organ.
    """
    if model.network.index(organ) is None:
        return None
    return build_adapter("linear_probe", model.network, organ).to(model.device).eval()


@convert_out_of_memory
def segment_volume(model: OrganModel, adapter: FewShotAdapter, volume: Volume) -> Volume:
    """Segment one organ of a volume.

    Args:
        model: the organ model.
        adapter: an adapter for the organ, see ``unadapted``.
        volume: a volume of any orientation.

    Returns:
        The mask in the frame of the volume: voxels (I, J, K) uint8, 1 inside the organ.

    Raises:
        InputError: if the volume is in colour.
        BapsError: if the GPU is out of memory.
    """
    prepared = model.prepare(volume)
    get_inputs = FeatureCache(None).for_image(model, prepared.image)
    mask = predict(adapter, prepared, get_inputs, model.side) > 0.5
    return Volume(mask.astype(np.uint8), volume.affine)


def predict(
    adapter: FewShotAdapter | None, prepared: PreparedVolume, get_inputs: InputGetter, side: WindowSides
) -> NDArray[np.float32]:
    """Compute the probability of an organ at each voxel of the volume.

    Args:
        adapter: an adapter for the organ, or None for probability 0 everywhere.
        prepared: the preprocessed volume.
        get_inputs: returns its inputs, see ``FeatureCache.for_image``.
        side: sides of the foundation model's sliding window, voxels.

    Returns:
        Probabilities, (I, J, K); those of at most 0.5 may be 0.
    """
    if adapter is None:
        return np.zeros(prepared.volume.shape, np.float32)
    return prepared.restore(segment(adapter, get_inputs(adapter.input_kind), side), floor=0.5)
