"""Floods: one user, or nobody, asks for far too much, while another user clicks and signs in.

Whoever floods does so from a process of its own. What counts is the other user: each request that is refused or fails
is a fault, and so is a 95th percentile of the times of clicks beyond ``SECONDS``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

from baps.site.roles import Role
from baps.site.users import Users
from stress.served_site import CASES, SAMPLES, Memory, Site, site, voxels_of, write_labels

SECONDS = 1.0
"""That clicks of others may take, at the 95th percentile."""

_CLICK_EVERY, _SIGN_IN_EVERY = 0.2, 1.0
_LASTS = 12.0
"""Seconds of a flood, at the most; of its requests those that are under way then are broken off."""

_CASES = CASES[:6]


@dataclass(frozen=True)
class Flooder:
    """Who floods a server.

    Attributes:
        address: of the server.
        token: of an annotator.
        folder: with ``label.nii.gz`` and ``image.nii.gz``.
        voxel: of an organ, by case.
        count: of requests; those that are answered are sent again until it is over.
        end: of the clock of this machine, when it is over.
    """

    address: str
    token: str
    folder: Path
    voxel: dict[str, list[int]]
    count: int
    end: float

    def ask(self, method: str, path: str, **sent: Any) -> int:
        """Send a request; the status, or 0 where there was no answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with requests.Session() as session:
                session.trust_env = False
                left = max(1.0, self.end - time.time())
                return session.request(method, self.address + path, headers=headers, timeout=left, **sent).status_code
        except requests.RequestException:
            return 0

    def at_once(self, one: Callable[[int], int], threads: int = 100) -> Counter[int]:
        """Make all requests, as many at once as there are threads, again and again; how often each status came."""
        said: Counter[int] = Counter()
        with ThreadPoolExecutor(min(threads, self.count)) as pool:
            while time.time() < self.end:
                numbers = range(said.total(), said.total() + self.count)
                said += Counter(pool.map(lambda number: one(number) if time.time() < self.end else -1, numbers))
        return said

    def half_sent(self, beginning: bytes) -> Counter[int]:
        """Send the beginning of a request over as many connections, and leave it at that."""
        where, held = urlsplit(self.address), []
        for _ in range(self.count):
            with suppress(OSError):
                one = socket.create_connection((where.hostname or "", where.port or 0), timeout=5)
                one.settimeout(0.05)
                held.append(one)
                one.sendall(beginning)
        time.sleep(max(0.0, self.end - time.time()))
        said: Counter[int] = Counter()
        for one in held:
            try:
                said[int(([*one.recv(64).split(), b"0", b"0"])[1])] += 1
            except (OSError, ValueError):
                said[0] += 1
            one.close()
        return said


def _whole_organs(by: Flooder) -> Counter[int]:
    def one(number: int) -> int:
        case = _CASES[number % len(_CASES)]
        params = json.dumps({"label": "spleen", "foreground": [by.voxel[case]], "result_extension": ".nrrd"})
        return by.ask("POST", f"/infer/whole_organ?image={case}&output=image", data={"params": params})

    return by.at_once(one)


def _clicks(by: Flooder) -> Counter[int]:
    def one(number: int) -> int:
        case = _CASES[number % len(_CASES)]
        i, j, k = by.voxel[case]
        params = json.dumps({"foreground": [[i + number % 5, j, k]], "slice": k, "result_extension": ".nrrd"})
        return by.ask("POST", f"/infer/baps?image={case}&output=image", data={"params": params})

    return by.at_once(one)


def _uploads(by: Flooder) -> Counter[int]:
    content = (by.folder / "image.nii.gz").read_bytes()

    def one(number: int) -> int:
        sent = {"file": ("image.nii.gz", content)}
        return by.ask("PUT", f"/datastore/image?image=flood-{os.getpid()}-{number}", files=sent)

    return by.at_once(one)


def _saves(by: Flooder) -> Counter[int]:
    content = (by.folder / "label.nii.gz").read_bytes()
    said = {"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]})}

    def one(_: int) -> int:
        sent = {"label": ("label.nii.gz", content)}
        return by.ask("PUT", f"/datastore/label?image={_CASES[0]}", files=sent, data=said)

    return by.at_once(one)


def _sessions(by: Flooder) -> Counter[int]:
    content = (by.folder / "image.nii.gz").read_bytes()
    return by.at_once(lambda _: by.ask("PUT", "/session/", files={"files": ("image.nii.gz", content)}))


def _unfinished(by: Flooder) -> Counter[int]:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n' + bytes(900 << 10)
    return by.half_sent(
        b"PUT /datastore/image?image=unfinished HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "
        + by.token.encode()
        + b"\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 60000000\r\n\r\n"
        + 3 * part
    )


def _small_unfinished(by: Flooder) -> Counter[int]:
    return by.half_sent(
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 1000000\r\n\r\nusername=" + bytes(900_000)
    )


def _half_headers(by: Flooder) -> Counter[int]:
    return by.half_sent(b"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")


def _nowhere(by: Flooder) -> Counter[int]:
    content = bytes(4 << 20)
    return by.at_once(lambda _: by.ask("POST", "/infer/nothing", data=content))


def _sign_ins(by: Flooder) -> Counter[int]:
    login = {"username": "flooder", "password": by.token}
    return by.at_once(lambda _: by.ask("POST", "/auth/token", data=login))


FLOODS: dict[str, tuple[int, Callable[[Flooder], Counter[int]]]] = {
    "nothing": (0, lambda _: Counter()),
    "whole organs": (45, _whole_organs),
    "clicks": (100, _clicks),
    "uploads": (60, _uploads),
    "saves to one image": (60, _saves),
    "next samples": (200, lambda by: by.at_once(lambda _: by.ask("POST", "/activelearning/random", json={}))),
    "data sets": (60, lambda by: by.at_once(lambda _: by.ask("GET", "/datastore/dataset"))),
    "sessions": (100, _sessions),
    "lists": (400, lambda by: by.at_once(lambda _: by.ask("GET", "/datastore/?output=all"))),
    "looks": (400, lambda by: by.at_once(lambda _: by.ask("GET", "/info/"))),
    "unfinished forms": (300, _unfinished),
    "unfinished logins": (300, _small_unfinished),
    "half-sent headers": (1100, _half_headers),
    "bodies to nowhere": (150, _nowhere),
    "sign-ins": (1000, _sign_ins),
}
"""What is asked for too often, and how often."""


@dataclass(eq=False)
class Other(threading.Thread):
    """Another user, who clicks and signs in until told to stop.

    Attributes:
        place: the server.
        token: of the user, ``other``.
        voxel: that is clicked on, of the last case.
        clicks, sign_ins: seconds that each took.
        faults: what went wrong, as words.
    """

    place: Site
    token: str
    voxel: list[int]
    clicks: list[float] = field(default_factory=list)
    sign_ins: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> Other:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {self.token}"
        signed_in = 0.0
        while not self._over.is_set():
            i, j, k = self.voxel
            params = json.dumps({"foreground": [[i + len(self.clicks) % 7, j, k]], "result_extension": ".nrrd"})
            address = f"{self.place.address}/infer/baps?image={_CASES[-1]}&output=image"
            begun = time.monotonic()
            self._ask(self.clicks, session, address, {"params": params})
            if time.monotonic() - signed_in > _SIGN_IN_EVERY:
                signed_in = time.monotonic()
                login = {"username": "other", "password": self.token}
                self._ask(self.sign_ins, requests.Session(), f"{self.place.address}/auth/token", login)
            self._over.wait(max(0.0, begun + _CLICK_EVERY - time.monotonic()))

    def _ask(self, times: list[float], session: requests.Session, address: str, form: dict[str, str]) -> None:
        begun = time.monotonic()
        try:
            answer = session.post(address, data=form, timeout=60)
            if not answer.ok:
                self.faults.append(f"{answer.status_code}: {answer.text[:200]}")
        except requests.RequestException as error:
            self.faults.append(type(error).__name__)
        times.append(time.monotonic() - begun)


def flood(folder: Path, seed: int = 0, share: float = 1.0, only: tuple[str, ...] = tuple(FLOODS)) -> dict[str, Any]:
    """Start a server and make each flood, one after the other.

    Args:
        folder: for all that the server writes.
        seed: of the voxels that are clicked on.
        share: of the usual number of requests, and of the time.
        only: the floods.

    Returns:
        ``floods``: their number without "nothing"; ``floods_refused_others``: the faults, which must be none; and
        ``by_name`` with the requests of each, the answers to them by status, the faults, the 95th percentiles of the
        other user's clicks and sign-ins, seconds, and the peak memory of the server, MB.
    """
    random = np.random.default_rng(seed)
    voxel = {case: random.choice(voxels_of(case)).tolist() for case in _CASES}
    found: dict[str, dict[str, Any]] = {}
    with site(folder, _CASES) as place:
        users = Users(folder / "users.json")
        tokens = {name: users.add(name, Role.ANNOTATOR) for name in ("flooder", "other")}
        write_labels(folder / "tmp" / "label.nii.gz", _CASES[0])
        (folder / "tmp" / "image.nii.gz").write_bytes((SAMPLES / "images" / f"{_CASES[0]}.nii.gz").read_bytes())
        for case in _CASES:  # All are open in a viewer.
            Flooder(place.address, tokens["other"], folder / "tmp", {case: voxel[case]}, 1, time.time() + 60).ask(
                "POST", f"/infer/baps?image={case}", data={"params": json.dumps({"foreground": [voxel[case]]})}
            )
        for name in only:
            count, _ = FLOODS[name]
            by = Flooder(
                place.address, tokens["flooder"], folder / "tmp", voxel, max(1, round(share * count)),
                time.time() + 2 + share * _LASTS,
            )  # fmt: skip
            other = Other(place, tokens["other"], voxel[_CASES[-1]])
            with Memory(place.process, 0.2) as memory, other:
                answers = _from_another_process(name, by)
            p95 = float(np.percentile(other.clicks, 95))
            slow = [f"clicks took {p95:.2f} s"] if p95 > SECONDS else []
            found[name] = {
                "requests": sum(answers.values()),
                "answers": answers,
                "faults": other.faults + slow,
                "click_p95": round(p95, 3),
                "click_longest": round(max(other.clicks), 3),
                "clicks": len(other.clicks),
                "sign_in_p95": round(float(np.percentile(other.sign_ins, 95)), 3),
                "server_peak_mb": round(max(sample[1] for sample in memory.samples), 1),
            }
            _settle(place)
    return {
        "floods": len(set(found) - {"nothing"}),
        "floods_refused_others": sum(len(row["faults"]) for name, row in found.items() if name != "nothing"),
        "by_name": found,
    }


def _from_another_process(name: str, by: Flooder) -> dict[str, int]:
    """Flood until it is over; answers by status, 0 for none and -1 for what there was no time to ask."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_flood, args=(name, by, theirs), daemon=True)
    process.start()
    said = ours.recv() if ours.poll(max(0.0, by.end - time.time()) + 30) else {}
    process.kill()
    process.join()
    return {str(status): count for status, count in sorted(said.items())}


def _flood(name: str, by: Flooder, answers: Any) -> None:
    os.nice(19)  # One who floods has a machine of their own.
    found = FLOODS[name][1](by)
    if name == "nothing":
        time.sleep(max(0.0, by.end - time.time()))
    answers.send(dict(found))


def _settle(place: Site) -> None:
    """Wait until nothing is left of a flood."""
    with suppress(requests.RequestException):
        session = place.session()
        for _ in range(60):
            if not session.get(f"{place.address}/progress/", timeout=60).json():
                return
            time.sleep(0.5)
