"""Find the labelled volumes of a datastore to train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from baps.annotations.label_info import LabelInfo, label_values, read_label_info
from baps.blackbox.weights import sha256
from baps.errors import BapsError
from baps.evaluation.cases import Case
from baps.io import read_geometry, read_label_map
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.label_checks import LabelCheck

_TAG = DefaultLabelTag.FINAL.value


def labelled_cases(
    datastore: Datastore,
    labels: Mapping[str, int],
    patients: Mapping[str, str],
    image: str | None = None,
) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Find the cases of each of the site's labels, among the final labels that a person has confirmed.

    * If an annotator has replaced an organ that another one drew, the earlier version is used until a trainer confirms
      the new one (``baps.annotations.disputes``).
    * A file in ``labels/final`` that was not submitted counts as confirmed. The file defines the meaning of its values,
      or else the site's settings do.
    * The patient is the DICOM PatientID, or else the entry in the site's table, or else the name of the image.
    * From a PACS, the newest DICOM SEG that names a label is used.

    Volumes are fetched from a PACS, and DICOM series in a folder are converted.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site's labels.
        patients: Patients by the name of the image.
        image: Name of the only image to consider, or None for all.

    Returns:
        Cases by label, and the reasons by the name of each skipped image.
    """
    if isinstance(datastore, PacsDatastore):
        return _pacs_cases(datastore, labels, patients, image)
    cases: dict[str, list[Case]] = {name: [] for name in labels}
    skipped: dict[str, str] = {}
    checks = datastore.read_final_labels() if isinstance(datastore, StudiesDatastore) else {}
    for image_id, label_id, info, values in _confirmed_labels(datastore, labels, checks, skipped, image):
        try:
            file = Path(datastore.get_image_uri(image_id))
            is_own = isinstance(datastore, StudiesDatastore)
            known, source = (datastore.patient(image_id), datastore.source(image_id)) if is_own else (None, None)
        except BapsError as error:  # Of a series that cannot be read.
            skipped[image_id] = str(error)
            continue
        annotated, mask = info.annotated_slices or {}, Path(datastore.get_label_uri(label_id, _TAG))
        if isinstance(datastore, StudiesDatastore):  # The served file may be replaced while the training runs.
            mask = datastore.history.immutable_file(image_id, _TAG, mask) or mask
        patient = known or patients.get(image_id) or image_id
        for name in labels:
            if name in info.disputed:
                skipped[f"{image_id}, {name}"], earlier = _earlier_version(
                    datastore, image_id, name, info, labels, source
                )
                cases[name] += [replace(case, patient=patient) for case in earlier]
            elif name in values:
                version = _hash_file(mask)
                case = Case(file, mask, values[name], patient, annotated.get(name), source, image_id, version)
                cases[name].append(case)
    return cases, skipped


def labelled_organs(datastore: Datastore, labels: Mapping[str, int]) -> tuple[set[str], dict[str, str]]:
    """Find the site's labels that seem to have cases, without reading or fetching a volume.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site's labels.

    Returns:
        Names of labels, and the reasons by the name of each image that will be skipped. ``labelled_cases`` reads the
        volumes, and may skip more.
    """
    if isinstance(datastore, PacsDatastore):
        datastore.invalidate()
        segments = datastore.newest_segments()
        organs = {name for names in segments.values() for name in names if name in labels}
        return organs, _without_site_labels(segments, labels)
    skipped: dict[str, str] = {}
    checks = datastore.known_final_labels() if isinstance(datastore, StudiesDatastore) else {}
    confirmed = _confirmed_labels(datastore, labels, checks, skipped)
    return {name for *_, values in confirmed for name in values if name in labels}, skipped


def label_versions(datastore: Datastore, labels: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Find the versions of the final labels that a person has confirmed, without reading or fetching a volume.

    Args:
        datastore: Datastore of the server.
        labels: Names and values of the site's labels.

    Returns:
        By label, the version of each image: the hash of the file, or the SOPInstanceUID in a PACS. Labels that are
        disputed, and labels in MONAI Label's own stores, are left out.
    """
    versions: dict[str, dict[str, str]] = {name: {} for name in labels}
    if isinstance(datastore, PacsDatastore):
        for image_id, segments in datastore.newest_segments().items():
            for name in set(segments) & set(labels):
                versions[name][image_id] = segments[name][0].instance
    elif isinstance(datastore, StudiesDatastore):
        checks = datastore.known_final_labels()
        for image_id, label_id, info, values in _confirmed_labels(datastore, labels, checks, {}):
            version = _hash_file(Path(datastore.get_label_uri(label_id, _TAG)))
            for name in set(values) & set(labels) - set(info.disputed):
                versions[name][image_id] = version
    return versions


def _hash_file(file: Path) -> str:
    """Return the SHA-256 of a label, which is computed again only if the file has changed."""
    status = file.stat()
    return _hash_unchanged_file(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=10_000)
def _hash_unchanged_file(file: Path, *_: int) -> str:
    return sha256(file)


def _confirmed_labels(
    datastore: Datastore,
    labels: Mapping[str, int],
    checks: Mapping[str, LabelCheck],
    skipped: dict[str, str],
    image: str | None = None,
) -> Iterator[tuple[str, str, LabelInfo, dict[str, int]]]:
    """Iterate over the final labels that a person has confirmed, and add to ``skipped`` why others are skipped.

    Yields:
        The name of the image, the name of the label, its information, and the value of each organ.
    """
    skipped |= {image_id: check.error for image_id, check in sorted(checks.items()) if check.error}
    labelled = datastore.get_labeled_images()
    for image_id in sorted(labelled if image is None else {image} & set(labelled)):
        label_id = datastore.get_label_by_image_id(image_id, _TAG)
        try:
            info = read_label_info(datastore.get_label_info(label_id, _TAG) or {})
        except BapsError as error:  # Written by an older server or by hand.
            skipped[image_id] = str(error)
            continue
        if not info.confirmed:
            skipped[image_id] = f"No person has confirmed the label of {image_id}. Check it and submit it."
            continue
        names = checks[image_id].names if image_id in checks else {}
        values = label_values(info, labels, names)
        skipped |= _without_site_labels({image_id: values}, labels)
        yield image_id, label_id, info, values


def _without_site_labels(images: Mapping[str, Iterable[str]], labels: Mapping[str, int]) -> dict[str, str]:
    """Return the reasons for skipping images that have none of the site's labels."""
    return {
        image_id: f"None of its segments ({', '.join(names)}) is a label of this site: {', '.join(labels)}."
        for image_id, names in sorted(images.items())
        if not set(names) & set(labels)
    }


def _earlier_version(
    datastore: StudiesDatastore,
    image_id: str,
    organ: str,
    info: LabelInfo,
    labels: Mapping[str, int],
    source: Path | None,
) -> tuple[str, list[Case]]:
    """Return the case of the version before a disputed organ, and a note. See ``baps.annotations.disputes``."""
    earlier = info.disputed[organ]
    note = (
        f"The newest {organ} of {image_id} replaces the one by {earlier.author or 'an unnamed author'}, and no trainer "
        "has confirmed it."
    )
    try:
        image = Path(datastore.get_image_uri(image_id))
        version = datastore.history.version(image_id, DefaultLabelTag.FINAL.value, earlier.version)
        before = read_label_info(version.info)
        names = {} if before.label_info else read_label_map(version.file, read_geometry(image), source).names
        value = label_values(before, labels, names)[organ]
    except (BapsError, KeyError):
        return f"{note} The earlier version does not exist any more, so the organ is skipped.", []
    annotated = (before.annotated_slices or {}).get(organ)
    return f"{note} The earlier version is used.", [Case(image, version.file, value, image_id, annotated, source)]


def _pacs_cases(
    datastore: PacsDatastore, labels: Mapping[str, int], patients: Mapping[str, str], only: str | None = None
) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Find the cases in a PACS, where each organ of an image has a separate file."""
    cases: dict[str, list[Case]] = {name: [] for name in labels}
    if only is None:
        datastore.invalidate()
    newest = datastore.newest_segments(only)
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
                skipped[f"{image_id}, {name}, newer"] = f"{organ.newer_errors[0]} An older label is used."
            patient = datastore.patient(image_id) or patients.get(image_id) or image_id
            version = "" if organ.newer_errors else segments[name][0].instance
            cases[name].append(Case(image, organ.file, 1, patient, organ.slices, None, image_id, version))
    return cases, skipped
