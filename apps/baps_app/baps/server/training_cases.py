"""Labelled volumes of the datastore, as cases to train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from baps.annotations.label_info import LabelInfo, label_values, read_label_info
from baps.errors import BapsError
from baps.evaluation.cases import Case
from baps.io import read_geometry, read_label_map
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore


def labelled_cases(
    datastore: Datastore, labels: Mapping[str, int], patients: Mapping[str, str]
) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Find the cases of each of the site's labels in the final labels that a person confirmed.

    If an organ was taken away from another annotator and no trainer has confirmed that, the version before is used. A
    file that lies in ``labels/final`` without having been submitted counts as confirmed by whoever put it there; its
    values mean what the file says, or else the site's numbers. A patient is the DICOM PatientID, or else what the
    site's table says, or else the image's name. In a PACS, the newest DICOM SEG that names a label is used.

    The volumes of a PACS are fetched, and DICOM series of a folder are converted.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site.
        patients: Patients by the name of the image.

    Returns:
        Cases by label, and for each image that was left out the reason.
    """
    if isinstance(datastore, PacsDatastore):
        return _of_pacs(datastore, labels, patients)
    tag = DefaultLabelTag.FINAL.value
    cases: dict[str, list[Case]] = {name: [] for name in labels}
    checked = datastore.read_final_labels() if isinstance(datastore, StudiesDatastore) else {}
    skipped = {image_id: found.error for image_id, found in sorted(checked.items()) if found.error}
    for image_id in sorted(datastore.get_labeled_images()):
        label_id = datastore.get_label_by_image_id(image_id, tag)
        try:
            info = read_label_info(datastore.get_label_info(label_id, tag) or {})
            image = Path(datastore.get_image_uri(image_id))
            ours = isinstance(datastore, StudiesDatastore)
            known, source = (datastore.patient(image_id), datastore.source(image_id)) if ours else (None, None)
        except BapsError as error:  # Written by an older server or by hand, or of a series that cannot be read.
            skipped[image_id] = str(error)
            continue
        if not info.confirmed:
            skipped[image_id] = _UNCONFIRMED.format(image_id)
            continue
        names = checked[image_id].names if image_id in checked else {}
        values, annotated = label_values(info, labels, names), info.annotated_slices or {}
        skipped |= _without_site_labels({image_id: values}, labels)
        mask = Path(datastore.get_label_uri(label_id, tag))
        if isinstance(datastore, StudiesDatastore):  # What is submitted while the training runs has other values, say.
            mask = datastore.history.immutable_file(image_id, tag, mask) or mask
        patient = known or patients.get(image_id) or image_id
        for name in labels:
            if name in info.disputed:
                skipped[f"{image_id}, {name}"], standing = _standing(datastore, image_id, name, info, labels, source)
                cases[name] += [replace(one, patient=patient) for one in standing]
            elif name in values:
                cases[name].append(Case(image, mask, values[name], patient, annotated.get(name), source))
    return cases, skipped


def labelled_organs(datastore: Datastore, labels: Mapping[str, int]) -> tuple[set[str], dict[str, str]]:
    """Return which of the site's labels have cases, as far as that is known without reading or fetching a volume.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site.

    Returns:
        Names of labels, of which ``labelled_cases`` may find some without a usable case; and for each image that is
        known to be left out the reason.
    """
    if isinstance(datastore, PacsDatastore):
        datastore.invalidate()
        segments = datastore.newest_segments()
        organs = {name for found in segments.values() for name in found if name in labels}
        return organs, _without_site_labels(segments, labels)
    tag, organs, skipped = DefaultLabelTag.FINAL.value, set[str](), dict[str, str]()
    if isinstance(datastore, StudiesDatastore):
        known = datastore.known_final_labels()
        skipped = {image_id: found.error for image_id, found in sorted(known.items()) if found.error}
    for image_id in sorted(datastore.get_labeled_images()):
        label_id = datastore.get_label_by_image_id(image_id, tag)
        try:
            info = read_label_info(datastore.get_label_info(label_id, tag) or {})
        except BapsError as error:
            skipped[image_id] = str(error)
            continue
        named = label_values(info, labels)
        if not info.confirmed:
            skipped[image_id] = _UNCONFIRMED.format(image_id)
        elif organs_here := named.keys() & labels.keys():
            organs |= organs_here
        else:
            skipped |= _without_site_labels({image_id: named}, labels)
    return organs, skipped


_UNCONFIRMED = "The label of {} was not confirmed by a person. Check it and submit it."


def _without_site_labels(images: Mapping[str, Iterable[str]], labels: Mapping[str, int]) -> dict[str, str]:
    """Return, by image, why an image is left out whose segments are no labels of the site."""
    return {
        image_id: f"Its segments {', '.join(names)} are no labels of this site: {', '.join(labels)}."
        for image_id, names in sorted(images.items())
        if not set(names) & set(labels)
    }


def _standing(
    datastore: StudiesDatastore,
    image_id: str,
    organ: str,
    info: LabelInfo,
    labels: Mapping[str, int],
    source: Path | None,
) -> tuple[str, list[Case]]:
    """What is taken of a disputed organ: the version before it, see ``baps.annotations.disputes``; and a sentence."""
    standing = info.disputed[organ]
    said = (
        f"The newest {organ} of {image_id} took it away from what {standing.author or 'nobody named'} drew, and no "
        "trainer has confirmed that."
    )
    try:
        image = Path(datastore.get_image_uri(image_id))
        version = datastore.history.version(image_id, DefaultLabelTag.FINAL.value, standing.version)
        before = read_label_info(version.info)
        names = {} if before.label_info else read_label_map(version.file, read_geometry(image), source).names
        value = label_values(before, labels, names)[organ]
    except (BapsError, KeyError):
        return f"{said} The one before it is not there any more; none was taken.", []
    covered = (before.annotated_slices or {}).get(organ)
    return f"{said} The one before it was taken.", [Case(image, version.file, value, image_id, covered, source)]


def _of_pacs(
    datastore: PacsDatastore, labels: Mapping[str, int], patients: Mapping[str, str]
) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """As ``labelled_cases``; each organ of an image has a file of its own."""
    cases: dict[str, list[Case]] = {name: [] for name in labels}
    datastore.invalidate()
    newest = datastore.newest_segments()
    skipped = _without_site_labels(newest, labels)
    for image_id, segments in sorted(newest.items()):
        for name in sorted(set(segments) & set(labels)):
            try:
                image = Path(datastore.get_image_uri(image_id))
                organ = datastore.organ(image_id, segments[name])
            except BapsError as error:
                skipped[f"{image_id}, {name}"] = str(error)
                continue
            if organ.newer_errors:
                skipped[f"{image_id}, {name}, newer"] = f"{organ.newer_errors[0]} An older label was taken."
            patient = datastore.patient(image_id) or patients.get(image_id) or image_id
            cases[name].append(Case(image, organ.file, 1, patient, organ.slices))
    return cases, skipped
