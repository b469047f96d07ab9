"""A site with labels of several people, for the tests of the pages about labels."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
from httpx import Response
from numpy.typing import NDArray

from tests.support.sites import SAMPLES, sample_labels
from tests.support.web_site import WebSite

LIVER, SPLEEN = 1, 2


def label_of(case: str) -> NDArray[np.uint8]:
    """Return the liver (1) and the spleen (2) of a sample volume, (I, J, K)."""
    label = sample_labels(case).copy()
    label[label > SPLEEN] = 0
    return label


def save(site: WebSite, user: str, image: str, label: NDArray[np.uint8], tag: str = "final", **info: Any) -> Response:
    """Save a label as a viewer does, as one of the site's users."""
    affine = nibabel.load(SAMPLES / "images" / f"{image}.nii.gz").affine
    names = [{"name": "spleen", "idx": SPLEEN}, {"name": "liver", "idx": LIVER}]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image(label, affine), file)
        reply = site.client.put(
            "/datastore/label",
            params={"image": image, "tag": tag},
            data={"params": json.dumps({"label_info": names, **info})},
            files={"label": ("label.nii.gz", file.read_bytes())},
            headers={"Authorization": f"Bearer {site.tokens[user]}"},
        )
    assert reply.status_code == 200, reply.text
    return reply


def corrected(case: str) -> NDArray[np.uint8]:
    """Return a sample's label whose spleen lacks its two lowest slices: an ordinary correction."""
    label = label_of(case)
    slices = np.flatnonzero((label == SPLEEN).any((0, 1)))[:2]
    part = label[:, :, slices]
    part[part == SPLEEN] = 0
    label[:, :, slices] = part
    return label


def taken_away(case: str) -> NDArray[np.uint8]:
    """Return a sample's label whose spleen has only its highest slices, which takes it away from its first author."""
    label = label_of(case)
    slices = np.flatnonzero((label == SPLEEN).any((0, 1)))[:-3]
    part = label[:, :, slices]
    part[part == SPLEEN] = 0
    label[:, :, slices] = part
    return label
