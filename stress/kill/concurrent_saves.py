"""Many users save labels of the same images at once: is every label that was reported as saved on the disk?

The label history is read with nibabel and json, not with the code that wrote it.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests
from numpy.typing import NDArray

from baps.site.roles import Role
from baps.site.users import Users
from stress.served_site import CASES, LABELS, Site, organ, running_site
from stress.tally import Tally

SAVERS = 8
IMAGES = CASES[:4]
_SAVES = 4
"""Labels that each user submits for each image."""


def save_at_once(folder: Path, seed: int) -> dict[str, Any]:
    """Start a server and have users save labels at once, each user one organ of every image.

    Args:
        folder: folder for everything that the server writes.
        seed: seed of the order of the saves.

    Returns:
        The tally's figures, ``saved`` (answers of 200) and ``labels_lost``: labels for which no version by their
        author holds the voxels that were sent.
    """
    tally, sent = Tally(), list[tuple[str, str, str, NDArray[np.bool_]]]()
    masks = {(case, name): organ(case, name) for case in IMAGES for name in LABELS}
    with running_site(folder, IMAGES) as site:
        users = Users(folder / "users.json")
        savers = [
            threading.Thread(target=_save_labels, args=(site, f"saver{n}", token, masks, seed + n, tally, sent))
            for n, token in enumerate([users.add(f"saver{n}", Role.ANNOTATOR) for n in range(SAVERS)])
        ]
        for thread in savers:
            thread.start()
        for thread in savers:
            thread.join()
        lost = [
            f"{user}: {name} of {case}" for user, case, name, mask in sent if not _is_on_disk(site, user, case, mask)
        ]
    return {**tally.to_dict(), "saved": len(sent), "labels_lost": len(lost), "lost": lost[:20]}


def _save_labels(
    site: Site,
    user: str,
    token: str,
    masks: dict[tuple[str, str], NDArray[np.bool_]],
    seed: int,
    tally: Tally,
    sent: list[tuple[str, str, str, NDArray[np.bool_]]],
) -> None:
    random, session = np.random.default_rng(seed), requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    name = list(LABELS)[seed % len(LABELS)]
    for case in random.permutation(np.repeat(IMAGES, _SAVES)).tolist():
        mask = np.roll(masks[case, name], int(random.integers(-6, 7)), int(random.integers(3)))
        image = nibabel.load(site.studies / f"{case}.nii.gz")
        content = nibabel.Nifti1Image((LABELS[name] * mask).astype(np.uint8), image.affine).to_bytes()

        def send(case: str = case, content: bytes = content) -> requests.Response:
            params = {"label_info": [{"name": name, "idx": LABELS[name]}]}
            return session.put(
                f"{site.address}/datastore/label?image={case}",
                files={"label": ("label.nii", content)},
                data={"params": json.dumps(params)},
                timeout=300,
            )

        reply = tally.send("save a label", send)
        if reply is not None and reply.ok:
            sent.append((user, case, name, mask))


def _is_on_disk(site: Site, user: str, case: str, mask: NDArray[np.bool_]) -> bool:
    """Check that a version by the user holds the mask that the user sent."""
    for version in (site.studies / "labels-history" / "final" / case).glob("[0-9]*"):
        info = json.loads((version / "version.json").read_text())["info"]
        if info["author"] != user:
            continue
        voxels = np.asanyarray(nibabel.load(next(version.glob("label*"))).dataobj)
        if any(np.array_equal(voxels == segment["idx"], mask) for segment in info["label_info"]):
            return True
    return False
