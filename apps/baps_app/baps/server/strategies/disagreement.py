"""Strategy that selects the volume on which clicks and the organ model disagree most."""

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
from baps.server.datastores.candidates import Candidates, find_candidates
from baps.server.strategies.preview import Offer, Preview
from baps.server.strategies.usable import first_usable
from baps.utils.throttle import inference_lock

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

logger = logging.getLogger(__name__)

_SECONDS = 20.0
"""Time after which a request compares no further volume."""

_SLICES = 5
"""Number of slices of each organ that are compared."""

_MIN_CANDIDATES = 100
"""Number of images of a PACS among which one is selected, if there are as many."""

Versions = Mapping[str, tuple[str, tuple[str, str] | None]]
"""For each organ that can be compared, the version that serves it in the organ model, and its adapter for clicks."""


class Disagreement(Strategy):
    """Selects the unlabelled image on which the two methods disagree most, because at least one of them is wrong there.

    Where the organ model finds an organ, the black box gets a click on the deepest point of that mask, as a person
    would click. The disagreement is 1 - Dice of the two masks on these slices, averaged over the organs. An organ that
    the organ model misses completely is not compared, because there is no place to click.

    A request compares volumes for some seconds, and at least one, in a random order that is always the same. The
    results stay in memory as long as the same adapters are served, so that the next request continues.

    Args:
        segmenter: Loads the segmenter for clicks.
        organs: Loads the organ model.
        labels: Names and values of the site.
        lock_file: Lock file of inference; a training waits while it is held.
        seconds: Time after which a request compares no further volume.
    """

    def __init__(
        self,
        segmenter: Callable[[], Segmenter],
        organs: Callable[[], OrganSegmenter],
        labels: Mapping[str, int],
        lock_file: Path,
        seconds: float = _SECONDS,
    ) -> None:
        super().__init__("The volume on which clicks and the organ model disagree most")
        self._segmenter, self._organs, self._labels = segmenter, organs, labels
        self._lock_file, self._seconds = lock_file, seconds
        self._scores: dict[str, tuple[Versions, float | None]] = {}
        self._versions: Versions = {}
        self._comparing = threading.Lock()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Select an image.

        Args:
            request: Body of the request; it has no options.
            datastore: Datastore of the server.

        Returns:
            The image's ``id``, its ``disagreement`` if any image could be compared, and the ``reason`` as a sentence;
            None if no image is left.

        Raises:
            InputError: If none of the images that were tried can be used.
            BapsError: If the PACS does not respond, or the disk is full.
        """
        candidates = find_candidates(datastore, random_start=False, min_count=_MIN_CANDIDATES)
        images = sorted(candidates.images)
        if not images:
            return None
        random.Random(0).shuffle(images)  # noqa: S311 (no secret)
        failure = "nothing that the organ model finds could be compared"
        scores: dict[str, float] = {}
        try:
            # While another request compares, this one uses the known scores: a PACS may send a volume slowly.
            may_compare = self._comparing.acquire(timeout=self._seconds)
            try:
                with inference_lock(self._lock_file):
                    scores = self._compare(images if may_compare else [], images, datastore)
            finally:
                if may_compare:
                    self._comparing.release()
        except BapsError as error:  # A model cannot be loaded.
            failure = str(error).rstrip(".")
        if not scores:
            image = first_usable(random.sample(images, len(images)), datastore)
            return {"id": image, "reason": f"It was selected at random: {failure}."} if image else None
        image = max(scores, key=lambda name: scores[name])
        return {
            "id": image,
            "disagreement": round(scores[image], 4),
            "reason": f"The two methods disagree most here (1 - Dice {scores[image]:.2f}), of {len(scores)} volumes "
            f"that were compared; {len(images)}{candidates.scope and ' ' + candidates.scope} have no label.",
        }

    def _compare(self, queue: list[str], images: list[str], datastore: Datastore) -> dict[str, float]:
        """Compare the methods on images until the time is up.

        Args:
            queue: Images to compare, in this order.
            images: Images whose scores are returned.
            datastore: Datastore of the images.

        Returns:
            The disagreement on each image that was compared, now or by an earlier request.

        Raises:
            BapsError: If a model cannot be loaded.
        """
        segmenter, organs = self._segmenter(), self._organs()
        capabilities = segmenter.black_box.capabilities
        versions = {
            organ: (version, segmenter.store.served(organ, *capabilities.identity))
            for organ in self._labels
            if (version := organs.served(organ)) is not None
        }
        self._versions = versions
        end = time.monotonic() + self._seconds
        has_compared = False
        for image in queue if versions else ():
            if self._scores.get(image, (None,))[0] == versions:
                continue
            if has_compared and time.monotonic() >= end:
                break
            has_compared = True
            try:
                score = self._disagreement(segmenter, organs, Path(datastore.get_image_uri(image)), list(versions))
            except BapsError as error:
                logger.warning("An image cannot be compared (%s).", type(error).__name__)
                if not isinstance(error, InputError):  # For example, the PACS is offline: the next request retries.
                    continue
                score = None
            self._scores[image] = versions, score
        known = {image: self._scores.get(image, (None, None)) for image in images}
        return {image: score for image, (used, score) in known.items() if used == versions and score is not None}

    def preview(self, candidates: Candidates, datastore: Datastore, count: int) -> Preview:
        """Return what it would offer, see ``Previewable``: the images that earlier requests have compared."""
        scores = {}
        for image in candidates.images:
            used, score = self._scores.get(image, (None, None))
            if score is not None and used == self._versions:
                scores[image] = score
        best = sorted(scores, key=lambda name: (-scores[name], name))[:count]
        offers = (Offer(image, f"the two methods disagree here by {scores[image]:.2f} (1 - Dice)") for image in best)
        rule = (
            f"The image on which clicks and the organ model disagree most. {len(scores)} of {len(candidates.images)} "
            "images are compared so far; each request compares some more."
        )
        return Preview(rule, tuple(offers))

    def _disagreement(self, segmenter: Segmenter, organs: OrganSegmenter, path: Path, names: list[str]) -> float | None:
        """Return the mean disagreement over the organs that the organ model finds, or None if it finds none."""
        volume, _ = segmenter.volume(path)
        label_map = organs.segment(volume, {name: self._labels[name] for name in names}).labelmap
        capabilities = segmenter.black_box.capabilities
        canvas = Canvas.fit(volume, Plane(SLICE_AXIS, 0), capabilities.input_size)
        disagreements = []
        for name in names:
            organ = label_map == self._labels[name]
            organ_masks: list[NDArray[np.bool_]] = []
            click_masks: list[NDArray[np.bool_]] = []
            loaded = segmenter.load_adapter(name)
            for index in evenly_spaced(slices_showing(organ, canvas), _SLICES):
                plane = Plane(SLICE_AXIS, index)
                organ_masks.append(plane.extract(organ))
                prompt = prompt_from_mask(organ_masks[-1], capabilities)
                click_masks.append(segmenter.segment(path, plane, prompt, loaded, interactive=False).mask)
            if organ_masks:
                disagreements.append(1 - dice(np.stack(click_masks), np.stack(organ_masks)))
        return sum(disagreements) / len(disagreements) if disagreements else None
