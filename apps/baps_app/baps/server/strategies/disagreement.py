"""The strategy of Next Sample that proposes the volume on which the two methods disagree most."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy
from numpy.typing import NDArray

from baps.errors import BapsError, InputError
from baps.evaluation.cases import slices_showing
from baps.evaluation.slices import evenly_spaced
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.metrics import dice
from baps.inference.propagation import prompt_from_mask
from baps.inference.segmenter import Segmenter
from baps.server.datastores.candidates import candidates
from baps.server.strategies.usable import first_usable
from baps.utils.throttle import inference_lock

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

logger = logging.getLogger(__name__)

_SECONDS = 20.0
"""After which no further volume is begun in a request."""

_SLICES = 5
"""Of each organ that are compared."""

_LEAST = 100
"""Images of an archive that are chosen among, if there are as many."""

Versions = Mapping[str, tuple[str, tuple[str, str] | None]]
"""For each organ that can be compared, what serves it in the organ model, and its adapter for clicks."""


class Disagreement(Strategy):
    """Among the images without a final label, the one that can teach most: at least one of the methods errs there.

    Where the organ model finds an organ, that is clicked on as a person would: where its mask is deepest. The
    disagreement is 1 - Dice of the two answers on these slices, averaged over the organs that were found. An organ that
    it misses altogether says nothing, for there is no click.

    A request looks at volumes for some seconds, one at least, in a random order that is always the same; what was found
    stays in memory as long as the same adapters serve, so that the next request goes on.

    Args:
        segmenter, organs: load the models of the two methods.
        labels: names and values of the site.
        clicks: the lock of those who click; a training waits meanwhile.
        seconds: see there.
    """

    def __init__(
        self,
        segmenter: Callable[[], Segmenter],
        organs: Callable[[], OrganSegmenter],
        labels: Mapping[str, int],
        clicks: Path,
        seconds: float = _SECONDS,
    ) -> None:
        super().__init__("The volume on which clicks and the organ model disagree most")
        self._segmenter, self._organs, self._labels = segmenter, organs, labels
        self._clicks, self._seconds = clicks, seconds
        self._scored: dict[str, tuple[Versions, float | None]] = {}
        self._turn = threading.Lock()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's ``id``, its ``disagreement`` if it was found, and the ``reason`` as a sentence; None for none."""
        among = candidates(datastore, at_random=False, least=_LEAST)
        images = sorted(among.images)
        if not images:
            return None
        random.Random(0).shuffle(images)  # noqa: S311 (nothing is kept secret by it)
        why = "nothing that the organ model finds could be compared"
        found: dict[str, float] = {}
        try:
            # Who comes while another request looks gets what is known: a volume may be slow to come from a PACS.
            looks = self._turn.acquire(timeout=self._seconds)
            try:
                with inference_lock(self._clicks):
                    found = self._look(images if looks else [], images, datastore)
            finally:
                if looks:
                    self._turn.release()
        except BapsError as error:  # A model cannot be loaded.
            why = str(error).rstrip(".")
        if not found:
            drawn = random.sample(images, len(images))
            image = first_usable(drawn, datastore)
            return {"id": image, "reason": f"It was drawn by chance: {why}."} if image else None
        image = max(found, key=lambda name: found[name])
        return {
            "id": image,
            "disagreement": round(found[image], 4),
            "reason": f"The two methods disagree most here (1 - Dice {found[image]:.2f}), of {len(found)} volumes that "
            f"were compared; {len(images)}{among.where and ' ' + among.where} have no label.",
        }

    def _look(self, wanted: list[str], images: list[str], datastore: Datastore) -> dict[str, float]:
        """Compare wanted images until the time is up; the disagreement on each image compared, now or before."""
        segmenter, organs = self._segmenter(), self._organs()
        able = segmenter.black_box.capabilities
        versions = {
            organ: (version, segmenter.store.served(organ, *able.identity))
            for organ in self._labels
            if (version := organs.served(organ)) is not None
        }
        end = time.monotonic() + self._seconds
        looked = False
        for image in wanted if versions else ():
            if self._scored.get(image, (None,))[0] == versions:
                continue
            if looked and time.monotonic() >= end:
                break
            looked = True
            try:
                score = self._disagreement(segmenter, organs, Path(datastore.get_image_uri(image)), list(versions))
            except BapsError as error:
                logger.warning("An image cannot be compared (%s).", type(error).__name__)
                if not isinstance(error, InputError):  # A PACS that is away, say: the next request tries again.
                    continue
                score = None
            self._scored[image] = versions, score
        known = {image: self._scored.get(image, (None, None)) for image in images}
        return {image: score for image, (made, score) in known.items() if made == versions and score is not None}

    def _disagreement(self, segmenter: Segmenter, organs: OrganSegmenter, path: Path, names: list[str]) -> float | None:
        """Mean over the organs that were found, or None if none was."""
        volume, _ = segmenter.volume(path)
        labelmap = organs.segment(volume, {name: self._labels[name] for name in names}).labelmap
        able = segmenter.black_box.capabilities
        canvas = Canvas.fit(volume, Plane(SLICE_AXIS, 0), able.input_size)
        found = []
        for name in names:
            organ = labelmap == self._labels[name]
            theirs: list[NDArray[np.bool_]] = []
            ours: list[NDArray[np.bool_]] = []
            for index in evenly_spaced(slices_showing(organ, canvas), _SLICES):
                plane = Plane(SLICE_AXIS, index)
                theirs.append(plane.extract(organ))
                prompt = prompt_from_mask(theirs[-1], able)
                ours.append(segmenter.segment(path, plane, prompt, name, interactive=False).mask)
            if theirs:
                found.append(1 - dice(np.stack(ours), np.stack(theirs)))
        return sum(found) / len(found) if found else None
