"""Load the real images beside the repository (``BAPS_REAL_DATA``), by domain and split. See the README there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from baps.errors import InputError
from baps.evaluation.cases import Case, labelled_slices
from baps.evaluation.slices import LabelledSlice
from baps.imaging.canvas import Canvas, Plane
from baps.imaging.slice_image import canvas_image
from baps.imaging.windowing import choose_window
from baps.io import read_labels, read_volume

ROOT = Path(os.environ.get("BAPS_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Domain:
    """One organ or object in one data set; the first patients are for training, the next for validation, the rest for
    testing."""

    name: str
    folder: str
    values: tuple[int, ...]
    train: int
    validation: int


def _volumes(name: str, folder: str, value: int, train: int, validation: int) -> Domain:
    return Domain(name, folder, (value,), train, validation)


DOMAINS = [
    *(
        _volumes(f"BTCV {organ}, CT", "btcv_ct", value, 6, 2)
        for organ, value in {
            "spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 6, "stomach": 7, "aorta": 8, "pancreas": 11,
        }.items()
    ),
    *(
        _volumes(f"CHAOS {organ}, MR", "chaos_mr_t2", value, 3, 1)
        for organ, value in {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}.items()
    ),
    _volumes("hippocampus, MR", "msd_hippocampus", 1, 36, 13),
    Domain("polyp, endoscopy", "kvasir_endoscopy", (), 0, 0),
    Domain("skin lesion, dermoscopy 2018", "isic2018_skin", (), 0, 0),
    Domain("lungs, chest X-ray", "jsrt_chest_xray", (), 0, 0),
    Domain("skin lesion, dermoscopy", "isic2017_skin", (), 0, 0),
    Domain("white blood cell, microscopy", "wbc_microscopy", (), 48, 16),
    *(
        Domain(f"{task}, MedScribble", f"medscribble/{task}", (), 0, 0)
        for task in (
            "ACDC", "CAMUS", "HipXRay", "OASIS", "PAXRay", "PanDental", "SCD", "WBC",
        )
    ),
]  # fmt: skip


def cases(domain: Domain, split: str) -> list[Case]:
    """List the volumes of a split, see ``slices``; the organ may be missing in some."""
    folder = ROOT / domain.folder
    return [
        Case(path, folder / "labels" / path.name, domain.values[0], _person(path)) for path in _files(domain, split)
    ]


def sha256_of_set(domain: Domain) -> str:
    """Hash the names and sizes of a set's volumes and labels, which change with its patients or labels."""
    folder = ROOT / domain.folder
    files = sorted(folder.rglob("*.nii.gz"))
    entries = [f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def _person(path: Path) -> str:
    """Name the patient of a volume: the hippocampi 2k - 1 and 2k are two sides of one person."""
    name = path.name.split(".")[0]
    if name.startswith("hippocampus_"):
        return f"hippocampus {(int(name.removeprefix('hippocampus_')) + 1) // 2}"
    return name


def _files(domain: Domain, split: str) -> list[Path]:
    folder = ROOT / domain.folder
    if (folder / "train").is_dir():  # The set is split already.
        return [] if split == "validation" else sorted((folder / split / "images").iterdir())
    images = sorted(p for p in (folder / "images" if (folder / "images").is_dir() else folder).iterdir() if p.is_file())
    first = {"train": 0, "validation": domain.train, "test": domain.train + domain.validation}[split]
    last = {"train": domain.train, "validation": domain.train + domain.validation, "test": len(images)}[split]
    return images[first:last]


def slices(domain: Domain, split: str, side: int, max_slices: int = 12) -> Iterator[list[LabelledSlice]]:
    """Load the slices of each patient of a split (``train``, ``validation``, ``test``), one list per patient."""
    folder = ROOT / domain.folder
    for _, paths in groupby(_files(domain, split), _person):
        pieces: list[LabelledSlice] = []
        for path in paths:
            if path.name.endswith(".nii.gz"):
                case = Case(path, folder / "labels" / path.name, domain.values[0], _person(path))
                with suppress(InputError):  # The patient does not have the organ, or it is too small to click on.
                    pieces += labelled_slices(case, side, max_slices)
            else:
                pieces.append(_picture(path, side))
        if pieces:
            yield pieces


def _picture(path: Path, side: int) -> LabelledSlice:
    """Load a picture and everything that is marked on it."""
    volume = read_volume(path)
    masks = next((path.parents[1] / name for name in ("masks", "labels") if (path.parents[1] / name).is_dir()), path)
    mask = path if path.suffix == ".npz" else masks / f"{path.stem}.png"
    target, plane = read_labels(mask, volume) > 0, Plane(2, 0)
    canvas, window = Canvas.fit(volume, plane, side), choose_window(volume)
    image = canvas_image(volume, plane, canvas, window)
    return LabelledSlice(path.stem, image, canvas.draw(plane.extract(target)) > 0.5, window, canvas.size)
