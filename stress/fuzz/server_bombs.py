"""Send the bombs of ``fuzz/bombs.py`` to a running server by every route, and measure its memory.

An image is segmented, added to the studies and opened as a session; a label is saved. The measured memory is the
server's peak, as the kernel reports it, minus its memory before the request.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests

from stress.fuzz.bombs import BOMBS, MAX_VOLUME_MB, judge_bombs
from stress.served_site import Site, running_site
from stress.tally import judge

_TIMEOUT = 120
_FLAT = "flat"
"""Name of the image of the labels: one slice, which the labels among the bombs fit."""

Send = Callable[[Site, requests.Session, Path], requests.Response]


def _segment(site: Site, session: requests.Session, bomb: Path) -> requests.Response:
    params = json.dumps({"foreground": [[8, 8, 0]], "result_extension": ".nrrd"})
    with bomb.open("rb") as file:
        return session.post(
            f"{site.address}/infer/zero_shot?output=image",
            files={"file": (bomb.name, file)},
            data={"params": params},
            timeout=_TIMEOUT,
        )


def _add(site: Site, session: requests.Session, bomb: Path) -> requests.Response:
    name = f"bomb-{time.monotonic_ns()}"
    with bomb.open("rb") as file:
        return session.put(
            f"{site.address}/datastore/image?image={name}", files={"file": (bomb.name, file)}, timeout=_TIMEOUT
        )


def _open(site: Site, session: requests.Session, bomb: Path) -> requests.Response:
    """Open a session with the bomb, and segment it."""
    with bomb.open("rb") as file:
        opened = session.put(f"{site.address}/session/", files={"files": (bomb.name, file)}, timeout=_TIMEOUT)
    if not opened.ok:
        return opened
    params = json.dumps({"foreground": [[8, 8, 0]], "result_extension": ".nrrd"})
    address = f"{site.address}/infer/zero_shot?output=image&session_id={opened.json()['session_id']}"
    return session.post(address, data={"params": params}, timeout=_TIMEOUT)


def _save(site: Site, session: requests.Session, bomb: Path) -> requests.Response:
    with bomb.open("rb") as file:
        return session.put(
            f"{site.address}/datastore/label?image={_FLAT}", files={"label": (bomb.name, file)}, timeout=_TIMEOUT
        )


_ROUTES: Mapping[str, Send] = {"segment": _segment, "add": _add, "session": _open}


def send_bombs(folder: Path, names: Sequence[str] = tuple(BOMBS)) -> dict[str, Any]:
    """Start a server and send it bombs by every route.

    Args:
        folder: folder for everything that the server writes.
        names: names of the bombs.

    Returns:
        ``bombs`` (number of requests), ``bombs_over_bound`` (those that took more than twice the maximum volume or
        caused an error), ``most_mb`` (the largest memory of any), and ``by_name`` with the result of each.
    """
    rows: dict[str, dict[str, Any]] = {}
    with (
        running_site(folder, (), settings={"max_volume_mb": str(MAX_VOLUME_MB)}) as site,
        tempfile.TemporaryDirectory() as folder_of_bombs,
    ):
        session = site.session()
        _add_flat(site, session, Path(folder_of_bombs))
        for name in names:
            if name.startswith("adapter"):  # Adapters cannot be uploaded.
                continue
            bomb = BOMBS[name](Path(tempfile.mkdtemp(dir=folder_of_bombs)))
            for route, send in {"save": _save}.items() if name.startswith("label") else _ROUTES.items():
                rows[f"{route}: {name}"] = _send_and_measure(site, session, bomb, send)
            bomb.unlink()
        alive = site.process.is_running()
    judged = judge_bombs(rows)
    return {**judged, "bombs_over_bound": judged["bombs_over_bound"] + (not alive)}


def _add_flat(site: Site, session: requests.Session, folder: Path) -> None:
    file = folder / f"{_FLAT}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((512, 512, 1), np.uint8), np.diag([-1.0, -1, 1, 1])), file)
    with file.open("rb") as content:
        address = f"{site.address}/datastore/image?image={_FLAT}"
        session.put(address, files={"file": (file.name, content)}, timeout=_TIMEOUT).raise_for_status()
    for _ in range(2):  # The first request loads the model and the readers.
        _segment(site, session, file).raise_for_status()


def _send_and_measure(site: Site, session: requests.Session, bomb: Path, send: Send) -> dict[str, Any]:
    before = _memory_mb(site, "VmRSS")
    Path(f"/proc/{site.process.pid}/clear_refs").write_text("5")  # Resets the peak.
    try:
        reply = send(site, session, bomb)
        verdict, message = judge(reply.status_code, reply.content, "POST"), reply.text[:300]
    except requests.RequestException as error:
        verdict, message = "dropped", str(error)
    growth_mb = _memory_mb(site, "VmHWM") - before
    return {"verdict": verdict, "took_mb": round(growth_mb, 1), "said": message}


def _memory_mb(site: Site, field: str) -> float:
    lines = Path(f"/proc/{site.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
