"""Judge adapters on every label that a person confirms, in the background and at the lowest priority.

The labels of the datastore are compared with the evidence in the store when a label is saved, and every ten minutes. So
nothing is lost when the server ends, and labels that were changed or deleted are dropped from the evidence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from monailabel.interfaces.datastore import Datastore

from baps.adapters.adapter_file import read_adapter
from baps.adapters.volumes.adapter_file import read_volume_adapter
from baps.annotations.first_prompts import FirstPrompts
from baps.blackbox import BlackBox
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case
from baps.evaluation.evidence import EvidenceStream
from baps.evaluation.folders import read_patient_table
from baps.evaluation.prospective import score_adapters
from baps.evaluation.prospective_volumes import MAX_PREDICTIONS, score_volume_adapters
from baps.evaluation.splits import patient_hash
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.registry.evidence import change_evidence, read_evidence
from baps.registry.store import SHARED, AdapterStore
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.training_cases import label_versions, labelled_cases
from baps.site.audit import AuditFile
from baps.site.settings import Settings
from baps.utils.priority_lock import low_priority
from baps.utils.throttle import wait_for_idle

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

logger = logging.getLogger(__name__)

_INTERVAL = 600.0
"""Seconds between two passes if no label is saved."""

_AWAY_SECONDS = 300.0
"""Seconds for which a model that does not answer is left alone."""


class ModelAwayError(BapsError):
    """A model does not answer now, and may later."""


class Judge(Protocol):
    """Scores the adapters of one model.

    Attributes:
        store: Store of the adapters.
    """

    store: AdapterStore

    def identity(self) -> tuple[str, ...]:
        """Return what an adapter of the model depends on, see ``change_evidence``; the first call loads the model.

        Raises:
            ModelAwayError: If the model does not answer now.
        """

    def score(self, label: str, files: Mapping[str, Path], case: Case, volume: str) -> dict[str, float]:
        """Return the difference that each adapter makes on a case, Dice, by the name of its file.

        Args:
            label: The label.
            files: Files of the adapters by any names.
            case: The case.
            volume: Hash of the image.

        Raises:
            InputError: If the case or an adapter cannot be used.
            ModelAwayError: If the model does not answer now.
        """


class ClickJudge:
    """Scores adapters for clicks.

    Args:
        black_box: Loads the model.
        store: Store of the adapters.
        max_images: Maximum number of images to send to the model for each label.
        prompts: First prompts that users made.
    """

    def __init__(
        self, black_box: Callable[[], BlackBox], store: AdapterStore, max_images: int, prompts: FirstPrompts
    ) -> None:
        self._black_box, self.store, self._max_images, self._prompts = black_box, store, max_images, prompts

    def identity(self) -> tuple[str, ...]:
        """Return weights and preprocessing."""
        return self._black_box().capabilities.identity

    def score(self, label: str, files: Mapping[str, Path], case: Case, volume: str) -> dict[str, float]:
        """Score adapters with prompts on some slices, those that a user made where they were kept."""
        adapters = {name: read_adapter(file)[0] for name, file in files.items()}
        wait = wait_for_idle(self.store.inference_lock_file)
        prompts = self._prompts.read(volume, label)
        return score_adapters(self._black_box(), adapters, case, self._max_images, prompts, wait)


class OrganJudge:
    """Scores adapters of the organ model.

    Args:
        segmenter: Loads the model.
        store: Store of the adapters.
        lock_file: Lock file of inference.
    """

    def __init__(self, segmenter: Callable[[], OrganSegmenter], store: AdapterStore, lock_file: Path) -> None:
        self._segmenter, self.store, self._lock_file = segmenter, store, lock_file

    def identity(self) -> tuple[str, ...]:
        """Return the weights."""
        return (self._segmenter().model.sha256,)

    def score(self, label: str, files: Mapping[str, Path], case: Case, volume: str) -> dict[str, float]:
        """Score adapters on the whole volume."""
        from baps.fseft.adapter_file import read_organ_adapter  # Networks, which take seconds to import.
        from baps.fseft.prospective import score_organ_adapters

        segmenter = self._segmenter()
        adapters = {name: read_organ_adapter(file, segmenter.model)[0] for name, file in files.items()}
        return score_organ_adapters(segmenter, label, adapters, case, wait_for_idle(self._lock_file))


class VolumeJudge:
    """Scores adapters of the 3D black box, whose server may be away.

    Args:
        segmenter: The 3D black box, with the store of its adapters.
        lock_file: Lock file of inference.
        max_predictions: Maximum number of predictions for each label; more than ``MAX_PREDICTIONS`` are never made.
    """

    def __init__(self, segmenter: VolumeSegmenter, lock_file: Path, max_predictions: int = MAX_PREDICTIONS) -> None:
        self._segmenter, self.store, self._lock_file = segmenter, segmenter.store, lock_file
        self._max_predictions = min(max_predictions, MAX_PREDICTIONS)

    def identity(self) -> tuple[str, ...]:
        """Return the identity of the weights and the kind of answers."""
        with _convert_to_away():
            return self._segmenter.black_box.capabilities.identity

    def score(self, label: str, files: Mapping[str, Path], case: Case, volume: str) -> dict[str, float]:
        """Score adapters with the same 3D clicks on the whole volume."""
        adapters = {name: read_volume_adapter(file)[0] for name, file in files.items()}
        wait = wait_for_idle(self._lock_file)
        with _convert_to_away():
            black_box, folder = self._segmenter.black_box, self.store.root
            return score_volume_adapters(black_box, adapters, case, self._max_predictions, wait, folder)


@contextmanager
def _convert_to_away() -> Iterator[None]:
    """Convert errors that are not due to the input: the model cannot be loaded or reached, or the disk is full."""
    try:
        yield
    except InputError:
        raise
    except BapsError as error:
        raise ModelAwayError(str(error)) from error


class EvidenceCollector:
    """Adds confirmed labels to the evidence of adapters, and lets the gate publish or withdraw them.

    Args:
        datastore: Datastore of the server.
        site: Settings of the site.
        judges: Judges of the site's models.
        audit: Audit file, which gets a line for each change of an adapter's state.
        closed: Event that is set when the server ends.
    """

    def __init__(
        self,
        datastore: Datastore,
        site: Settings,
        judges: tuple[Judge, ...],
        audit: AuditFile,
        closed: threading.Event | None = None,
    ) -> None:
        self._datastore, self._site, self._judges, self._audit = datastore, site, judges, audit
        self._closed, self._wake = closed or threading.Event(), threading.Event()
        self._unusable: set[tuple[str, ...]] = set()  # Store, label, volume, version of the label, adapters.
        self._away: dict[Judge, float] = {}  # Time from which a model that did not answer is tried again.
        self._audited: dict[Path, int] = {}  # Number of changes that are audited, by the file of the evidence.

    def start(self) -> None:
        """Start a thread that collects evidence now and whenever there may be more."""
        threading.Thread(target=self._run, name="evidence", daemon=True).start()

    def wake(self) -> None:
        """Collect evidence soon, because a label was saved."""
        self._wake.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.clear()
            try:
                self.collect()
            except Exception as error:  # For example, the PACS does not respond. The next pass goes on.
                logger.warning("Adapters could not be judged on new labels (%s).", type(error).__name__)
            self._wake.wait(_INTERVAL)

    def collect(self) -> None:
        """Judge the adapters on all labels that are not part of their evidence yet.

        Raises:
            BapsError: If the datastore does not respond.
        """
        if not self._audited:  # What happened before the server started is not this server's.
            self._audited = {file: len(history) for _, file, history in self._histories()}
        judged = [
            (judge, label)
            for judge, label in product(self._judges, self._site.labels)
            if judge.store.versions(label) or judge.store.versions(SHARED)
        ]
        if judged:
            versions = label_versions(self._datastore, self._site.labels)
            # A PACS that lists nothing may be in repair. In a folder, a label is gone if its image is there without it;
            # others may not have been read yet.
            complete = isinstance(self._datastore, PacsDatastore) and any(versions.values())
            is_folder = isinstance(self._datastore, StudiesDatastore)
            unlabelled = dict.fromkeys(self._datastore.get_unlabeled_images() if is_folder else [], "")
            for judge, label in judged:
                if time.monotonic() < self._away.get(judge, 0):
                    continue
                try:
                    self._judge(judge, label, {**unlabelled, **versions[label]}, complete)
                except ModelAwayError as error:
                    if judge not in self._away:  # It is said once, until the model answers again.
                        logger.warning("%s: adapters wait to be judged. %s", label, error)
                    self._away[judge] = time.monotonic() + _AWAY_SECONDS
                except Exception as error:  # The other labels and the next pass go on.
                    logger.warning("%s: adapters could not be judged (%s).", label, type(error).__name__)
        self._audit_changes()

    def _judge(self, judge: Judge, label: str, versions: Mapping[str, str], complete: bool) -> None:
        """Judge the adapters that serve a label.

        Args:
            judge: Judge of a model.
            label: The label.
            versions: Version of the label on each image, or "" for an image without a label.
            complete: Whether other images have no label.
        """
        model = judge.identity()
        # A label without adapters is served by the shared one. If the site has one label, both have the same adapters.
        if not judge.store.versions(label):
            names: tuple[str, ...] = (SHARED,)
        elif len(self._site.labels) == 1 and judge.store.versions(SHARED):
            names = (label, SHARED)
        else:
            names = (label,)
        prefix = "" if label in names else f"{label} "  # The shared adapter is judged on several labels of an image.
        volumes = {image: patient_hash(f"{prefix}{image}") for image in versions}
        labels = {volume: versions[image] for image, volume in volumes.items()}
        with self._active_streams(judge, names, model) as streams:
            counts = [stream.drop_changed(labels, complete and not prefix) for stream in streams.values()]
        if any(counts):
            logger.info("%s: labels of %d patients have changed; their evidence is dropped.", label, max(counts))
        for image, version in sorted(versions.items()):
            if self._closed.is_set():
                return
            volume = volumes[image]
            known = not version or all(stream.knows(volume, version) for stream in streams.values())
            job = (str(judge.store.root), label, volume, version, *sorted(stream.key for stream in streams.values()))
            if known or job in self._unusable:
                continue
            try:
                self._judge_image(judge, label, names, image, volume, version)
            except InputError:
                logger.warning("%s: a confirmed label cannot judge adapters; a training says why.", label)
                self._unusable.add(job)

    def _judge_image(
        self, judge: Judge, label: str, names: tuple[str, ...], image: str, volume: str, version: str
    ) -> None:
        """Judge the active adapters on one image.

        Raises:
            InputError: If the image, its label or an adapter cannot be used.
        """
        model, patients = judge.identity(), read_patient_table(self._site.patients)
        cases, _ = labelled_cases(self._datastore, {label: self._site.labels[label]}, patients, image)
        if not cases[label]:
            raise InputError("The label does not show the organ.")
        case = cases[label][0]
        patient = patient_hash(case.patient)
        with self._active_streams(judge, names, model) as streams:
            for key, stream in streams.items():
                record = judge.store.record(*key)
                if patient not in {*record.get("seen_patients", ()), *record.get("training_patients", ())}:
                    continue
                if patient in stream and not record.get("label_versions"):
                    stream.remember_label(patient, volume, version)
                else:  # It would be judged on what it has learned.
                    stream.ignore(volume, version)
            keys = [key for key, stream in streams.items() if not stream.knows(volume, version)]
        if not keys:
            return
        # One version is often stored for the label and for clicks without a label.
        same: dict[str, list[tuple[str, str]]] = {}
        for key in keys:
            same.setdefault(judge.store.record(*key).get("fingerprint", "/".join(key)), []).append(key)
        files = {fingerprint: judge.store.file(*group[0]) for fingerprint, group in same.items()}
        with low_priority():
            scores = judge.score(label, files, case, patient_hash(image))
        self._away.pop(judge, None)
        differences = {key: score for fingerprint, score in scores.items() for key in same[fingerprint]}
        if not differences:
            raise InputError("There are too few images to judge adapters.")
        with self._active_streams(judge, names, model) as streams:
            for key, stream in streams.items():
                if key in differences:
                    stream.add_volume(patient, volume, version, differences[key])

    @contextmanager
    def _active_streams(
        self, judge: Judge, names: tuple[str, ...], model: tuple[str, ...]
    ) -> Iterator[dict[tuple[str, str], EvidenceStream]]:
        """Change the evidence of the adapters that the next patients should judge, by name and version."""
        with ExitStack() as stack:
            streams = {}
            for name in names:
                evidence = stack.enter_context(change_evidence(judge.store, name, model, self._site.serve_trials))
                streams.update({(name, stream.candidate): stream for stream in evidence.active_streams()})
            yield streams

    def _histories(self) -> Iterator[tuple[str, Path, list[dict[str, Any]]]]:
        """Yield the name, the file and the history of the evidence of every adapter."""
        for judge in self._judges:
            for name in (SHARED, *self._site.labels):
                yield name, judge.store.evidence_file(name), read_evidence(judge.store, name).history

    def _audit_changes(self) -> None:
        """Add a line to the audit file for each change of a state since the last time, also by trainings."""
        for name, file, history in self._histories():
            for change in history[self._audited[file] :]:
                self._audit.add(
                    {
                        "user": None,
                        "role": None,
                        "by": "server",
                        "what": "change the state of an adapter",
                        "adapter": f"{name or 'shared'}/{change.get('version')}",
                        "state": change.get("state"),
                        "serves": change.get("serves"),
                    }
                )
            self._audited[file] = len(history)
