"""A real server on the sample CT volumes, for the tests of the app."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import nibabel
import numpy as np
import psutil
from monailabel.client import MONAILabelClient
from numpy.typing import NDArray

from baps.demo.server import running_server
from tests.support.paths import ROOT

SAMPLES = ROOT / "sample-data" / "ct"


@dataclass(frozen=True)
class Site:
    """A running server and its folders."""

    address: str
    process: psutil.Process
    client: MONAILabelClient
    studies: Path
    adapters: Path
    log: Path


def site(
    folder: Path,
    stock: bool = False,
    cases: int = 6,
    extra: Callable[[], object] = lambda: None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Site]:
    """Start a server on a copy of the first sample volumes below a folder.

    ``extra`` adds other images before the start, ``settings`` are further settings.
    """
    studies = folder / "studies"
    studies.mkdir()
    for path in sorted((SAMPLES / "images").glob("*.nii.gz"))[:cases]:
        shutil.copy(path, studies)
    extra()
    adapters, log = folder / "adapters", folder / "server.log"
    settings = {"labels": "spleen=2,liver=1", "adapters": str(adapters), **settings}
    with running_server(studies, log, settings, stock) as (address, process):
        yield Site(address, process, MONAILabelClient(address, tmpdir=str(folder)), studies, adapters, log)


def sample_labels(case: str) -> NDArray[np.uint8]:
    """Read the labels of a sample volume, (I, J, K)."""
    labels: NDArray[np.uint8] = np.asarray(nibabel.load(SAMPLES / "labels" / f"{case}.nii.gz").dataobj)
    return labels


def spleen_click(case: str) -> list[int]:
    """Return a voxel well inside the spleen, on its largest slice."""
    organ = sample_labels(case) == 2
    k = int(organ.sum((0, 1)).argmax())
    i, j = np.nonzero(organ[:, :, k])
    middle = int(np.argmin((i - i.mean()) ** 2 + (j - j.mean()) ** 2))
    return [int(i[middle]), int(j[middle]), k]
