"""Kills at random instants: of whoever saves labels, publishes adapters, trains, or serves; then what is left."""

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
from stress.kill.children import CASE, LABEL
from stress.served_site import CASES, SAMPLES, Site, site, write_labels

IMAGES = 900
"""That a training may ask."""

_ENDS_WITHIN = 30.0
"""Seconds after which a process whose server was killed is an orphan."""

Random = np.random.Generator


@dataclass
class Kills:
    """What the kills did.

    Attributes:
        kills: how many there were, by what was killed.
        labels_lost: labels that were neither the old nor the new one, or none at all.
        adapters_lost: adapters that were published and cannot be read, or that another one took the place of.
        resume_mismatches: trainings that came to another adapter than the unbroken one.
        orphans: processes that went on after their server had been killed.
        unfinished: kills that fell into a save or a training.
        notes: what was wrong, in words.
    """

    kills: dict[str, int] = field(default_factory=dict)
    labels_lost: int = 0
    adapters_lost: int = 0
    resume_mismatches: int = 0
    orphans: int = 0
    unfinished: int = 0
    notes: list[str] = field(default_factory=list)

    def killed(self, what: str) -> None:
        """Count one."""
        self.kills[what] = self.kills.get(what, 0) + 1

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
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
    """All kinds of kill, the quick ones first.

    Args:
        folder: an empty one.
        seed: of the instants.
        seconds: after which no further server is killed; half of them are for trainings.
        share: of the usual number of kills.
    """
    found, random, end = Kills(), np.random.default_rng(seed), time.monotonic() + seconds

    def times(usual: int) -> int:
        return max(1, round(share * usual))

    kill_savers(folder / "labels", random, times(12), found)
    kill_publishers(folder / "adapters", random, times(4), found)
    kill_trainings(folder / "trainings", random, times(3), 3, found, end - seconds / 2)
    kill_saving_servers(folder / "server", random, times(5), found, end)
    kill_training_servers(folder / "training_server", random, times(2), found, end)
    return found.record()


def _started(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # As the server's trainings have it.
    return subprocess.Popen(
        [sys.executable, "-m", "stress.kill.children", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def _said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _killed(child: subprocess.Popen[str], after: float) -> list[str]:
    """Kill a process after some seconds; the lines that it had not been asked for, whole ones."""
    time.sleep(after)
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return child.communicate()[0].split("\n")[:-1]


def _two_labels(folder: Path) -> list[str]:
    """Two labels of one image; the hash of each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_labels(folder / f"{number}.nii.gz", CASE, 3 * number) for number in range(2)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def kill_savers(folder: Path, random: Random, count: int, found: Kills) -> None:
    """Of a process that does nothing but save labels."""
    studies = folder / "studies"
    studies.mkdir(parents=True)
    image = studies / f"{CASE}.nii.gz"
    image.write_bytes((SAMPLES / "images" / image.name).read_bytes())
    listed = {"objects": {CASE: {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}}}}
    (studies / "datastore_v2.json").write_text(json.dumps(listed))
    hashes = _two_labels(folder / "files")
    for _ in range(count):
        child = _started("labels", str(studies), str(folder / "files"))
        _said(child)
        told = int(_said(child))
        rest = _killed(child, random.uniform(0, 0.25))
        found.killed("a process that saves labels")
        told = max([told, *map(int, rest)])
        found.unfinished += any(studies.rglob("*.saving")) or any(studies.rglob(".partial-*"))
        with _lost(found, "labels_lost"):
            history = LabelHistory(studies)
            history.repair()
            newest = history.versions(CASE, "final")[-1]
            number = newest.info["number"]
            served = hashlib.sha256((studies / "labels" / "final" / f"{CASE}.nii.gz").read_bytes()).hexdigest()
            right = number in (told, told + 1) and served == newest.sha256 == hashes[number % 2]
            if not right:
                raise _LostError(f"The label is number {number} where {told} or {told + 1} was expected.")
            for version in history.versions(CASE, "final"):
                history.version(CASE, "final", version.name)  # Each one is whole.


class _LostError(Exception):
    """What was saved is not there."""


class _lost:  # noqa: N801 (it reads as a word)
    """Count what is lost in the context."""

    def __init__(self, found: Kills, what: str) -> None:
        self._found, self._what = found, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, (BapsError, _LostError, OSError, LookupError, ValueError, requests.RequestException)):
            return False
        setattr(self._found, self._what, getattr(self._found, self._what) + 1)
        self._found.notes.append(f"{self._what}: {type(error).__name__}: {error}"[:500])
        return True


def kill_publishers(root: Path, random: Random, count: int, found: Kills) -> None:
    """Of a process that does nothing but publish adapters."""
    for _ in range(count):
        child = _started("adapters", str(root))
        _said(child)
        told = _said(child)
        rest = _killed(child, random.uniform(0, 0.5))
        found.killed("a process that publishes adapters")
        told = (rest or [told])[-1]
        with _lost(found, "adapters_lost"):
            store = AdapterStore(root)
            served = store.published(LABEL)
            if served is None or int(served[1:]) not in (int(told[1:]), int(told[1:]) + 1):
                raise _LostError(f"{served} is served where {told} was published.")
            for version in store.versions(LABEL):
                store.record(LABEL, version)
                read_adapter(store.file(LABEL, version))


def _weights(root: Path) -> tuple[bytes, dict[str, Any]]:
    """The weights of the only adapter, as they are on the disk, and its record without what differs by the clock."""
    store = AdapterStore(root)
    (version,) = store.versions(LABEL)
    content = store.file(LABEL, version).read_bytes()
    record = store.record(LABEL, version)
    for name in ("created", "seconds", "replayed_images"):
        record.pop(name, None)
    return content[int.from_bytes(content[:8], "little") + 8 :], {**record, "served": store.published(LABEL)}


def kill_trainings(folder: Path, random: Random, count: int, each: int, found: Kills, end: float) -> None:
    """Of a training process, several times at random moments of its clock; what comes out equals the unbroken one."""
    begun = time.monotonic()
    whole = _started("training", str(folder / "unbroken"), "3", str(IMAGES))
    _said(whole)
    start = time.monotonic() - begun
    if not whole.communicate()[0].split("\n")[-2].startswith("done"):
        raise RuntimeError("The unbroken training failed.")
    took = time.monotonic() - begun
    expected = _weights(folder / "unbroken")
    for number in range(count):
        if number and time.monotonic() > end:
            break
        place = folder / f"broken_{number}"
        for _ in range(each):
            child = _started("training", str(place), "3", str(IMAGES))
            # From its first import to its end: most kills fall into the training itself.
            _killed(child, random.uniform(0.5 * start, took))
            found.killed("a training")
            found.unfinished += not AdapterStore(place).versions(LABEL)
        last = _started("training", str(place), "3", str(IMAGES))
        last.communicate()
        _compare(place, expected, f"training {number}", found)


def _kill_server(place: Site, found: Kills, what: str) -> None:
    """Kill a server; what it had started must end by itself."""
    started = place.process.children(recursive=True)
    place.process.kill()
    found.killed(what)
    _, alive = psutil.wait_procs([place.process, *started], timeout=_ENDS_WITHIN)
    for left in alive:
        found.orphans += 1
        found.notes.append(f"orphan: {' '.join(left.cmdline())[:200]}")
        left.kill()


def kill_saving_servers(folder: Path, random: Random, count: int, found: Kills, end: float) -> None:
    """Of a server that saves labels that come without a pause; the next one must serve the old or the new one."""
    _two_labels(folder.parent / "server_files")
    told: list[int] = []
    for number in range(count + 1):
        with site(folder, CASES[:2], kept=number > 0) as place:
            if number:
                _check_label(place, number - 1, told, found)
            if number == count or time.monotonic() > end:
                break
            told = _saved_until_killed(place, random, number, found)
        studies = folder / "studies"
        found.unfinished += any(studies.rglob("*.saving")) or any(studies.rglob(".partial-*"))


def _saved_until_killed(place: Site, random: Random, number: int, found: Kills) -> list[int]:
    """Save the two labels in turn, and kill the server meanwhile; the turns that it has told as saved."""
    told: list[int] = []
    begun = threading.Event()

    def save() -> None:
        session = place.session()
        with suppress(requests.RequestException):
            for turn in range(100_000):
                file = place.folder.parent / "server_files" / f"{turn % 2}.nii.gz"
                session.put(
                    f"{place.address}/datastore/label?image={CASE}",
                    files={"label": (file.name, file.read_bytes())},
                    data={"params": json.dumps({"comment": f"{number} {turn}"})},
                    timeout=60,
                ).raise_for_status()
                told.append(turn)
                begun.set()

    thread = threading.Thread(target=save, daemon=True)
    thread.start()
    begun.wait(120)
    time.sleep(random.uniform(0.1, 3))
    _kill_server(place, found, "a server that saves labels")
    thread.join(120)
    return told


def _check_label(place: Site, number: int, told: list[int], found: Kills) -> None:
    """What is served is what was told as saved last, or what was being saved."""
    with _lost(found, "labels_lost"):
        if not told:
            raise _LostError("No label was saved before the kill.")
        session = place.session()
        info = session.get(f"{place.address}/datastore/label/info?label={CASE}&tag=final", timeout=60).json()
        saved, turn = map(int, info["comment"].split())
        if saved != number or turn not in (told[-1], told[-1] + 1):
            raise _LostError(f"Label {saved} {turn} is served where {number} {told[-1]} was saved last.")
        served = session.get(f"{place.address}/datastore/label?label={CASE}&tag=final", timeout=60).content
        if served != (place.folder.parent / "server_files" / f"{turn % 2}.nii.gz").read_bytes():
            raise _LostError(f"The label that is served is not number {turn}, as it says.")


def kill_training_servers(folder: Path, random: Random, count: int, found: Kills, end: float) -> None:
    """Of a server whose training runs; the training ends with it, and goes on with the next one to the same adapter."""
    wanted = {"max_images": IMAGES, "label": LABEL, "seed": 3}
    with site(folder / "unbroken", CASES[:2]) as place:
        _label(place)
        _train(place, wanted)
        _wait(place)
    expected = _weights(folder / "unbroken" / "adapters")
    for number in range(count):
        if time.monotonic() > end:
            break
        broken = folder / f"broken_{number}"
        with site(broken, CASES[:2]) as place:
            _label(place)
            _train(place, wanted)
            log = AdapterStore(place.adapters).log(LABEL)
            deadline = time.monotonic() + 120
            while not log.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(random.uniform(0, 4))
            found.unfinished += log.exists()
            _kill_server(place, found, "a server that trains")
        with site(broken, kept=True) as place:
            _train(place, wanted)
            _wait(place)
        _compare(broken / "adapters", expected, f"training {number} of a server", found)


def _compare(root: Path, expected: tuple[bytes, dict[str, Any]], what: str, found: Kills) -> None:
    """Note where a training that was broken off came to something else than an unbroken one."""
    try:
        same, why = _weights(root) == expected, "another adapter"
    except (BapsError, OSError, ValueError) as error:
        same, why = False, f"{type(error).__name__}: {error}"
    if not same:
        found.resume_mismatches += 1
        found.notes.append(f"{what} came to {why}"[:500])


def _label(place: Site) -> None:
    session = place.session()
    for case in CASES[:2]:
        file = write_labels(place.folder / "tmp" / f"{case}.nii.gz", case)
        session.put(
            f"{place.address}/datastore/label?image={case}",
            files={"label": (file.name, file.read_bytes())},
            timeout=60,
        ).raise_for_status()


def _train(place: Site, wanted: dict[str, Any]) -> None:
    place.session().post(f"{place.address}/train/baps", json=wanted, timeout=60).raise_for_status()


def _wait(place: Site) -> None:
    """Until the training has ended."""
    session, deadline = place.session(), time.monotonic() + 300
    while time.monotonic() < deadline:
        stats = session.get(f"{place.address}/info/", timeout=60).json()["train_stats"]["baps"]
        running = session.get(f"{place.address}/train/?check_if_running=true", timeout=60).ok
        if "total_time" in stats and not running:
            return
        time.sleep(0.5)
    raise RuntimeError("A training did not end within five minutes.")
