"""Start a server with users on the sample volumes, for the parts of ``stress/run.py``."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import requests
from numpy.typing import NDArray

from baps.demo.server import running_server
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti
from baps.site.roles import Role
from baps.site.users import Users
from benchmarks.paths import ROOT

SAMPLES = ROOT / "sample-data" / "ct"
LABELS = {"liver": 1, "spleen": 2}
CASES = tuple(f"ct_{number:02d}" for number in range(1, 12))

Voxel = tuple[int, int, int]

_EXPECTED_FILES = re.compile(
    r"studies(/(images|labels|labels-history|\.converted)(/.*)?|/[^/]+\.(nii|nii\.gz|nrrd|mha|dcm|png|jpe?g|tiff?|npz)|"
    r"/datastore_v2\.json|/\.label-checks\.json|/\.lock|/\.partial-.*)?|adapters(/.*)?|tmp(/.*)?|home(/.*)?|"
    r"server\.log|\.?users\.json.*"
)
"""Paths that the server may write below its folder."""


@dataclass(frozen=True)
class Site:
    """A running server.

    Attributes:
        folder: holds everything that the server writes: ``studies``, ``adapters``, ``home``, ``tmp``.
        address: URL of the server.
        process: the server's process.
        token: token of an admin.
    """

    folder: Path
    address: str
    process: psutil.Process
    token: str

    @property
    def studies(self) -> Path:
        """Folder of the images and labels."""
        return self.folder / "studies"

    @property
    def adapters(self) -> Path:
        """Folder of the adapters."""
        return self.folder / "adapters"

    def session(self) -> requests.Session:
        """Create an HTTP session with the token, for one thread."""
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {self.token}"
        session.trust_env = False
        return session


@contextmanager
def running_site(
    folder: Path, cases: tuple[str, ...] = CASES, resume: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Site]:
    """Start a server on copies of sample volumes, and stop it and its child processes at the end.

    Args:
        folder: folder for everything that the server writes.
        cases: names of the sample volumes.
        resume: continue with the files that are already in the folder.
        settings: settings of the server that replace the usual ones.
    """
    users = folder / "users.json"
    if not resume:
        for name in ("studies", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        for case in cases:
            (folder / "studies" / f"{case}.nii.gz").write_bytes((SAMPLES / "images" / f"{case}.nii.gz").read_bytes())
    token = Users(users).renew("bench") if resume else Users(users).add("bench", Role.ADMIN)
    chosen = {
        "labels": ",".join(f"{name}={value}" for name, value in LABELS.items()), "device": "cpu",
        "adapters": str(folder / "adapters"), "users": str(users), "max_upload_mb": "64", "max_volume_mb": "256",
        **(settings or {}),
    }  # fmt: skip
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OMP_WAIT_POLICY": "PASSIVE"}
    with ExitStack() as stack:
        with patch.dict(os.environ, own):  # For the server only.
            started = stack.enter_context(running_server(folder / "studies", folder / "server.log", chosen))
        yield Site(folder, *started, token)


def organ(case: str, name: str = "spleen") -> NDArray[np.bool_]:
    """Read the mask of an organ in a sample volume, (I, J, K)."""
    image = read_volume(SAMPLES / "images" / f"{case}.nii.gz")
    return read_labels(SAMPLES / "labels" / f"{case}.nii.gz", image) == LABELS[name]


def voxels_of(case: str, name: str = "spleen") -> NDArray[np.int64]:
    """Return the indices of all voxels of an organ, (N, 3)."""
    return np.argwhere(organ(case, name))


def write_labels(file: Path, case: str, shift: int = 0) -> Path:
    """Write the reference labels of the site's organs in a sample volume, shifted by some voxels along I."""
    image = read_volume(SAMPLES / "images" / f"{case}.nii.gz")
    labels = read_labels(SAMPLES / "labels" / f"{case}.nii.gz", image).astype(np.uint8)
    labels[~np.isin(labels, list(LABELS.values()))] = 0  # The server refuses labels without a name.
    write_nifti(file, Volume(np.roll(labels, shift, axis=0), image.affine))
    return file


def strays(folder: Path) -> list[str]:
    """List the files below a server's folder that the server should not have written."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in paths if not _EXPECTED_FILES.fullmatch(name))


def files_of(folder: Path) -> frozenset[str]:
    """List the files in a folder, except caches and the files of Python and git."""
    skip = {".git", ".venv", "__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache", ".mypy_cache", "logs", "bin"}
    names_found = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip]
        names_found |= {os.path.relpath(os.path.join(parent, name), folder) for name in names}  # noqa: PTH118
    return frozenset(names_found)


class Memory(threading.Thread):
    """Sample the resident memory of a process and its children every few seconds, while the context is open.

    Attributes:
        samples: (seconds since the start, MB of the process, MB of its children).
    """

    def __init__(self, process: psutil.Process, every: float = 2.0) -> None:
        super().__init__(daemon=True)
        self._process, self._every, self._end = process, every, threading.Event()
        self.samples: list[tuple[float, float, float]] = []

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        seconds = 0.0
        while True:
            with suppress(psutil.NoSuchProcess):
                own, others = self._process.memory_info().rss, 0
                for child in self._process.children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        others += child.memory_info().rss
                self.samples.append((seconds, own / 2**20, others / 2**20))
            if self._end.wait(self._every):
                return
            seconds += self._every

    def to_dict(self) -> dict[str, float | bool]:
        """Return the server's peak memory, MB, in the middle and last third, and whether the last one is hardly higher.

        The first third is left out, because models are loaded and caches filled in it.
        """
        own = [sample[1] for sample in self.samples] or [0.0]
        third = max(1, len(own) // 3)
        middle, last = max(own[third : 2 * third] or own), max(own[-third:])
        return {
            "server_start_mb": round(own[0], 1),
            "server_middle_peak_mb": round(middle, 1),
            "server_last_peak_mb": round(last, 1),
            "with_training_peak_mb": round(max((one + two for _, one, two in self.samples), default=0.0), 1),
            "bounded": last <= 1.1 * middle + 32,
        }
