"""A site with users, labelled images and judged adapters, whose pages tests open as each of the users."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
from fastapi.testclient import TestClient
from httpx import Response

from baps.adapters.adapter import identity_adapter
from baps.blackbox.loading import BUNDLED_WEIGHTS
from baps.blackbox.weights import sha256
from baps.evaluation.splits import patient_hash
from baps.registry.evidence import change_evidence
from baps.registry.store import AdapterStore
from baps.server.web.state import WebState
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.client import ADDRESS, site_client
from tests.support.sites import SAMPLES, sample_labels

CASES = ("ct_01", "ct_02", "ct_03")
HTML = {"Accept": "text/html,*/*"}

GAINS = {**dict(zip(CASES, (0.05, 0.2, 0.3), strict=True)), **{f"gone_{n}": 0.2 + 0.01 * n for n in range(5)}}
"""Gains of the first version: of the labelled images, and of patients whose images are gone."""


WEIGHTS = sha256(BUNDLED_WEIGHTS)


@dataclass(frozen=True)
class WebSite:
    """A site in the process of the test.

    Attributes:
        client: A client that has not signed in.
        folder: Folder of the site.
        tokens: Tokens of the users ``anna``, ``theo``, ``thea`` and ``root``: an annotator, two trainers and an admin.
    """

    client: TestClient
    folder: Path
    tokens: Mapping[str, str]

    @property
    def store(self) -> AdapterStore:
        return AdapterStore(self.folder / "adapters")

    @property
    def state(self) -> WebState:
        state: WebState = self.client.app.state.web  # type: ignore[attr-defined]
        return state

    def browser(self, name: str) -> TestClient:
        """Return a browser in which a user has signed in."""
        browser = TestClient(self.client.app, ADDRESS, client=("127.0.0.1", 50000), follow_redirects=False)
        browser.headers.update(HTML)
        form = {"username": name, "password": self.tokens[name]}
        assert browser.post("/login", data=form).status_code == 303
        return browser


def send(browser: TestClient, path: str, /, **form: str) -> Response:
    """Send a form as a page of the server does."""
    return browser.post(path, data=form, headers={"Origin": ADDRESS})


def add_version(store: AdapterStore, organ: str, gains: Mapping[str, float], **record: Any) -> str:
    """Store an adapter that changes nothing, with what a training measured, and let the gate decide."""
    differences = {patient_hash(patient): gain for patient, gain in gains.items()}
    content = {
        "adapter": identity_adapter().to_dict(),
        "black_box": {"name": "bundled", "weights_sha256": WEIGHTS},
        "verdict": {"before": 0.4, "after": 0.4 + float(np.mean(list(gains.values()) or [0]))},
        "scores": {
            "differences": differences,
            "unadapted": dict.fromkeys(differences, 0.4),
            "candidate": {patient: 0.4 + gain for patient, gain in differences.items()},
        },
        "training_patients": list(differences),
        "label_versions": {},
        "curve": [[100, 0.4], [200, 0.7]],
        "black_box_images": 200,
        "settings": {"zoom": "chosen"},
        **record,
    }
    version = store.add(organ, identity_adapter(), content)
    with change_evidence(store, organ, (WEIGHTS, "canvas")) as evidence:
        evidence.open(store, organ, version, WEIGHTS)
    return version


def write_studies(studies: Path) -> None:
    """Write the first sample volumes, and final labels that show the spleen (2) and the liver (1)."""
    studies.mkdir()
    for case in CASES:
        shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", studies)
    folder = studies / "labels" / "final"
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        image = nibabel.load(SAMPLES / "images" / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(sample_labels(case), image.affine), folder / f"{case}.nii.gz")


@contextmanager
def web_site(
    folder: Path, settings: Mapping[str, Any] = MappingProxyType({}), trained: bool = True
) -> Iterator[WebSite]:
    """Serve a site with two versions for the spleen, the first of them published, and the second one rejected."""
    users = Users(folder / "users.json")
    roles = {"anna": Role.ANNOTATOR, "theo": Role.TRAINER, "thea": Role.TRAINER, "root": Role.ADMIN}
    tokens = {name: users.add(name, role) for name, role in roles.items()}
    write_studies(folder / "studies")
    if trained:
        store = AdapterStore(folder / "adapters")
        add_version(store, "spleen", GAINS)
        add_version(store, "spleen", dict.fromkeys(CASES, -0.1))
    given = {"users": str(users.file), "evidence_images_per_label": "0", **settings}
    with site_client(folder, cases=0, settings=given) as client:
        site = WebSite(client, folder, tokens)
        site.state.app.black_box()  # Pages show more once the model is loaded.
        yield site
