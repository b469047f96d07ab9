"""Load the server: sixteen clients click on eight volumes while trainings run. Measures times, errors and memory."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

from stress.served_site import CASES, Memory, Site, running_site, voxels_of, write_labels
from stress.tally import Tally

CLIENTS = 16
VOLUMES = CASES[:8]
MAX_PAUSE = 1.0
"""Maximum number of seconds that a client waits between two requests."""

KINDS = {
    "click": 0.70,
    "click, unadapted model": 0.10,
    "click, raw reply": 0.06,
    "look": 0.05,
    "next sample": 0.05,
    "save a label": 0.04,
}
"""Kinds of requests, and the probability of each."""


def load(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Start a server, label the volumes, and have clients work on them while a training runs.

    Args:
        folder: folder for everything that the server writes.
        seconds: duration of the load.
        seed: seed of the clients' requests.

    Returns:
        The tally's figures, ``memory`` (see ``Memory``), ``trainings`` (number of trainings started), and
        ``training_share``: fraction of the time in which a training ran.
    """
    tally = Tally()
    with running_site(folder) as site, Memory(site.process) as memory:
        files = {case: write_labels(folder / "tmp" / f"{case}.nii.gz", case) for case in VOLUMES}
        for case, file in files.items():
            _save(site, site.session(), case, file, tally)
        end = time.monotonic() + seconds
        trainer = _Trainer(site, end, seed, tally)
        voxels = {case: voxels_of(case) for case in VOLUMES}
        clients = [
            threading.Thread(target=_client, args=(site, number, end, seed, voxels, files, tally))
            for number in range(CLIENTS)
        ]
        for thread in (trainer, *clients):
            thread.start()
        for thread in (trainer, *clients):
            thread.join()
        alive = site.process.is_running()
    log = (folder / "server.log").read_text(errors="replace")
    return {
        **tally.to_dict(),
        "seconds": round(seconds),
        "clients": CLIENTS,
        "volumes": len(VOLUMES),
        "trainings": trainer.started,
        "training_share": round(trainer.share, 3),
        "memory": memory.to_dict(),
        "alive": alive,
        "tracebacks": log.count("Traceback (most recent call last)"),
    }


def _client(
    site: Site,
    number: int,
    end: float,
    seed: int,
    voxels: dict[str, NDArray[np.int64]],
    files: dict[str, Path],
    tally: Tally,
) -> None:
    """Send random requests until the end."""
    random, session = np.random.default_rng([seed, number]), site.session()
    while time.monotonic() < end:
        kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
        case = str(random.choice(VOLUMES))
        voxel = random.choice(voxels[case]).tolist()
        if kind == "look":
            tally.send(kind, lambda: session.get(f"{site.address}/info/", timeout=120))
        elif kind == "next sample":
            tally.send(kind, lambda: session.post(f"{site.address}/activelearning/random", json={}, timeout=120))
        elif kind == "save a label":
            _save(site, session, case, files[case], tally)
        else:
            click = partial(_click, site, session, kind, case, voxel)
            reply = tally.send(kind, click, voxel)
            if reply is not None and reply.status_code < 500 and not reply.content.startswith(b"NRRD"):
                tally.note(kind, "error", f"The reply is not a mask: {reply.content[:200]!r}", voxel)
        time.sleep(random.uniform(0, MAX_PAUSE))


def _click(site: Site, session: requests.Session, kind: str, case: str, voxel: list[int]) -> requests.Response:
    params = {
        "label": "spleen", "foreground": [voxel], "background": [], "slice": voxel[2], "result_extension": ".nrrd",
        "result_dtype": "uint8", "result_compress": kind != "click, raw reply",
    }  # fmt: skip
    model = "zero_shot" if kind == "click, unadapted model" else "baps"
    address = f"{site.address}/infer/{model}?image={case}&output=image"
    return session.post(address, data={"params": json.dumps(params)}, timeout=120)


def _save(site: Site, session: requests.Session, case: str, file: Path, tally: Tally) -> None:
    params = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    address = f"{site.address}/datastore/label?image={case}"
    sent, data = {"label": (file.name, file.read_bytes())}, {"params": json.dumps(params)}
    tally.send("save a label", lambda: session.put(address, files=sent, data=data, timeout=120))


class _Trainer(threading.Thread):
    """Starts a training whenever none runs, and stops the last one at the end."""

    def __init__(self, site: Site, end: float, seed: int, tally: Tally) -> None:
        super().__init__(daemon=True)
        self._place, self._end, self._seed, self._tally = site, end, seed, tally
        self.started, self._checks, self._running = 0, 0, 0

    @property
    def share(self) -> float:
        """Fraction of the checks at which a training ran."""
        return self._running / max(1, self._checks)

    def run(self) -> None:
        address, session = f"{self._place.address}/train", self._place.session()
        while time.monotonic() < self._end:
            running = self._tally.send(
                "look at the training", lambda: session.get(f"{address}/?check_if_running=true", timeout=60)
            )
            self._checks += 1
            if running is not None and running.ok:
                self._running += 1
            else:
                params = {"label": "spleen", "max_images": 20_000, "seed": self._seed + self.started}
                start = partial(session.post, f"{address}/baps", json=params, timeout=60)
                started = self._tally.send("start a training", start)
                self.started += started is not None and started.ok
            time.sleep(2)
        self._tally.send("stop the training", lambda: session.delete(f"{address}/", timeout=60))
