"""Flood the server: one client sends far too many requests while another user clicks and signs in.

The flood comes from a separate process. A flood fails if a request of the other user is refused or fails, or if the
95th percentile of the other user's click times exceeds ``MAX_CLICK_SECONDS``.
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
from stress.served_site import CASES, SAMPLES, Memory, Site, running_site, voxels_of, write_labels

MAX_CLICK_SECONDS = 1.0
"""Maximum 95th percentile of the click times of the other user."""

_CLICK_EVERY, _SIGN_IN_EVERY = 0.2, 1.0
_FLOOD_SECONDS = 12.0
"""Maximum duration of a flood, in seconds; its pending requests are then aborted."""

_CASES = CASES[:6]


@dataclass(frozen=True)
class Flooder:
    """A client that floods a server.

    Attributes:
        address: URL of the server.
        token: token of an annotator.
        folder: folder with ``label.nii.gz`` and ``image.nii.gz``.
        voxel: a voxel (i, j, k) of an organ, by case.
        count: number of requests; answered requests are sent again until the end.
        end: time when the flood ends, in seconds since the epoch.
    """

    address: str
    token: str
    folder: Path
    voxel: dict[str, list[int]]
    count: int
    end: float

    def request(self, method: str, path: str, **sent: Any) -> int:
        """Send a request; return the status, or 0 if no answer came."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with requests.Session() as session:
                session.trust_env = False
                remaining = max(1.0, self.end - time.time())
                address = self.address + path
                return session.request(method, address, headers=headers, timeout=remaining, **sent).status_code
        except requests.RequestException:
            return 0

    def repeat(self, send: Callable[[int], int], threads: int = 100) -> Counter[int]:
        """Send all requests repeatedly from several threads; count the answers by status."""
        answers: Counter[int] = Counter()
        with ThreadPoolExecutor(min(threads, self.count)) as pool:
            while time.time() < self.end:
                numbers = range(answers.total(), answers.total() + self.count)
                answers += Counter(pool.map(lambda number: send(number) if time.time() < self.end else -1, numbers))
        return answers

    def send_partially(self, beginning: bytes) -> Counter[int]:
        """Send only the beginning of a request over many connections; count the answers by status."""
        server, connections = urlsplit(self.address), []
        for _ in range(self.count):
            with suppress(OSError):
                connection = socket.create_connection((server.hostname or "", server.port or 0), timeout=5)
                connection.settimeout(0.05)
                connections.append(connection)
                connection.sendall(beginning)
        time.sleep(max(0.0, self.end - time.time()))
        answers: Counter[int] = Counter()
        for connection in connections:
            try:
                answers[int(([*connection.recv(64).split(), b"0", b"0"])[1])] += 1
            except (OSError, ValueError):
                answers[0] += 1
            connection.close()
        return answers


def _segment_whole_organs(flooder: Flooder) -> Counter[int]:
    def send(number: int) -> int:
        case = _CASES[number % len(_CASES)]
        params = json.dumps({"label": "spleen", "foreground": [flooder.voxel[case]], "result_extension": ".nrrd"})
        return flooder.request("POST", f"/infer/whole_organ?image={case}&output=image", data={"params": params})

    return flooder.repeat(send)


def _click(flooder: Flooder) -> Counter[int]:
    def send(number: int) -> int:
        case = _CASES[number % len(_CASES)]
        i, j, k = flooder.voxel[case]
        params = json.dumps({"foreground": [[i + number % 5, j, k]], "slice": k, "result_extension": ".nrrd"})
        return flooder.request("POST", f"/infer/baps?image={case}&output=image", data={"params": params})

    return flooder.repeat(send)


def _upload_images(flooder: Flooder) -> Counter[int]:
    content = (flooder.folder / "image.nii.gz").read_bytes()

    def send(number: int) -> int:
        sent = {"file": ("image.nii.gz", content)}
        return flooder.request("PUT", f"/datastore/image?image=flood-{os.getpid()}-{number}", files=sent)

    return flooder.repeat(send)


def _save_labels(flooder: Flooder) -> Counter[int]:
    content = (flooder.folder / "label.nii.gz").read_bytes()
    params = {"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]})}

    def send(_: int) -> int:
        sent = {"label": ("label.nii.gz", content)}
        return flooder.request("PUT", f"/datastore/label?image={_CASES[0]}", files=sent, data=params)

    return flooder.repeat(send)


def _open_sessions(flooder: Flooder) -> Counter[int]:
    content = (flooder.folder / "image.nii.gz").read_bytes()
    return flooder.repeat(lambda _: flooder.request("PUT", "/session/", files={"files": ("image.nii.gz", content)}))


def _send_unfinished_forms(flooder: Flooder) -> Counter[int]:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n' + bytes(900 << 10)
    return flooder.send_partially(
        b"PUT /datastore/image?image=unfinished HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "
        + flooder.token.encode()
        + b"\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 60000000\r\n\r\n"
        + 3 * part
    )


def _send_unfinished_logins(flooder: Flooder) -> Counter[int]:
    return flooder.send_partially(
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 1000000\r\n\r\nusername=" + bytes(900_000)
    )


def _send_half_headers(flooder: Flooder) -> Counter[int]:
    return flooder.send_partially(b"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")


def _send_to_unknown_model(flooder: Flooder) -> Counter[int]:
    content = bytes(4 << 20)
    return flooder.repeat(lambda _: flooder.request("POST", "/infer/nothing", data=content))


def _sign_in(flooder: Flooder) -> Counter[int]:
    login = {"username": "flooder", "password": flooder.token}
    return flooder.repeat(lambda _: flooder.request("POST", "/auth/token", data=login))


FLOODS: dict[str, tuple[int, Callable[[Flooder], Counter[int]]]] = {
    "nothing": (0, lambda _: Counter()),
    "whole organs": (45, _segment_whole_organs),
    "clicks": (100, _click),
    "uploads": (60, _upload_images),
    "saves to one image": (60, _save_labels),
    "next samples": (
        200,
        lambda flooder: flooder.repeat(lambda _: flooder.request("POST", "/activelearning/random", json={})),
    ),
    "data sets": (60, lambda flooder: flooder.repeat(lambda _: flooder.request("GET", "/datastore/dataset"))),
    "sessions": (100, _open_sessions),
    "lists": (400, lambda flooder: flooder.repeat(lambda _: flooder.request("GET", "/datastore/?output=all"))),
    "looks": (400, lambda flooder: flooder.repeat(lambda _: flooder.request("GET", "/info/"))),
    "unfinished forms": (300, _send_unfinished_forms),
    "unfinished logins": (300, _send_unfinished_logins),
    "half-sent headers": (1100, _send_half_headers),
    "bodies to nowhere": (150, _send_to_unknown_model),
    "sign-ins": (1000, _sign_in),
}
"""The floods: number of requests and the function that sends them, by name."""


@dataclass(eq=False)
class OtherUser(threading.Thread):
    """Another user, who clicks and signs in while the context is open.

    Attributes:
        site: the server.
        token: token of the user ``other_user``.
        voxel: voxel (i, j, k) of the last case that is clicked on.
        click_seconds: seconds that each click took.
        sign_in_seconds: seconds that each sign-in took.
        faults: descriptions of the requests that failed.
    """

    site: Site
    token: str
    voxel: list[int]
    click_seconds: list[float] = field(default_factory=list)
    sign_in_seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> OtherUser:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {self.token}"
        signed_in = 0.0
        while not self._ended.is_set():
            i, j, k = self.voxel
            params = json.dumps({"foreground": [[i + len(self.click_seconds) % 7, j, k]], "result_extension": ".nrrd"})
            address = f"{self.site.address}/infer/baps?image={_CASES[-1]}&output=image"
            start = time.monotonic()
            self._ask(self.click_seconds, session, address, {"params": params})
            if time.monotonic() - signed_in > _SIGN_IN_EVERY:
                signed_in = time.monotonic()
                login = {"username": "other", "password": self.token}
                self._ask(self.sign_in_seconds, requests.Session(), f"{self.site.address}/auth/token", login)
            self._ended.wait(max(0.0, start + _CLICK_EVERY - time.monotonic()))

    def _ask(self, times: list[float], session: requests.Session, address: str, form: dict[str, str]) -> None:
        start = time.monotonic()
        try:
            answer = session.post(address, data=form, timeout=60)
            if not answer.ok:
                self.faults.append(f"{answer.status_code}: {answer.text[:200]}")
        except requests.RequestException as error:
            self.faults.append(type(error).__name__)
        times.append(time.monotonic() - start)


def flood(folder: Path, seed: int = 0, share: float = 1.0, only: tuple[str, ...] = tuple(FLOODS)) -> dict[str, Any]:
    """Start a server and run each flood, one after the other.

    Args:
        folder: folder for everything that the server writes.
        seed: seed of the voxels that are clicked on.
        share: fraction of the usual number of requests and of the time.
        only: names of the floods.

    Returns:
        ``floods``: number of floods without "nothing"; ``floods_refused_others``: number of faults, which must be 0;
        and ``by_name``, with each flood's requests, answers by status and faults, the 95th percentiles of the other
        user's click and sign-in times in seconds, and the peak memory of the server in MB.
    """
    random = np.random.default_rng(seed)
    voxel = {case: random.choice(voxels_of(case)).tolist() for case in _CASES}
    results: dict[str, dict[str, Any]] = {}
    with running_site(folder, _CASES) as site:
        users = Users(folder / "users.json")
        tokens = {name: users.add(name, Role.ANNOTATOR) for name in ("flooder", "other")}
        write_labels(folder / "tmp" / "label.nii.gz", _CASES[0])
        (folder / "tmp" / "image.nii.gz").write_bytes((SAMPLES / "images" / f"{_CASES[0]}.nii.gz").read_bytes())
        for case in _CASES:  # As if every case were open in a viewer.
            Flooder(site.address, tokens["other"], folder / "tmp", {case: voxel[case]}, 1, time.time() + 60).request(
                "POST", f"/infer/baps?image={case}", data={"params": json.dumps({"foreground": [voxel[case]]})}
            )
        for name in only:
            count, _ = FLOODS[name]
            flooder = Flooder(
                site.address, tokens["flooder"], folder / "tmp", voxel, max(1, round(share * count)),
                time.time() + 2 + share * _FLOOD_SECONDS,
            )  # fmt: skip
            other_user = OtherUser(site, tokens["other"], voxel[_CASES[-1]])
            with Memory(site.process, 0.2) as memory, other_user:
                answers = _flood_from_another_process(name, flooder)
            p95 = float(np.percentile(other_user.click_seconds, 95))
            slow = [f"clicks took {p95:.2f} s"] if p95 > MAX_CLICK_SECONDS else []
            results[name] = {
                "requests": sum(answers.values()),
                "answers": answers,
                "faults": other_user.faults + slow,
                "click_p95": round(p95, 3),
                "click_longest": round(max(other_user.click_seconds), 3),
                "clicks": len(other_user.click_seconds),
                "sign_in_p95": round(float(np.percentile(other_user.sign_in_seconds, 95)), 3),
                "server_peak_mb": round(max(sample[1] for sample in memory.samples), 1),
            }
            _wait_until_idle(site)
    return {
        "floods": len(set(results) - {"nothing"}),
        "floods_refused_others": sum(len(row["faults"]) for name, row in results.items() if name != "nothing"),
        "by_name": results,
    }


def _flood_from_another_process(name: str, flooder: Flooder) -> dict[str, int]:
    """Run a flood in a child process; count the answers by status, 0 for none and -1 for requests not sent in time."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_flood, args=(name, flooder, sender), daemon=True)
    process.start()
    answers = receiver.recv() if receiver.poll(max(0.0, flooder.end - time.time()) + 30) else {}
    process.kill()
    process.join()
    return {str(status): count for status, count in sorted(answers.items())}


def _flood(name: str, flooder: Flooder, answers: Any) -> None:
    os.nice(19)  # A real flooder does not use the server's CPUs.
    results = FLOODS[name][1](flooder)
    if name == "nothing":
        time.sleep(max(0.0, flooder.end - time.time()))
    answers.send(dict(results))


def _wait_until_idle(site: Site) -> None:
    """Wait until the server has no more requests of a flood in progress."""
    with suppress(requests.RequestException):
        session = site.session()
        for _ in range(60):
            if not session.get(f"{site.address}/progress/", timeout=60).json():
                return
            time.sleep(0.5)
