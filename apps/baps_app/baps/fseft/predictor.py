"""From a volume to masks of its organs, with no click: each by its adapter, or as the model came."""

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
from baps.fseft.feature_cache import FeatureCache, Reading
from baps.fseft.inference import segment
from baps.fseft.models import OrganModel
from baps.fseft.preprocessing import Prepared, prepare
from baps.imaging.volume import Volume
from baps.registry.store import AdapterStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OrganMasks:
    """An answer.

    Attributes:
        labelmap: (I, J, K) uint8, the value of the organ at each voxel of the volume, 0 for none.
        served: of each organ that was asked for and can be answered, the version of its adapter, or "" for the model as
            it is.
        unknown: organs that neither the model nor an adapter knows, or whose adapter is broken.
        stopped: organs that were not come to.
    """

    labelmap: NDArray[np.uint8]
    served: Mapping[str, str]
    unknown: tuple[str, ...]
    stopped: tuple[str, ...]


class OrganSegmenter:
    """Answers for volumes. Threads may call at once; they take turns, for the model takes every core that there is.

    Args:
        model: the foundation model.
        store: where published adapters of organs lie.
        readings: where the model's features are kept.
    """

    def __init__(self, model: OrganModel, store: AdapterStore, readings: FeatureCache) -> None:
        self.model, self.store, self.readings = model, store, readings
        self._adapters: dict[str, tuple[str, FewShotAdapter]] = {}
        self._turn = threading.Lock()

    def served(self, organ: str) -> str | None:
        """What answers for an organ: the version of its adapter, "" for the model as it is, or None for nothing."""
        found = self.store.served(organ, self.model.sha256)
        if found is not None:
            return found[1]
        return None if self.model.network.index(organ) is None else ""

    @convert_out_of_memory
    def segment(
        self,
        volume: Volume,
        labels: Mapping[str, int],
        go_on: Callable[[], bool] = lambda: True,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> OrganMasks:
        """Masks of organs; where two claim a voxel, it goes to the surer one.

        Args:
            volume: of any orientation.
            labels: organs and their values, 1 to 255.
            go_on: asked before every organ; what was found so far is given if it says no.
            report: told how many organs are done, and how many there are.

        Raises:
            InputError: if none of the organs is known, or the volume is in colour.
            BapsError: if the GPU has not enough memory.
        """
        known = {organ: version for organ in labels if (version := self.served(organ)) is not None}
        if not known:
            raise InputError(
                f"The organ model {self.model.name} knows {', '.join(self.model.network.classes) or 'no organ by name'}"
                f", and has no adapter for {', '.join(labels)}. Label a volume or more, and train `organs`."
            )
        with self._turn:
            prepared = prepare(volume, self.model.spacing, self.model.side)
            reading = self.readings.of_image(self.model, prepared.image)
            surest = np.full(volume.shape, 0.5, np.float32)
            labelmap = np.zeros(volume.shape, np.uint8)
            served: dict[str, str] = {}
            stopped: list[str] = []
            for number, (organ, version) in enumerate(known.items()):
                report(number, len(known))
                if stopped or not go_on():
                    stopped.append(organ)
                    continue
                try:
                    probability = ask(self._adapter(organ, version), prepared, reading, self.model.side)
                except BapsError as error:  # A broken adapter: the other organs are answered all the same.
                    logger.warning("%s", error)
                    continue
                served[organ] = version
                mine = probability > surest
                labelmap[mine] = labels[organ]
                surest[mine] = probability[mine]
        unknown = tuple(organ for organ in labels if organ not in {*served, *stopped})
        return OrganMasks(labelmap, served, unknown, tuple(stopped))

    def _adapter(self, organ: str, version: str) -> FewShotAdapter | None:
        """Kept while it is served."""
        if not version:
            return unadapted(self.model, organ)
        if self._adapters.get(organ, ("",))[0] != version:
            adapter, _ = read_organ_adapter(self.store.file(organ, version), self.model)
            self._adapters[organ] = version, adapter
        return self._adapters[organ][1]


def unadapted(model: OrganModel, organ: str) -> FewShotAdapter | None:
    """What answers for an organ as the model came, or None if it does not know it."""
    if model.network.index(organ) is None:
        return None
    return build_adapter("linear_probe", model.network, organ).to(model.device).eval()


def ask(adapter: FewShotAdapter | None, prepared: Prepared, reading: Reading, side: int) -> NDArray[np.float32]:
    """Probability of an organ at each voxel of the volume, (I, J, K); 0 everywhere where nothing answers for it.

    Args:
        adapter: of the organ.
        prepared: the volume.
        reading: of it, see ``FeatureCache.of_image``.
        side: of the foundation model's windows, voxels.
    """
    if adapter is None:
        return np.zeros(prepared.volume.shape, np.float32)
    return prepared.back(segment(adapter, reading(adapter.reads), side))
