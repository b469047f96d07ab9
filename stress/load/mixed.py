"""Sixteen clients on eight volumes while trainings run: times of the replies, errors, and memory."""

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

from stress.served_site import CASES, Memory, Site, site, voxels_of, write_labels
from stress.tally import Tally

CLIENTS = 16
VOLUMES = CASES[:8]
PAUSE = 1.0
"""Seconds that a client looks at a reply, at the most."""

KINDS = {
    "click": 0.70,
    "click, unadapted model": 0.10,
    "click, raw reply": 0.06,
    "look": 0.05,
    "next sample": 0.05,
    "save a label": 0.04,
}
"""What clients ask for, and how often."""


def load(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Start a server, label the volumes, and have clients work on them while a training runs.

    Returns:
        The tally's record, ``memory`` (see ``Memory``), ``trainings`` that were begun, and ``training_share``: of the
        time, while one ran.
    """
    tally = Tally()
    with site(folder) as place, Memory(place.process) as memory:
        files = {case: write_labels(folder / "tmp" / f"{case}.nii.gz", case) for case in VOLUMES}
        for case, file in files.items():
            _save(place, place.session(), case, file, tally)
        end = time.monotonic() + seconds
        trained = _Trained(place, end, seed, tally)
        places = {case: voxels_of(case) for case in VOLUMES}
        clients = [
            threading.Thread(target=_client, args=(place, number, end, seed, places, files, tally))
            for number in range(CLIENTS)
        ]
        for thread in (trained, *clients):
            thread.start()
        for thread in (trained, *clients):
            thread.join()
        alive = place.process.is_running()
    log = (folder / "server.log").read_text(errors="replace")
    return {
        **tally.record(),
        "seconds": round(seconds),
        "clients": CLIENTS,
        "volumes": len(VOLUMES),
        "trainings": trained.begun,
        "training_share": round(trained.share, 3),
        "memory": memory.record(),
        "alive": alive,
        "tracebacks": log.count("Traceback (most recent call last)"),
    }


def _client(
    place: Site,
    number: int,
    end: float,
    seed: int,
    places: dict[str, NDArray[np.int64]],
    files: dict[str, Path],
    tally: Tally,
) -> None:
    """One who clicks on and on."""
    random, session = np.random.default_rng([seed, number]), place.session()
    while time.monotonic() < end:
        kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
        case = str(random.choice(VOLUMES))
        voxel = random.choice(places[case]).tolist()
        if kind == "look":
            tally.ask(kind, lambda: session.get(f"{place.address}/info/", timeout=120))
        elif kind == "next sample":
            tally.ask(kind, lambda: session.post(f"{place.address}/activelearning/random", json={}, timeout=120))
        elif kind == "save a label":
            _save(place, session, case, files[case], tally)
        else:
            click = partial(_click, place, session, kind, case, voxel)
            reply = tally.ask(kind, click, voxel)
            if reply is not None and reply.status_code < 500 and not reply.content.startswith(b"NRRD"):
                tally.note(kind, "error", f"It is no mask: {reply.content[:200]!r}", voxel)
        time.sleep(random.uniform(0, PAUSE))


def _click(place: Site, session: requests.Session, kind: str, case: str, voxel: list[int]) -> requests.Response:
    params = {
        "label": "spleen", "foreground": [voxel], "background": [], "slice": voxel[2], "result_extension": ".nrrd",
        "result_dtype": "uint8", "result_compress": kind != "click, raw reply",
    }  # fmt: skip
    model = "zero_shot" if kind == "click, unadapted model" else "baps"
    address = f"{place.address}/infer/{model}?image={case}&output=image"
    return session.post(address, data={"params": json.dumps(params)}, timeout=120)


def _save(place: Site, session: requests.Session, case: str, file: Path, tally: Tally) -> None:
    said = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    address = f"{place.address}/datastore/label?image={case}"
    sent = {"label": (file.name, file.read_bytes())}
    tally.ask("save a label", lambda: session.put(address, files=sent, data={"params": json.dumps(said)}, timeout=120))


class _Trained(threading.Thread):
    """Sees to it that a training runs until the end, and stops the last one."""

    def __init__(self, place: Site, end: float, seed: int, tally: Tally) -> None:
        super().__init__(daemon=True)
        self._place, self._end, self._seed, self._tally = place, end, seed, tally
        self.begun, self._looks, self._running = 0, 0, 0

    @property
    def share(self) -> float:
        """Of the looks, those that found one running."""
        return self._running / max(1, self._looks)

    def run(self) -> None:
        address, session = f"{self._place.address}/train", self._place.session()
        while time.monotonic() < self._end:
            running = self._tally.ask(
                "look at the training", lambda: session.get(f"{address}/?check_if_running=true", timeout=60)
            )
            self._looks += 1
            if running is not None and running.ok:
                self._running += 1
            else:
                wanted = {"label": "spleen", "max_images": 20_000, "seed": self._seed + self.begun}
                begin = partial(session.post, f"{address}/baps", json=wanted, timeout=60)
                begun = self._tally.ask("start a training", begin)
                self.begun += begun is not None and begun.ok
            time.sleep(2)
        self._tally.ask("stop the training", lambda: session.delete(f"{address}/", timeout=60))
