"""Labelled volumes of the datastore, as cases to train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from baps.adaptation.cases import Case
from baps.errors import InputError


def label_values(info: Mapping[str, Any], labels: Mapping[str, int]) -> dict[str, int]:
    """Which value means which label in one labelmap: what was said when it was saved, else the site's own numbers."""
    said = info.get("label_info")
    if isinstance(said, list) and said:
        return {str(item["name"]): int(item["idx"]) for item in said if {"name", "idx"} <= set(item)}
    return dict(labels)


def labelled_cases(datastore: Datastore, labels: Mapping[str, int]) -> dict[str, list[Case]]:
    """The cases of each of the site's labels, from the final labels.

    A patient is the PatientID that the datastore knows of the image, else the image's name.

    Raises:
        InputError: if the labels lie in a PACS.
    """
    if isinstance(datastore, DICOMWebDatastore):
        raise InputError(
            "Training on labels that lie in a PACS is not supported yet. Serve a folder of volumes to train: "
            "make serve STUDIES=<folder>."
        )
    tag = DefaultLabelTag.FINAL.value
    cases: dict[str, list[Case]] = {name: [] for name in labels}
    for image_id in sorted(datastore.get_labeled_images()):
        label_id = datastore.get_label_by_image_id(image_id, tag)
        values = label_values(datastore.get_label_info(label_id, tag) or {}, labels)
        image, mask = Path(datastore.get_image_uri(image_id)), Path(datastore.get_label_uri(label_id, tag))
        patient = str((datastore.get_image_info(image_id) or {}).get("PatientID") or image_id)
        for name in labels:
            if name in values:
                cases[name].append(Case(image, mask, values[name], patient))
    return cases
