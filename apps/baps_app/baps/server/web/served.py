"""List what serves each organ, plot the evidence for it, and suggest what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baps.errors import BapsError
from baps.registry.store import SHARED
from baps.server.web.adapter_table import (
    CLICKS,
    ORGANS,
    VOLUMES,
    AdapterTable,
    AdapterVersion,
    OrganAdapters,
    describe_adapter,
)
from baps.server.web.attention import Warned
from baps.server.web.images import ImageCounts
from baps.server.web.plots import EvidencePlot, plot_evidence

KINDS = {CLICKS: "click", ORGANS: "no click", VOLUMES: "3D click"}
"""How each model is prompted, for tables."""

_MIN_PATIENTS = 2
"""With fewer labelled patients, a training has nobody to be judged by."""


@dataclass(frozen=True)
class ServedOrgan:
    """What serves an organ for one model.

    Attributes:
        kind: ``click``, ``no click`` or ``3D click``.
        adapters: The adapters of the organ.
        served: The version that serves, or None for the unadapted model.
        fallback: Sentence if another adapter, or the unadapted model, serves in place of one of its own, or "".
    """

    kind: str
    adapters: OrganAdapters
    served: AdapterVersion | None
    fallback: str


@dataclass(frozen=True)
class Suggestion:
    """What to do next.

    Attributes:
        organ: The organ.
        sentence: What to do.
        trains: Whether it is to train.
    """

    organ: str
    sentence: str
    trains: bool


def served_organs(table: AdapterTable) -> tuple[list[ServedOrgan], list[Warned]]:
    """List what serves each organ: for clicks on slices always, for the other models where there is an adapter.

    Args:
        table: The adapters.

    Returns:
        The organs, and a warning for each that cannot be read.
    """
    served: list[ServedOrgan] = []
    problems: list[Warned] = []
    shared = _read(table, CLICKS, SHARED, problems)
    for organ in table.organs(CLICKS):
        adapters = _read(table, CLICKS, organ, problems)
        if adapters is None:
            continue
        fallback = ""
        if organ and not adapters.versions:
            if shared and shared.served:
                fallback = f"the adapter for clicks without an organ, {shared.served.version}"
            else:
                fallback = "the unadapted model"
        served.append(ServedOrgan(KINDS[CLICKS], adapters, adapters.served, fallback))
    for model in table.models[1:]:
        for organ in table.organs(model):
            adapters = _read(table, model, organ, problems)
            if adapters is not None and adapters.versions:
                served.append(ServedOrgan(KINDS[model], adapters, adapters.served, ""))
    return served, problems


def _read(table: AdapterTable, model: str, organ: str, problems: list[Warned]) -> OrganAdapters | None:
    try:
        return table.read(model, organ)
    except BapsError as error:
        problems.append(Warned(f"Adapters of {describe_adapter(model, organ)}", True, str(error), ""))
        return None


def judged_versions(adapters: OrganAdapters) -> list[AdapterVersion]:
    """List the versions that the next patients judge: what serves, and the newest one.

    Args:
        adapters: The adapters of an organ.

    Returns:
        The versions, newest first.
    """
    return [one for one in adapters.versions if one.serves or (one.status is not None and one.status.is_active)]


def evidence_plots(served: Iterable[ServedOrgan]) -> list[tuple[ServedOrgan, AdapterVersion, EvidencePlot]]:
    """Plot the evidence of the versions that the next patients judge: what serves, and the newest one.

    Args:
        served: The organs.

    Returns:
        Organ, version and plot.
    """
    plots = []
    for organ in served:
        for version in judged_versions(organ.adapters):
            if plot := plot_evidence(version.patients):
                plots.append((organ, version, plot))
    return plots


def suggest(served: Iterable[ServedOrgan], counts: ImageCounts | None) -> list[Suggestion]:
    """Suggest what to do next for each organ that is prompted by clicks.

    Args:
        served: The organs.
        counts: Numbers of images and labels, or None if they are not known yet.

    Returns:
        The suggestions.
    """
    labelled = {one.organ: one for one in counts.organs} if counts else {}
    suggestions = []
    for one in served:
        organ, versions = one.adapters.organ, one.adapters.versions
        if one.adapters.model != CLICKS or organ not in labelled:
            continue
        patients, newest = labelled[organ].patients, versions[0] if versions else None
        trained = set(map(str, newest.record.get("training_patients", ()))) if newest else set()
        unseen = len(labelled[organ].hashes - trained)
        if patients < _MIN_PATIENTS:
            missing = _MIN_PATIENTS - patients
            sentence = f"Label {missing} more patient{'s' * (missing != 1)}, so that a training can be judged."
            suggestions.append(Suggestion(organ, sentence, False))
        elif newest is None:
            suggestions.append(Suggestion(organ, f"There are labels of {patients} patients. Train it.", True))
        elif trained and unseen:
            sentence = f"{newest.version} has not seen {unseen} labelled patient{'s' * (unseen != 1)}. Train again."
            suggestions.append(Suggestion(organ, sentence, True))
        elif newest.status and newest.status.is_active and newest.status.patients_needed and not newest.is_proven:
            needed = newest.status.patients_needed
            sentence = f"Confirm labels of about {needed} more patient{'s' * (needed != 1)} to prove {newest.version}."
            suggestions.append(Suggestion(organ, sentence, False))
    return suggestions
