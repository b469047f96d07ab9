"""The bombs of ``fuzz/bombs.py`` sent to a running server, by every way in: how much memory does it take?

An image is sent to be segmented, added to the studies and opened as a session; a label is sent to be saved. The peak is
the server's own, as the kernel counts it, above what it held before.
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

from stress.fuzz.bombs import BOMBS, MOST_MB, judge_bombs
from stress.served_site import Site, site
from stress.tally import judge

_TIMEOUT = 120
_FLAT = "flat"
"""The image that labels are sent for: one slice, as the labels among the bombs expect it."""

Send = Callable[[Site, requests.Session, Path], requests.Response]


def _segment(place: Site, session: requests.Session, bomb: Path) -> requests.Response:
    params = json.dumps({"foreground": [[8, 8, 0]], "result_extension": ".nrrd"})
    with bomb.open("rb") as file:
        return session.post(
            f"{place.address}/infer/zero_shot?output=image",
            files={"file": (bomb.name, file)},
            data={"params": params},
            timeout=_TIMEOUT,
        )


def _add(place: Site, session: requests.Session, bomb: Path) -> requests.Response:
    name = f"bomb-{time.monotonic_ns()}"
    with bomb.open("rb") as file:
        return session.put(
            f"{place.address}/datastore/image?image={name}", files={"file": (bomb.name, file)}, timeout=_TIMEOUT
        )


def _open(place: Site, session: requests.Session, bomb: Path) -> requests.Response:
    """Open a session with the bomb, and have it segmented."""
    with bomb.open("rb") as file:
        opened = session.put(f"{place.address}/session/", files={"files": (bomb.name, file)}, timeout=_TIMEOUT)
    if not opened.ok:
        return opened
    params = json.dumps({"foreground": [[8, 8, 0]], "result_extension": ".nrrd"})
    address = f"{place.address}/infer/zero_shot?output=image&session_id={opened.json()['session_id']}"
    return session.post(address, data={"params": params}, timeout=_TIMEOUT)


def _save(place: Site, session: requests.Session, bomb: Path) -> requests.Response:
    with bomb.open("rb") as file:
        return session.put(
            f"{place.address}/datastore/label?image={_FLAT}", files={"label": (bomb.name, file)}, timeout=_TIMEOUT
        )


_WAYS: Mapping[str, Send] = {"segment": _segment, "add": _add, "session": _open}


def send_bombs(folder: Path, names: Sequence[str] = tuple(BOMBS)) -> dict[str, Any]:
    """Start a server and send it bombs by every way in.

    Returns:
        ``bombs``, ``bombs_over_bound`` (those that took more than twice the volume that is allowed, or were answered
        with an error), ``most_mb`` of any, and by name what happened.
    """
    rows: dict[str, dict[str, Any]] = {}
    with site(folder, (), settings={"max_volume_mb": str(MOST_MB)}) as place, tempfile.TemporaryDirectory() as made:
        session = place.session()
        _add_flat(place, session, Path(made))
        for name in names:
            if name.startswith("adapter"):  # No request brings one.
                continue
            bomb = BOMBS[name](Path(tempfile.mkdtemp(dir=made)))
            for way, send in {"save": _save}.items() if name.startswith("label") else _WAYS.items():
                rows[f"{way}: {name}"] = _sent(place, session, bomb, send)
            bomb.unlink()
        alive = place.process.is_running()
    found = judge_bombs(rows)
    return {**found, "bombs_over_bound": found["bombs_over_bound"] + (not alive)}


def _add_flat(place: Site, session: requests.Session, folder: Path) -> None:
    file = folder / f"{_FLAT}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((512, 512, 1), np.uint8), np.diag([-1.0, -1, 1, 1])), file)
    with file.open("rb") as content:
        address = f"{place.address}/datastore/image?image={_FLAT}"
        session.put(address, files={"file": (file.name, content)}, timeout=_TIMEOUT).raise_for_status()
    for _ in range(2):  # The model and the readers are loaded with the first.
        _segment(place, session, file).raise_for_status()


def _sent(place: Site, session: requests.Session, bomb: Path, send: Send) -> dict[str, Any]:
    before = _memory_mb(place, "VmRSS")
    Path(f"/proc/{place.process.pid}/clear_refs").write_text("5")  # The kernel counts the peak from now on.
    try:
        reply = send(place, session, bomb)
        verdict, said = judge(reply.status_code, reply.content, "POST"), reply.text[:300]
    except requests.RequestException as error:
        verdict, said = "dropped", str(error)
    took = _memory_mb(place, "VmHWM") - before
    return {"verdict": verdict, "took_mb": round(took, 1), "said": said}


def _memory_mb(place: Site, field: str) -> float:
    lines = Path(f"/proc/{place.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
