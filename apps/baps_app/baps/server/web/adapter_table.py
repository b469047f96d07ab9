"""Read the adapters of a site for the pages: versions, states, evidence, and what serves each organ."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baps.errors import BapsError, NotFoundError
from baps.evaluation.claims import confidence_sequence
from baps.evaluation.evidence import EvidenceStream
from baps.evaluation.gate import CandidateStatus, State
from baps.registry.evidence import LabelEvidence, evidence_key, read_evidence, read_statuses
from baps.registry.store import SHARED, AdapterStore

if TYPE_CHECKING:
    from baps.server.app import BapsApp

CLICKS, ORGANS, VOLUMES = "baps", "organs", "volume"
"""Names of the trainers, by which pages name the kinds of adapters."""

_MODEL_NAMES = {ORGANS: "organ model", VOLUMES: "3D model"}
"""What the models beside that of clicks are called."""

DAMAGED, UNJUDGED = "damaged", "candidate"

_VERDICTS = {
    State.PUBLISHED.value: "It is proven to be better than the unadapted model.",
    State.WITHDRAWN.value: "It has served, and patients are expected to lose with it now.",
    State.REJECTED.value: "It has not helped its patients, or a newer version took its place.",
    UNJUDGED: "No patient has judged it yet.",
}
"""Sentences about the states, for everybody."""

_TRAINED_PARTS = {"Tone curve": "tone", "Head": "head"}
"""Parts of an adapter of the 3D model that are trained, and their keys in its record."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "verdict": (dict,),
    "training_patients": (list,),
    "notes": (list,),
    "parts": (list,),
    "curve": (list,),
    "adapter": (dict,),
}
"""Types of the entries of a record that pages look into."""


@dataclass(frozen=True)
class PatientEvidence:
    """What a patient contributed to the evidence of a version.

    Attributes:
        patient: Hash of the patient.
        images: Hashes of the patient's labelled images.
        before: Dice of the unadapted model, or None if the patient came after the training.
        after: Dice of a model of the same training that had not seen the patient, or None.
        served: Dice of the version that served then, or None.
        difference: Gain, Dice.
        measured: ``cross-fitted`` or ``after training``.
        interval: Confidence sequence of the mean gain with this patient, low and high.
        mean: Mean gain up to this patient.
    """

    patient: str
    images: tuple[str, ...]
    before: float | None
    after: float | None
    served: float | None
    difference: float
    measured: str
    interval: tuple[float, float]
    mean: float


@dataclass(frozen=True)
class AdapterVersion:
    """A version of an adapter.

    Attributes:
        model: ``baps`` for clicks, ``organs`` for the organ model, ``volume`` for the 3D model.
        organ: The organ, or "" for the adapter of clicks without an organ.
        version: Name of the version.
        created: When it was trained, or None if that is unknown.
        serves: Whether it serves.
        state: ``candidate``, ``on trial``, ``published``, ``withdrawn``, ``rejected`` or ``damaged``.
        sentence: What is known, or what is wrong with it.
        status: What the gate knows of it, or None.
        record: Its record, see ``usable_record``; empty if it is damaged.
        patients: What every patient contributed, in order of arrival.
    """

    model: str
    organ: str
    version: str
    created: datetime | None
    serves: bool
    state: str
    sentence: str
    status: CandidateStatus | None
    record: Mapping[str, Any]
    patients: tuple[PatientEvidence, ...]

    @property
    def before(self) -> float | None:
        """Mean Dice of the unadapted model on the patients of the training, or None if nothing was measured."""
        return self._verdict("before")

    @property
    def after(self) -> float | None:
        """Mean Dice after the adaptation, on patients that the measured model had not seen, or None."""
        return self._verdict("after")

    @property
    def black_box(self) -> str:
        """Name of the model that it was trained for, or ""."""
        trained_for = self.record.get("black_box")
        return str(trained_for.get("name", "")) if isinstance(trained_for, Mapping) else ""

    @property
    def volume_parts(self) -> dict[str, str]:
        """What is around the 3D model, by the name of the part; empty for other models."""
        about = self.record.get("adapter", {})
        if self.model != VOLUMES or "width" not in about:
            return {}
        width = _number(about["width"])
        trained = {name: "trained" if about.get(key) else "none" for name, key in _TRAINED_PARTS.items()}
        shown = "none, the model sees the whole volume" if width is None else f"{width:.0f} mm wide"
        return {"Cube around the prompts": shown, **trained}

    @property
    def verdict(self) -> str:
        """What is known of it in a sentence for everybody, without numbers."""
        if self.state == State.ON_TRIAL.value:
            needed = self.status.patients_needed if self.status else None
            more = f"; about {needed} more patient{'s' * (needed != 1)} would tell" if needed else ""
            return f"It is probably better than the unadapted model, which is not proven yet{more}."
        return _VERDICTS.get(self.state, "")

    @property
    def is_proven(self) -> bool:
        """Whether it is claimed to be better than the unadapted model."""
        return self.state == State.PUBLISHED.value

    def _verdict(self, key: str) -> float | None:
        verdict = self.record.get("verdict")
        value = verdict.get(key) if isinstance(verdict, Mapping) else None
        return _number(value)


@dataclass(frozen=True)
class OrganAdapters:
    """The adapters of an organ for one model.

    Attributes:
        model: ``baps``, ``organs`` or ``volume``.
        organ: The organ, or "" for clicks without an organ.
        serves: Version that serves, or None for the unadapted model.
        published: Version that a training or a person last chose; it does not serve if it is damaged, or is for another
            model than the one that answers now.
        previous: Version that a rollback would serve, "" for the unadapted model, or None if there is nothing to roll
            back.
        since: When it began to serve, or None if nothing has been trained or published yet.
        versions: All versions, newest first.
        history: Changes of states as in ``LabelEvidence``, newest first.
        notes: Sentences about evidence that was lost.
    """

    model: str
    organ: str
    serves: str | None
    published: str | None
    previous: str | None
    since: datetime | None
    versions: tuple[AdapterVersion, ...]
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def served(self) -> AdapterVersion | None:
        """The version that serves, or None."""
        return next((version for version in self.versions if version.serves), None)

    def find(self, version: str) -> AdapterVersion | None:
        """Return a version, or None if there is none of this name.

        Args:
            version: Name of the version.
        """
        return next((one for one in self.versions if one.version == version), None)


class AdapterTable:
    """Reads adapters, and keeps them until their files change. Thread-safe.

    Args:
        app: The app.
    """

    def __init__(self, app: BapsApp) -> None:
        self._app, self._lock = app, threading.Lock()
        self._kept: dict[tuple[str, str], tuple[object, OrganAdapters]] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """The kinds of adapters of the site: ``baps``, ``organs`` and, where it has a 3D model, ``volume``."""
        return (CLICKS, ORGANS, VOLUMES) if self._app.site.volume_black_box else (CLICKS, ORGANS)

    def store(self, model: str) -> AdapterStore:
        """Return the store of a model's adapters.

        Args:
            model: ``baps``, ``organs`` or ``volume``.
        """
        app = self._app
        return {CLICKS: app.store, ORGANS: app.organ_store, VOLUMES: app.volume_store}[model]

    def read(self, model: str, organ: str) -> OrganAdapters:
        """Read the adapters of an organ.

        Args:
            model: ``baps``, ``organs`` or ``volume``.
            organ: The organ, or "".

        Returns:
            The adapters.

        Raises:
            BapsError: If the disk does not respond, or the organ has no valid name.
        """
        store, identity = self.store(model), self._app.identity(model)
        stamp = (identity, _stamp(store, organ))
        with self._lock:
            kept = self._kept.get((model, organ))
            if kept is None or kept[0] != stamp:
                kept = stamp, read_organ(store, model, organ, identity)
                self._kept[model, organ] = kept
            return kept[1]

    def organs(self, model: str) -> list[str]:
        """List the organs of a model that have adapters, or are labels of the site.

        Args:
            model: ``baps``, ``organs`` or ``volume``.

        Returns:
            The organs; "" is last.
        """
        trained, site = self.store(model).labels(), self._app.site.labels
        others = [organ for organ in trained if organ and organ not in site]
        return [*site, *others, *([SHARED] if SHARED in trained else [])]


def read_organ(store: AdapterStore, model: str, organ: str, identity: tuple[str, ...] | None) -> OrganAdapters:
    """Read the adapters of an organ from the disk.

    Args:
        store: The store.
        model: ``baps``, ``organs`` or ``volume``.
        organ: The organ, or "".
        identity: SHA-256 of the model's weights and, for a black box, its preprocessing; None if the model is not
            loaded yet.

    Returns:
        The adapters.

    Raises:
        BapsError: If the disk does not respond.
    """
    evidence, statuses = read_evidence(store, organ), read_statuses(store, organ)
    served = store.served(organ, *identity) if identity else (organ, store.published(organ) or "")
    serves = served[1] or None if served and served[0] == organ else None
    versions = tuple(
        _read_version(store, model, organ, version, version == serves, evidence, statuses.get(version), identity)
        for version in reversed(store.versions(organ))
    )
    history = tuple(reversed(evidence.history))
    previous = None
    with suppress(NotFoundError):
        previous = store.previous(organ) or ""
    since = _served_since(history, serves) or _modified(store.evidence_file(organ).with_name("published"))
    published, notes = store.published(organ), tuple(evidence.notes)
    return OrganAdapters(model, organ, serves, published, previous, since, versions, history, notes)


def _read_version(
    store: AdapterStore,
    model: str,
    organ: str,
    version: str,
    serves: bool,
    evidence: LabelEvidence,
    status: CandidateStatus | None,
    identity: tuple[str, ...] | None,
) -> AdapterVersion:
    try:
        record = usable_record(store.record(organ, version))
        if not store.is_intact(organ, version):
            raise BapsError(
                f"The file of version {version} is damaged, so it cannot serve. Restore it from your backup, or train "
                "again."
            )
    except BapsError as error:
        return AdapterVersion(model, organ, version, None, serves, DAMAGED, str(error), None, {}, ())
    stream = evidence.gate.open(version, status.black_box) if status else None
    state, sentence = (
        (status.state.value, status.sentence()) if status else (UNJUDGED, f"{UNJUDGED}: no patient has judged it yet")
    )
    sentence = sentence.partition(": ")[2]
    key = status.black_box if status else ""
    if identity and key and key != evidence_key(*identity):
        sentence += "; trained for another model, which does not answer now"
    patients = read_patients(stream, record) if stream else ()
    return AdapterVersion(
        model, organ, version, _parse_time(record.get("created")), serves, state, sentence, status, record, patients
    )


def describe_adapter(model: str, organ: str) -> str:
    """Say what an adapter is for, as in ``spleen``, ``spleen (3D model)`` or ``clicks without an organ``.

    Args:
        model: ``baps``, ``organs`` or ``volume``.
        organ: The organ, or "".

    Returns:
        The words.
    """
    name = organ or "clicks without an organ"
    return f"{name} ({_MODEL_NAMES[model]})" if model in _MODEL_NAMES else name


def usable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what pages can show of a record. Earlier releases left entries out, and a person may have edited it.

    Args:
        record: Record of a version.

    Returns:
        The record without entries of another type than a training writes.
    """
    usable = {name: value for name, value in record.items() if name not in _TYPES or isinstance(value, _TYPES[name])}
    for name in ("seconds", "black_box_images"):
        if name in usable and _number(usable[name]) is None:
            del usable[name]
    curve = [point for point in usable.get("curve", ()) if isinstance(point, list) and len(point) == 2]
    usable["curve"] = [point for point in curve if None not in map(_number, point) and point[0] >= 0]
    return {"verdict": None, **usable}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_patients(stream: EvidenceStream, record: Mapping[str, Any]) -> tuple[PatientEvidence, ...]:
    """List what every patient contributed to the evidence of a version.

    Args:
        stream: The evidence.
        record: Record of the version, which has the scores of its training.

    Returns:
        The patients, in order of arrival.
    """
    scores = record.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    differences = stream.differences()
    intervals, means = confidence_sequence(differences), differences.cumsum()
    entries = zip(stream.patients, stream.measured(), differences.tolist(), intervals, strict=True)
    return tuple(
        PatientEvidence(
            patient,
            stream.volumes(patient),
            _score(scores, "unadapted", patient) if measured == "cross-fitted" else None,
            _score(scores, "candidate", patient) if measured == "cross-fitted" else None,
            _score(scores, "served", patient) if measured == "cross-fitted" else None,
            difference,
            measured,
            interval,
            float(means[number]) / (number + 1),
        )
        for number, (patient, measured, difference, interval) in enumerate(entries)
    )


def _score(scores: Mapping[str, Any], name: str, patient: str) -> float | None:
    of_patients = scores.get(name)
    value = of_patients.get(patient) if isinstance(of_patients, Mapping) else None
    return _number(value)


def _served_since(history: tuple[Mapping[str, Any], ...], serves: str | None) -> datetime | None:
    """Return the time of the last change after which a version serves."""
    if serves is None:
        return None
    changes = (entry for entry in history if entry.get("version") == serves)
    since = None
    for entry in changes:  # Newest first: its states may change while it serves.
        if not entry.get("serves"):
            break
        since = _parse_time(entry.get("time"))
    return since


def _parse_time(text: object) -> datetime | None:
    with suppress(TypeError, ValueError):
        time = datetime.fromisoformat(text)  # type: ignore[arg-type]
        return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
    return None


def _modified(file: Path) -> datetime | None:
    with suppress(OSError):
        return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
    return None


def _stamp(store: AdapterStore, organ: str) -> tuple[object, ...]:
    """Return what changes when the files of an organ's adapters change."""
    folder = store.evidence_file(organ).parent
    versions = [store.file(organ, version) for version in store.versions(organ)]
    files = [folder / "published", folder / "evidence.json", *versions]
    files += [file.with_name("record.json") for file in versions]
    stamps: list[object] = []
    for file in files:
        try:
            status = file.stat()
            stamps.append((file.parent.name, status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            stamps.append((file.parent.name, None))
    return tuple(stamps)
