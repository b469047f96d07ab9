"""Keep the evidence of a label's adapters on disk, and publish or withdraw versions by it.

``<root>/<label>/evidence.json`` has the gate of a label, see ``baps.evaluation.gate``, and the history of its states.
It is written before a version is published and again afterwards, so that a process that dies in between is finished by
the next one. Where a person has published, rolled back or withdrawn a version, that choice serves until the next
candidate.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from baps.errors import BapsError, NotFoundError
from baps.evaluation.evidence import EvidenceStream
from baps.evaluation.gate import CandidateStatus, Gate
from baps.registry.store import AdapterStore
from baps.utils.atomic_write import atomic_write

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateChange:
    """A change of what is known of a version.

    Attributes:
        time: when, in UTC, ISO 8601.
        version: the version.
        state: its new state.
        serves: whether it serves now.
        sentence: the state for people.
    """

    time: str
    version: str
    state: str
    serves: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON.

        Returns:
            The fields by name.
        """
        return dict(vars(self))


@dataclass
class LabelEvidence:
    """The evidence of a label.

    Attributes:
        gate: the gate.
        history: all changes, oldest first, as JSON.
        notes: sentences about evidence that was dropped.
        unfinished: whether a process died before it published what the gate says.
    """

    gate: Gate = field(default_factory=Gate)
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: bool = False

    def open(self, store: AdapterStore, label: str, version: str, black_box: str) -> EvidenceStream:
        """Return the evidence of a version; a version that is new here begins with what its training measured.

        Args:
            store: the adapters of the site.
            label: the label.
            version: the version.
            black_box: the model, see ``evidence_key``.

        Returns:
            The stream.
        """
        stream = self.gate.open(version, black_box)
        if not len(stream):
            try:
                differences = dict(store.record(label, version)["scores"]["differences"])
            except (BapsError, KeyError, TypeError, ValueError):  # Trained by an earlier release, or damaged.
                differences = {}
            for patient, difference in differences.items():
                stream.add(str(patient), float(difference))
        return stream


def evidence_key(weights_sha256: str, preprocessing: str = "canvas") -> str:
    """Name a model in the evidence of its adapters.

    Args:
        weights_sha256: SHA-256 of the model's weights.
        preprocessing: how the model prepares images, see ``Capabilities``.

    Returns:
        The name; it differs if an adapter of one model does not fit the other.
    """
    return weights_sha256 if preprocessing == "canvas" else f"{weights_sha256} {preprocessing}"


def read_evidence(store: AdapterStore, label: str) -> LabelEvidence:
    """Read the evidence of a label. What is damaged is dropped, and its claims with it.

    Args:
        store: the adapters of the site.
        label: the label.

    Returns:
        The evidence; it is empty if there is none.
    """
    file = store.evidence_file(label)
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        return LabelEvidence()
    except (OSError, ValueError):
        record = {}
    if not isinstance(record, Mapping):
        record = {}
    gate, notes = Gate.from_dict(record.get("gate") if isinstance(record.get("gate"), Mapping) else {})
    history = record.get("history")
    return LabelEvidence(
        gate,
        [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else [],
        notes,
        record.get("unfinished") is True,
    )


@contextmanager
def change_evidence(
    store: AdapterStore, label: str, black_box: str, serve_trials: bool = True
) -> Iterator[LabelEvidence]:
    """Change the evidence of a label, and then publish or withdraw what the gate says.

    Args:
        store: the adapters of the site.
        label: the label.
        black_box: the model that answers now, see ``evidence_key``.
        serve_trials: whether candidates on trial may serve; otherwise only published ones do.

    Yields:
        The evidence, to which patients are added. Afterwards its history has the changes.

    Raises:
        BapsError: if the disk is full; nothing has changed then.
    """
    file = store.evidence_file(label)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(".evidence.lock"), mode=0o600):
        evidence = read_evidence(store, label)
        before = _to_json(evidence)
        _restore(evidence, store, label, black_box)
        yield evidence
        served = evidence.gate.update(black_box, serve_trials)
        _add_changes(evidence, black_box)
        if evidence.unfinished or evidence.notes or _to_json(evidence) != before:
            _write(file, evidence, unfinished=True)
            _apply(store, label, black_box, served)
            _write(file, evidence, unfinished=False)


def read_statuses(store: AdapterStore, label: str) -> dict[str, CandidateStatus]:
    """Return what is known of the versions of a label.

    Args:
        store: the adapters of the site.
        label: the label.

    Returns:
        The statuses by version, each with the model that the version was trained for; versions without evidence are
            left out.
    """
    gate, statuses = read_evidence(store, label).gate, {}
    for version in store.versions(label):
        try:
            black_box = _model(store, label, version)
        except (BapsError, KeyError, TypeError):
            continue
        statuses.update({s.candidate: s for s in gate.statuses(black_box) if s.candidate == version})
    return statuses


def _restore(evidence: LabelEvidence, store: AdapterStore, label: str, black_box: str) -> None:
    """Begin again with what the trainings measured if evidence was damaged, and respect what a person has chosen."""
    gate, published = evidence.gate, _published(store, label, black_box)
    for note in evidence.notes:
        logger.warning("%s %s", label or "shared", note)
    if evidence.notes:
        for version in store.versions(label):
            if _fits(store, label, version, black_box):
                evidence.open(store, label, version, black_box)
        gate.serve(published, black_box)
        return
    if evidence.unfinished:
        return
    if published != gate.serves(black_box):
        if published:
            evidence.open(store, label, published, black_box)
        gate.serve_choice(published, black_box)


def _published(store: AdapterStore, label: str, black_box: str) -> str | None:
    """Return the published version if it was trained for a model."""
    version = store.published(label)
    return version if version and _fits(store, label, version, black_box) else None


def _model(store: AdapterStore, label: str, version: str) -> str:
    trained_for = store.record(label, version)["black_box"]
    return evidence_key(trained_for["weights_sha256"], trained_for.get("preprocessing", "canvas"))


def _fits(store: AdapterStore, label: str, version: str, black_box: str) -> bool:
    try:
        return _model(store, label, version) == black_box
    except (BapsError, KeyError, TypeError):
        return False


def _apply(store: AdapterStore, label: str, black_box: str, served: str | None) -> None:
    if served is not None:
        try:
            store.publish(label, served)
        except NotFoundError:  # Somebody has removed the version.
            logger.warning("Version %s of the adapter %s is not there any more.", served, label or "shared")
    elif _published(store, label, black_box):
        store.withdraw(label)


def _add_changes(evidence: LabelEvidence, black_box: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    last = {entry.get("version"): (entry.get("state"), entry.get("serves")) for entry in evidence.history}
    for status in evidence.gate.statuses(black_box):
        if last.get(status.candidate) != (status.state.value, status.serves):
            change = StateChange(now, status.candidate, status.state.value, status.serves, status.sentence())
            evidence.history.append(change.to_dict())


def _to_json(evidence: LabelEvidence, unfinished: bool = False) -> str:
    record = {"gate": evidence.gate.to_dict(), "history": evidence.history, "unfinished": unfinished}
    return json.dumps(record, indent=1, allow_nan=False)


def _write(file: Path, evidence: LabelEvidence, unfinished: bool) -> None:
    try:
        with atomic_write(file) as partial:
            partial.write_text(_to_json(evidence, unfinished))
    except OSError as error:
        raise BapsError(
            f"The evidence of an adapter could not be kept ({error.strerror}); the version that served before is still "
            "served. Free some space."
        ) from error
