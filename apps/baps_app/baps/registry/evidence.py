"""Keep the evidence of a label's adapters on disk, and publish or withdraw versions by it.

``<root>/<label>/evidence.json`` has the gate of a label, see ``baps.evaluation.gate``, and the history of its states.
It is written before a version is published and again afterwards, so that a process that dies in between is finished by
the next one. What a person has published, rolled back or withdrawn, see ``record_choice``, serves until the next
candidate. Its lock file shows that there was evidence: if evidence is lost, its error budget counts as
spent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from baps.errors import BapsError
from baps.evaluation.evidence import EvidenceStream
from baps.evaluation.gate import CandidateStatus, Gate, any_version
from baps.registry.store import AdapterStore
from baps.utils.atomic_write import atomic_write

logger = logging.getLogger(__name__)


@dataclass
class LabelEvidence:
    """The evidence of a label.

    Attributes:
        gate: the gate.
        history: all changes of states as JSON, oldest first: ``time`` (UTC, ISO 8601), ``version``, ``state``,
            ``serves`` and the ``sentence`` for people.
        notes: sentences about evidence that was dropped.
        unfinished: whether a process died before it published what the gate says.
        black_box: the model that answers now.
        is_available: whether a version is for this model, exists and can be read.
    """

    gate: Gate = field(default_factory=Gate)
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: bool = False
    black_box: str = ""
    is_available: Callable[[str], bool] = any_version

    def active_streams(self) -> list[EvidenceStream]:
        """Return the evidence of the candidates that the next patients should judge.

        Returns:
            The streams, see ``Gate.active_streams``.
        """
        return self.gate.active_streams(self.black_box, self.is_available)

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
                record = store.record(label, version)
                differences, labels = dict(record["scores"]["differences"]), dict(record.get("label_versions", {}))
                measured = {str(patient): float(difference) for patient, difference in differences.items()}
                for patient, difference in measured.items():
                    stream.add(patient, difference)
                    for volume, version_of_label in labels.get(patient, {}).items():
                        stream.remember_label(patient, str(volume), str(version_of_label))
            except (BapsError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                # Trained by an earlier release, or damaged.
                logger.info("Version %s has no evidence of its training (%s).", version, type(error).__name__)
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
        The evidence; it is empty if there never was any.

    Raises:
        BapsError: if the disk does not answer.
    """
    file = store.evidence_file(label)
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        if not _lock_file(file).exists():
            return LabelEvidence()
        record = {}
    except (ValueError, RecursionError):
        record = {}
    except OSError as error:
        raise BapsError(f"The evidence of an adapter cannot be read ({error.strerror}). Try again.") from error
    if not isinstance(record, Mapping):
        record = {}
    gate, notes = Gate.from_dict(record.get("gate") if isinstance(record.get("gate"), Mapping) else {})
    history = record.get("history")
    return LabelEvidence(
        gate,
        [entry for entry in history if isinstance(entry, dict) and isinstance(entry.get("version"), str)]
        if isinstance(history, list)
        else [],
        notes,
        record.get("unfinished") is True,
    )


@contextmanager
def change_evidence(
    store: AdapterStore, label: str, identity: tuple[str, ...], serve_trials: bool = True
) -> Iterator[LabelEvidence]:
    """Change the evidence of a label, and then publish or withdraw what the gate says.

    Args:
        store: the adapters of the site.
        label: the label.
        identity: SHA-256 of the weights of the model that answers now and, for a black box, its preprocessing.
        serve_trials: whether candidates on trial may serve; otherwise only published ones do.

    Yields:
        The evidence, to which patients are added. Afterwards its history has the changes.

    Raises:
        BapsError: if the disk is full; nothing has changed then.
    """
    black_box = evidence_key(*identity)
    with _locked(store, label) as (file, evidence, before):
        _restore(evidence, store, label, black_box)
        evidence.black_box = black_box

        @cache  # It reads the version's whole file.
        def is_available(version: str) -> bool:
            return _model(store, label, version) == black_box and store.is_intact(label, version)

        evidence.is_available = is_available
        yield evidence
        served = evidence.gate.update(black_box, serve_trials, is_available)
        _add_changes(evidence, black_box)
        current = store.served(label, *identity)
        now_served = current[1] if current and current[0] == label else None
        if evidence.unfinished or evidence.notes or served != now_served or _to_json(evidence) != before:
            _write(file, evidence, unfinished=True)
            if served is not None:
                store.publish(label, served)
            elif now_served:
                store.withdraw(label)
            _write(file, evidence, unfinished=False)
        elif not file.exists():
            _write(file, evidence, unfinished=False)


@contextmanager
def record_choice(store: AdapterStore, label: str) -> Iterator[None]:
    """Remember that a person publishes, rolls back or withdraws a version: it serves until the next candidate.

    Args:
        store: the adapters of the site.
        label: the label.

    Yields:
        Nothing; the block changes the store.

    Raises:
        BapsError: if the disk is full.
    """
    if not store.versions(label):
        yield
        return
    with _locked(store, label) as (file, evidence, _):
        before = store.published(label)
        yield
        now = store.published(label)
        for version in (before, now):
            if version and (black_box := _model(store, label, version)):
                if now == version:
                    evidence.open(store, label, now, black_box)
                evidence.gate.serve_choice(now if now == version else None, black_box)
                _add_changes(evidence, black_box)
        _write(file, evidence, unfinished=False)


@contextmanager
def _locked(store: AdapterStore, label: str) -> Iterator[tuple[Path, LabelEvidence, str]]:
    """Hold the lock of a label's evidence; yield its file, what is in it, and the same as JSON."""
    file = store.evidence_file(label)
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not _lock_file(file).exists() and not file.exists()
    with FileLock(_lock_file(file), mode=0o600):
        evidence = LabelEvidence() if is_new else read_evidence(store, label)
        published = store.published(label) if is_new else None  # Of an earlier release.
        if published and (black_box := _model(store, label, published)):
            evidence.open(store, label, published, black_box)
            evidence.gate.serve_choice(published, black_box)
        yield file, evidence, _to_json(evidence)


def _lock_file(file: Path) -> Path:
    return file.with_name(".evidence.lock")


def read_statuses(store: AdapterStore, label: str) -> dict[str, CandidateStatus]:
    """Return what is known of the versions of a label.

    Args:
        store: the adapters of the site.
        label: the label.

    Returns:
        The statuses by version, each with the model that the version was trained for; versions without evidence are
            left out.
    """
    gate = read_evidence(store, label).gate
    models = {version: _model(store, label, version) for version in store.versions(label)}
    statuses = {
        (black_box, status.candidate): status
        for black_box in set(models.values())
        if black_box
        for status in gate.statuses(black_box)
    }
    return {
        version: statuses[black_box, version]
        for version, black_box in models.items()
        if black_box and (black_box, version) in statuses
    }


def _restore(evidence: LabelEvidence, store: AdapterStore, label: str, black_box: str) -> None:
    """Begin again with what the trainings measured if evidence was damaged; what serves stays until then."""
    for note in evidence.notes:
        logger.warning("%s: %s", label or "shared", note)
    if evidence.notes:
        for version in store.versions(label):
            if _model(store, label, version) == black_box:
                evidence.open(store, label, version, black_box)
        published = store.published(label)
        evidence.gate.serve_choice(
            published if published and _model(store, label, published) == black_box else None, black_box
        )


def _model(store: AdapterStore, label: str, version: str) -> str | None:
    """Return the model of a version, or None if its record cannot be read."""
    try:
        trained_for = store.record(label, version)["black_box"]
        return evidence_key(trained_for["weights_sha256"], trained_for.get("preprocessing", "canvas"))
    except (BapsError, KeyError, TypeError):
        return None


def _add_changes(evidence: LabelEvidence, black_box: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    last = {entry.get("version"): (entry.get("state"), entry.get("serves")) for entry in evidence.history}
    for status in evidence.gate.statuses(black_box):
        if last.get(status.candidate) != (status.state.value, status.serves):
            evidence.history.append(
                {
                    "time": now,
                    "version": status.candidate,
                    "state": status.state.value,
                    "serves": status.serves,
                    "sentence": status.sentence(),
                }
            )


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
