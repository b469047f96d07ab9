"""Kill processes that save labels, publish adapters, train or serve at random times, and check what is on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from baps.adapters.adapter_file import read_adapter
from baps.annotations.history import LabelHistory
from baps.errors import BapsError
from baps.registry.store import AdapterStore
from benchmarks.paths import ROOT
from stress.kill.child_processes import CASE, LABEL
from stress.served_site import CASES, SAMPLES, Site, running_site, write_labels

IMAGES = 900
"""Images that one training may send to the black box."""

_ORPHAN_SECONDS = 30.0
"""Seconds after which a child process of a killed server counts as an orphan."""

Random = np.random.Generator


@dataclass
class Kills:
    """Results of the kills.

    Attributes:
        kills: number of kills, by what was killed.
        labels_lost: labels that are missing, or are neither the old nor the new one.
        adapters_lost: published adapters that cannot be read or were replaced by another one.
        resume_mismatches: resumed trainings that gave another adapter than the unbroken training.
        orphans: processes that continued after their server had been killed.
        unfinished: kills that interrupted a save or a training.
        notes: descriptions of what was wrong.
    """

    kills: dict[str, int] = field(default_factory=dict)
    labels_lost: int = 0
    adapters_lost: int = 0
    resume_mismatches: int = 0
    orphans: int = 0
    unfinished: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        """Count one kill."""
        self.kills[what] = self.kills.get(what, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        return {
            "kills": sum(self.kills.values()),
            "kills_of": self.kills,
            "labels_lost": self.labels_lost,
            "adapters_lost": self.adapters_lost,
            "resume_mismatches": self.resume_mismatches,
            "orphans": self.orphans,
            "unfinished": self.unfinished,
            "notes": self.notes,
        }


def kill_all(folder: Path, seed: int, seconds: float, share: float = 1.0) -> dict[str, Any]:
    """Run all kinds of kill, the quick ones first.

    Args:
        folder: an empty folder.
        seed: seed of the times of the kills.
        seconds: time after which no further server is killed; half of it is for trainings.
        share: fraction of the usual number of kills.
    """
    kills, random, end = Kills(), np.random.default_rng(seed), time.monotonic() + seconds

    def times(usual: int) -> int:
        return max(1, round(share * usual))

    kill_savers(folder / "labels", random, times(12), kills)
    kill_publishers(folder / "adapters", random, times(4), kills)
    kill_trainings(folder / "trainings", random, times(3), 3, kills, end - seconds / 2)
    kill_saving_servers(folder / "server", random, times(5), kills, end)
    kill_training_servers(folder / "training_server", random, times(2), kills, end)
    return kills.to_dict()


def _start_child(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # As in the server's trainings.
    return subprocess.Popen(
        [sys.executable, "-m", "stress.kill.child_processes", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def _read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _kill_child(child: subprocess.Popen[str], after: float) -> list[str]:
    """Kill a process after some seconds; return the complete lines that were not yet read."""
    time.sleep(after)
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return child.communicate()[0].split("\n")[:-1]


def _write_two_labels(folder: Path) -> list[str]:
    """Write two labels of one image; return the hash of each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_labels(folder / f"{number}.nii.gz", CASE, 3 * number) for number in range(2)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def kill_savers(folder: Path, random: Random, count: int, kills: Kills) -> None:
    """Kill a process that saves labels; the old or the new label must be left."""
    studies = folder / "studies"
    studies.mkdir(parents=True)
    image = studies / f"{CASE}.nii.gz"
    image.write_bytes((SAMPLES / "images" / image.name).read_bytes())
    listed = {"objects": {CASE: {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}}}}
    (studies / "datastore_v2.json").write_text(json.dumps(listed))
    hashes = _write_two_labels(folder / "files")
    for _ in range(count):
        child = _start_child("labels", str(studies), str(folder / "files"))
        _read_line(child)
        reported = int(_read_line(child))
        rest = _kill_child(child, random.uniform(0, 0.25))
        kills.count("a process that saves labels")
        reported = max([reported, *map(int, rest)])
        kills.unfinished += any(studies.rglob("*.saving")) or any(studies.rglob(".partial-*"))
        with _counting_losses(kills, "labels_lost"):
            history = LabelHistory(studies)
            history.repair()
            newest = history.versions(CASE, "final")[-1]
            number = newest.info["number"]
            served = hashlib.sha256((studies / "labels" / "final" / f"{CASE}.nii.gz").read_bytes()).hexdigest()
            is_right = number in (reported, reported + 1) and served == newest.sha256 == hashes[number % 2]
            if not is_right:
                raise _LostError(f"The label is number {number} where {reported} or {reported + 1} was expected.")
            for version in history.versions(CASE, "final"):
                history.version(CASE, "final", version.name)  # Raises if a version is damaged.


class _LostError(Exception):
    """Something that was saved is missing."""


class _counting_losses:  # noqa: N801 (a context manager)
    """Count an error within the context as a loss of ``what``, a field of ``Kills``."""

    def __init__(self, kills: Kills, what: str) -> None:
        self._kills, self._what = kills, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, (BapsError, _LostError, OSError, LookupError, ValueError, requests.RequestException)):
            return False
        setattr(self._kills, self._what, getattr(self._kills, self._what) + 1)
        self._kills.notes.append(f"{self._what}: {type(error).__name__}: {error}"[:500])
        return True


def kill_publishers(root: Path, random: Random, count: int, kills: Kills) -> None:
    """Kill a process that publishes adapters; the last or the next adapter must be served, and all be readable."""
    for _ in range(count):
        child = _start_child("adapters", str(root))
        _read_line(child)
        reported = _read_line(child)
        rest = _kill_child(child, random.uniform(0, 0.5))
        kills.count("a process that publishes adapters")
        reported = (rest or [reported])[-1]
        with _counting_losses(kills, "adapters_lost"):
            store = AdapterStore(root)
            served = store.published(LABEL)
            if served is None or int(served[1:]) not in (int(reported[1:]), int(reported[1:]) + 1):
                raise _LostError(f"{served} is served where {reported} was published.")
            for version in store.versions(LABEL):
                store.record(LABEL, version)
                read_adapter(store.file(LABEL, version))


def _read_served(root: Path) -> tuple[bytes, dict[str, Any]]:
    """Read the stored weights of the only adapter, and its record without the entries that depend on the clock."""
    store = AdapterStore(root)
    (version,) = store.versions(LABEL)
    content = store.file(LABEL, version).read_bytes()
    record = store.record(LABEL, version)
    for name in ("created", "seconds", "replayed_images"):
        record.pop(name, None)
    return content[int.from_bytes(content[:8], "little") + 8 :], {**record, "served": store.published(LABEL)}


def kill_trainings(folder: Path, random: Random, count: int, each: int, kills: Kills, end: float) -> None:
    """Kill a training several times at random times; the resumed training must give the unbroken one's adapter."""
    started = time.monotonic()
    unbroken = _start_child("training", str(folder / "unbroken"), "3", str(IMAGES))
    _read_line(unbroken)
    startup_seconds = time.monotonic() - started
    if not unbroken.communicate()[0].split("\n")[-2].startswith("done"):
        raise RuntimeError("The unbroken training failed.")
    seconds = time.monotonic() - started
    expected = _read_served(folder / "unbroken")
    for number in range(count):
        if number and time.monotonic() > end:
            break
        broken = folder / f"broken_{number}"
        for _ in range(each):
            child = _start_child("training", str(broken), "3", str(IMAGES))
            # Between its first imports and its end: most kills interrupt the training itself.
            _kill_child(child, random.uniform(0.5 * startup_seconds, seconds))
            kills.count("a training")
            kills.unfinished += not AdapterStore(broken).versions(LABEL)
        last = _start_child("training", str(broken), "3", str(IMAGES))
        last.communicate()
        _compare_with_unbroken(broken, expected, f"training {number}", kills)


def _kill_server(site: Site, kills: Kills, what: str) -> None:
    """Kill a server; its child processes must end by themselves."""
    children = site.process.children(recursive=True)
    site.process.kill()
    kills.count(what)
    _, alive = psutil.wait_procs([site.process, *children], timeout=_ORPHAN_SECONDS)
    for orphan in alive:
        kills.orphans += 1
        kills.notes.append(f"orphan: {' '.join(orphan.cmdline())[:200]}")
        orphan.kill()


def kill_saving_servers(folder: Path, random: Random, count: int, kills: Kills, end: float) -> None:
    """Kill a server while it saves labels without a pause; the next server must serve the old or the new label."""
    _write_two_labels(folder.parent / "server_files")
    reported: list[int] = []
    for number in range(count + 1):
        with running_site(folder, CASES[:2], resume=number > 0) as site:
            if number:
                _check_label(site, number - 1, reported, kills)
            if number == count or time.monotonic() > end:
                break
            reported = _save_until_killed(site, random, number, kills)
        studies = folder / "studies"
        kills.unfinished += any(studies.rglob("*.saving")) or any(studies.rglob(".partial-*"))


def _save_until_killed(site: Site, random: Random, number: int, kills: Kills) -> list[int]:
    """Save two labels in turn and kill the server meanwhile; return the turns that it reported as saved."""
    reported: list[int] = []
    first_saved = threading.Event()

    def save() -> None:
        session = site.session()
        with suppress(requests.RequestException):
            for turn in range(100_000):
                file = site.folder.parent / "server_files" / f"{turn % 2}.nii.gz"
                session.put(
                    f"{site.address}/datastore/label?image={CASE}",
                    files={"label": (file.name, file.read_bytes())},
                    data={"params": json.dumps({"comment": f"{number} {turn}"})},
                    timeout=60,
                ).raise_for_status()
                reported.append(turn)
                first_saved.set()

    thread = threading.Thread(target=save, daemon=True)
    thread.start()
    first_saved.wait(120)
    time.sleep(random.uniform(0.1, 3))
    _kill_server(site, kills, "a server that saves labels")
    thread.join(120)
    return reported


def _check_label(site: Site, number: int, reported: list[int], kills: Kills) -> None:
    """Check that the served label is the last one reported as saved, or the one that was being saved."""
    with _counting_losses(kills, "labels_lost"):
        if not reported:
            raise _LostError("No label was saved before the kill.")
        session = site.session()
        info = session.get(f"{site.address}/datastore/label/info?label={CASE}&tag=final", timeout=60).json()
        saved, turn = map(int, info["comment"].split())
        if saved != number or turn not in (reported[-1], reported[-1] + 1):
            raise _LostError(f"Label {saved} {turn} is served where {number} {reported[-1]} was saved last.")
        served = session.get(f"{site.address}/datastore/label?label={CASE}&tag=final", timeout=60).content
        if served != (site.folder.parent / "server_files" / f"{turn % 2}.nii.gz").read_bytes():
            raise _LostError(f"The label that is served is not number {turn}, as it says.")


def kill_training_servers(folder: Path, random: Random, count: int, kills: Kills, end: float) -> None:
    """Kill a server during a training; the training must end, and resume on the next server to the same adapter."""
    parameters = {"max_images": IMAGES, "label": LABEL, "seed": 3}
    with running_site(folder / "unbroken", CASES[:2]) as site:
        _save_labels(site)
        _start_training(site, parameters)
        _wait_for_training(site)
    expected = _read_served(folder / "unbroken" / "adapters")
    for number in range(count):
        if time.monotonic() > end:
            break
        broken = folder / f"broken_{number}"
        with running_site(broken, CASES[:2]) as site:
            _save_labels(site)
            _start_training(site, parameters)
            log = AdapterStore(site.adapters).log(LABEL)
            deadline = time.monotonic() + 120
            while not log.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(random.uniform(0, 4))
            kills.unfinished += log.exists()
            _kill_server(site, kills, "a server that trains")
        with running_site(broken, resume=True) as site:
            _start_training(site, parameters)
            _wait_for_training(site)
        _compare_with_unbroken(broken / "adapters", expected, f"training {number} of a server", kills)


def _compare_with_unbroken(root: Path, expected: tuple[bytes, dict[str, Any]], what: str, kills: Kills) -> None:
    """Record a resumed training whose adapter differs from the unbroken training's."""
    try:
        same, why = _read_served(root) == expected, "another adapter"
    except (BapsError, OSError, ValueError) as error:
        same, why = False, f"{type(error).__name__}: {error}"
    if not same:
        kills.resume_mismatches += 1
        kills.notes.append(f"{what} gave {why}"[:500])


def _save_labels(site: Site) -> None:
    session = site.session()
    for case in CASES[:2]:
        file = write_labels(site.folder / "tmp" / f"{case}.nii.gz", case)
        session.put(
            f"{site.address}/datastore/label?image={case}",
            files={"label": (file.name, file.read_bytes())},
            timeout=60,
        ).raise_for_status()


def _start_training(site: Site, parameters: dict[str, Any]) -> None:
    site.session().post(f"{site.address}/train/baps", json=parameters, timeout=60).raise_for_status()


def _wait_for_training(site: Site) -> None:
    """Wait until the training has ended."""
    session, deadline = site.session(), time.monotonic() + 300
    while time.monotonic() < deadline:
        stats = session.get(f"{site.address}/info/", timeout=60).json()["train_stats"]["baps"]
        running = session.get(f"{site.address}/train/?check_if_running=true", timeout=60).ok
        if "total_time" in stats and not running:
            return
        time.sleep(0.5)
    raise RuntimeError("A training did not end within five minutes.")
