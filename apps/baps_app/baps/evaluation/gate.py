"""Say what is known of the candidates of a label: on trial, published, withdrawn or rejected; and which one serves.

Two questions are kept apart. What to serve is a decision by expected Dice, see ``serving``. What to claim is a test
with an error budget, see ``claims``. Two candidates are active at a time: the newest one, and the one that serves.
Let the patients who come judge both, see ``Gate.active_streams``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from baps.errors import BapsError
from baps.evaluation.claims import ClaimLedger, spent_ledger
from baps.evaluation.evidence import HARMFUL_LOSS, EvidenceStream
from baps.evaluation.serving import GainEstimate, choose_served, estimate_gain, format_gain

_WEAK_EVIDENCE = 2
"""Up to this many patients prove nothing."""

_REJECTION_PROBABILITY = 0.1
"""A candidate is rejected if it is better with less probability, or its patients did not gain on average."""

_RETRACTION_PROBABILITY = 0.05
"""A claim is retracted for good if the candidate is better with less probability: one patient does not do that."""


class State(str, Enum):
    """What is known of a candidate.

    Attributes:
        CANDIDATE: no patient has judged it.
        ON_TRIAL: patients are judging it, and nothing is claimed.
        PUBLISHED: it is claimed to be better than the unadapted model.
        WITHDRAWN: it has served, and is expected to lose Dice now.
        REJECTED: it has not helped so far, or is probably no better, or a newer candidate took its place.
    """

    CANDIDATE = "candidate"
    ON_TRIAL = "on trial"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"
    REJECTED = "rejected"


@dataclass(frozen=True)
class CandidateStatus:
    """The state of a candidate with its reasons.

    Attributes:
        candidate: version of the adapter.
        black_box: the model that it was judged with.
        state: its state.
        serves: whether it is the one to serve.
        is_active: whether the next patients judge it; otherwise a newer candidate took its place.
        patients: number of patients that judged it.
        gain: the estimate of its present gain, or None without a patient.
        worse_count: number of patients who lose more than 0.05.
        worst: the smallest difference of a patient, Dice, or None without a patient.
        patients_needed: how many more patients would probably decide whether it is claimed, or None if unknown.
    """

    candidate: str
    black_box: str
    state: State
    serves: bool
    is_active: bool
    patients: int
    gain: GainEstimate | None
    worse_count: int
    worst: float | None
    patients_needed: int | None

    def sentence(self) -> str:
        """Describe the state for people.

        Returns:
            State, number of patients, likely gain with its 90 % interval, what is missing, and who loses.
        """
        if self.gain is None:
            return f"{self.state.value}: no patient has judged it yet"
        parts = [f"{self.state.value}: {self.patients} patient{'s' * (self.patients != 1)}, likely {self.gain.text()}"]
        if self.patients <= _WEAK_EVIDENCE:
            parts[0] += ", weak evidence"
        if self.patients_needed is not None:
            parts.append(f"{self.patients_needed} more would tell")
        if self.worse_count and self.worst is not None:
            loss = f"{HARMFUL_LOSS:.2f}".lstrip("0")
            parts.append(
                f"{self.worse_count} of {self.patients} lost more than {loss} (worst {format_gain(self.worst)})"
            )
        if not self.is_active:
            parts.append("a newer candidate took its place")
        return "; ".join(parts)


def any_version(_: str) -> bool:
    """Allow every version.

    Returns:
        True.
    """
    return True


class Gate:
    """The evidence, the claims and the served candidate of one label.

    Call ``open`` after every training, add the patients who judge the candidate to its stream, and then call
    ``update``. Keep ``to_dict`` as long as the label exists.
    """

    def __init__(self) -> None:
        self.ledger = ClaimLedger()
        self._streams: dict[str, EvidenceStream] = {}
        self._serves: dict[str, str] = {}  # Candidates by model.
        self._served: set[str] = set()  # Keys of streams, as in _streams.
        self._chosen_by_person: set[str] = set()  # Models.

    def open(self, candidate: str, black_box: str) -> EvidenceStream:
        """Return the evidence of a candidate with a model; it is empty if the candidate or the model is new.

        Args:
            candidate: version of the adapter.
            black_box: SHA-256 of the model's weights.

        Returns:
            The stream, to which patients are added.
        """
        stream = EvidenceStream(candidate, black_box)
        if stream.key not in self._streams:
            self._chosen_by_person.discard(black_box)
        return self._streams.setdefault(stream.key, stream)

    def serves(self, black_box: str) -> str | None:
        """Return the version that serves.

        Args:
            black_box: SHA-256 of the model's weights.

        Returns:
            Version of the adapter, or None for the unadapted model.
        """
        return self._serves.get(black_box)

    def serve_choice(self, candidate: str | None, black_box: str) -> None:
        """Serve what a person has chosen until the next candidate is opened, whatever the evidence is.

        Args:
            candidate: version of the adapter, or None for the unadapted model.
            black_box: SHA-256 of the model's weights.
        """
        if candidate is not None:
            self.open(candidate, black_box)
        self.serve(candidate, black_box)
        self._chosen_by_person.add(black_box)

    def serve(self, candidate: str | None, black_box: str) -> None:
        """Serve a candidate until ``update`` chooses again.

        Args:
            candidate: version of an adapter that has been opened, or None for the unadapted model.
            black_box: SHA-256 of the model's weights.
        """
        if candidate is None:
            self._serves.pop(black_box, None)
        else:
            self._serves[black_box] = candidate
            self._served.add(EvidenceStream(candidate, black_box).key)

    def update(
        self, black_box: str, serve_trials: bool = True, is_available: Callable[[str], bool] = any_version
    ) -> str | None:
        """Test the newest candidate and the one that serves, and choose the one to serve from now on.

        Args:
            black_box: SHA-256 of the weights of the model that answers now.
            serve_trials: whether candidates on trial may serve; otherwise only published ones do.
            is_available: whether a version exists and can be read.

        Returns:
            Version of the adapter to serve, or None for the unadapted model.
        """
        if (serves := self.serves(black_box)) is not None and not is_available(serves):
            self.serve(None, black_box)
        streams = self.active_streams(black_box, is_available)
        if streams:
            self.ledger.update(streams[-1], streams[:-1])
        for stream in streams:
            if not self.ledger.holds(stream):
                continue
            if estimate_gain(stream.differences()).probability_better < _RETRACTION_PROBABILITY:
                self.ledger.retract(stream)
        chosen = black_box in self._chosen_by_person
        unjudged = any(not len(stream) and self._is_served(stream) for stream in streams)
        best = choose_served([stream for stream in streams if serve_trials or self.ledger.holds(stream)])
        if not chosen and (best or not unjudged):  # What serves, and nobody has judged, serves until one is better.
            self.serve(best.candidate if best else None, black_box)
        return self.serves(black_box)

    def _is_served(self, stream: EvidenceStream) -> bool:
        return self._serves.get(stream.black_box) == stream.candidate

    def active_streams(self, black_box: str, is_available: Callable[[str], bool] = any_version) -> list[EvidenceStream]:
        """Return the evidence of the candidates that the next patients should judge.

        Args:
            black_box: SHA-256 of the weights of the model that answers now.
            is_available: whether a version exists and can be read.

        Returns:
            The stream of the one that serves and that of the newest one, in this order; one or none if there are fewer.
        """
        streams = self._of(black_box)
        newest = next((stream for stream in reversed(streams) if is_available(stream.candidate)), None)
        served = next((stream for stream in streams if self._is_served(stream) and stream is not newest), None)
        return [s for s in (served, newest) if s is not None and is_available(s.candidate)]

    def statuses(self, black_box: str) -> list[CandidateStatus]:
        """Return what is known of every candidate.

        Args:
            black_box: SHA-256 of the weights of the model that answers now.

        Returns:
            One status for each candidate that has been opened with this model, oldest first.
        """
        active = self.active_streams(black_box)
        return [self._status(stream, stream in active) for stream in self._of(black_box)]

    def _of(self, black_box: str) -> list[EvidenceStream]:
        return [stream for stream in self._streams.values() if stream.black_box == black_box]

    def _status(self, stream: EvidenceStream, is_active: bool) -> CandidateStatus:
        gain = estimate_gain(stream.differences()) if len(stream) else None
        serves, helps = self._is_served(stream), len(stream) > 0 and stream.differences().mean() > 0
        if gain is None:
            state = State.CANDIDATE
        elif gain.mean <= 0 and not serves and stream.key in self._served:
            state = State.WITHDRAWN
        elif self.ledger.holds(stream):
            state = State.PUBLISHED
        elif serves or (is_active and helps and gain.probability_better >= _REJECTION_PROBABILITY):
            state = State.ON_TRIAL
        else:
            state = State.REJECTED
        return CandidateStatus(
            candidate=stream.candidate,
            black_box=stream.black_box,
            state=state,
            serves=serves,
            is_active=is_active,
            patients=len(stream),
            gain=gain,
            worse_count=stream.worse_count,
            worst=stream.worst,
            patients_needed=self.ledger.patients_needed(stream) if state is State.ON_TRIAL else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the gate as JSON.

        Returns:
            What ``from_dict`` reads.
        """
        return {
            "ledger": self.ledger.to_dict(),
            "streams": [stream.to_dict() for stream in self._streams.values()],
            "serves": self._serves,
            "served": sorted(self._served),
            "chosen_by_person": sorted(self._chosen_by_person),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> tuple[Gate, list[str]]:
        """Read a gate back; what is damaged is dropped, and its claims with it.

        Args:
            record: the JSON, see ``to_dict``.

        Returns:
            The gate, and a sentence for everything that was dropped.
        """
        gate, dropped = cls(), []
        try:
            gate.ledger = ClaimLedger.from_dict(record.get("ledger", {}))
        except BapsError as error:
            gate.ledger = spent_ledger()
            dropped.append(str(error))
        streams = record.get("streams")
        for entry in streams if isinstance(streams, list) else [{}]:
            try:
                stream = EvidenceStream.from_dict(entry)
            except BapsError as error:
                dropped.append(str(error))
            else:
                gate._streams[stream.key] = stream
        serves = record.get("serves")
        if isinstance(serves, dict):
            keys = {(stream.black_box, stream.candidate) for stream in gate._streams.values()}
            gate._serves = {
                key: value for key, value in serves.items() if isinstance(value, str) and (key, value) in keys
            }
        gate._served = _texts(record.get("served"))
        gate._chosen_by_person = _texts(record.get("chosen_by_person"))
        return gate, dropped


def judge_training(differences: Mapping[str, float]) -> CandidateStatus:
    """Say what a single training shows, for an adapter that no store keeps.

    Args:
        differences: cross-fitted difference of Dice (-1 to 1) of every patient, by hash.

    Returns:
        The status of the candidate.
    """
    gate = Gate()
    stream = gate.open("", "")
    for patient, difference in differences.items():
        stream.add(patient, difference)
    gate.update("")
    return gate.statuses("")[0]


def _texts(value: object) -> set[str]:
    return {entry for entry in value if isinstance(entry, str)} if isinstance(value, list) else set()
