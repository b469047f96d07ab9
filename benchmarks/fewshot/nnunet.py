"""Train nnU-Net on the same volumes, as the baseline that starts without a foundation model.

Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*, Nature
Methods 2021. Its network, augmentation, loss and optimiser are its own; the images are those that the other arms see.
It runs in an environment of its own, because it pins other versions than MONAI Label: ``python -m venv``, ``pip install
nnunetv2``, and the path of that Python in ``BAPS_NNUNET_PYTHON``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.surface_distances import surface_distances
from baps.fseft.evaluation import OrganScores
from baps.fseft.models import OrganModel
from baps.fseft.preprocessing import PreparedVolume
from baps.fseft.volumes import LabelledVolume, PreparedReader
from baps.imaging.metrics import dice
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from benchmarks.fewshot.scores import to_json

NNUNET = "nnunet"
"""Name of the arm."""

_DATASET = "Dataset001_organ"
_IMAGE = "{}_0000.nii.gz"
"""File of the first channel of an image."""


@dataclass(frozen=True)
class NnunetSettings:
    """Settings of a training.

    Attributes:
        epochs: number of epochs, 1,000 in nnU-Net.
        steps: number of steps per epoch, 250 in nnU-Net; 40 steps in all are those of the arms inside the model.
        memory_gb: memory of a GPU that nnU-Net plans for, 8 in nnU-Net; with 1, a step has two cubes of 64 voxels.
    """

    epochs: int = 10
    steps: int = 4
    memory_gb: float = 1.0


def nnunet_python() -> str | None:
    """Return the Python that has nnU-Net, or None if there is none."""
    if python := os.environ.get("BAPS_NNUNET_PYTHON"):
        return python
    return sys.executable if importlib.util.find_spec("nnunetv2") else None


def train_nnunet(
    model: OrganModel,
    volumes: Sequence[LabelledVolume],
    test: Sequence[Case],
    settings: NnunetSettings,
    seed: int,
) -> dict[str, Any]:
    """Train nnU-Net on volumes, and score it on test volumes.

    Args:
        model: gives the spacing and the window of the images; its weights are not used.
        volumes: the labelled volumes to train on.
        test: the test volumes.
        settings: the settings of the training.
        seed: seed of weights, patches and augmentation.

    Returns:
        Scores, skipped volumes and costs, as JSON.
    """
    if (python := nnunet_python()) is None:
        raise RuntimeError("There is no nnU-Net: set BAPS_NNUNET_PYTHON.")
    scored: list[tuple[Case, PreparedVolume, NDArray[np.bool_]]] = []
    skipped: dict[str, str] = {}
    reader = PreparedReader(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "raw", volumes, model.spacing)
        (folder / "test").mkdir()
        for case in test:
            try:
                prepared, target = reader.read(case)
            except InputError as error:
                skipped[case.image.name] = str(error)
                continue
            write_nifti(folder / "test" / _IMAGE.format(len(scored)), _volume(prepared.image, model.spacing))
            scored.append((case, prepared, target))
        environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            **{f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")},
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
        }
        values = (settings.epochs, settings.steps, settings.memory_gb, seed)
        command = [python, str(Path(__file__).with_name("nnunet_process.py")), str(folder), *map(str, values)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"nnU-Net failed: {done.stderr[-2000:]}")
        scores = []
        for number, (case, prepared, target) in enumerate(scored):
            found = read_volume(folder / "masks" / f"{number}.nii.gz").voxels.astype(np.float32)
            mask = prepared.restore(torch.from_numpy(found[None]), floor=0.5) > 0.5
            spacing = np.linalg.norm(prepared.volume.affine[:3, :3], axis=0)
            distances = surface_distances(mask, target, spacing)
            scores.append(OrganScores(case.patient, dice(mask, target), *distances))
        return {"scores": to_json(scores), "skipped": skipped, **json.loads((folder / "costs.json").read_text())}


def write_dataset(raw: Path, volumes: Sequence[LabelledVolume], spacing: Any) -> None:
    """Write volumes as a data set of nnU-Net.

    Args:
        raw: folder of nnU-Net's data sets.
        volumes: labelled volumes of one organ.
        spacing: size of their voxels, mm.
    """
    for part in ("imagesTr", "labelsTr"):
        (raw / _DATASET / part).mkdir(parents=True)
    for number, volume in enumerate(volumes):
        target = volume.target.to(torch.uint8)
        write_nifti(raw / _DATASET / "imagesTr" / _IMAGE.format(number), _volume(volume.image, spacing))
        write_nifti(raw / _DATASET / "labelsTr" / f"{number}.nii.gz", _volume(target, spacing))
    about = {
        # The grey values of CT and MR are in [0, 1] already; nnU-Net then scales each image by its own mean and spread.
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": len(volumes),
        "file_ending": ".nii.gz",
    }
    (raw / _DATASET / "dataset.json").write_text(json.dumps(about))


def _volume(image: torch.Tensor, spacing: Any) -> Volume:
    affine = np.diag([*np.broadcast_to(np.asarray(spacing, float), 3), 1.0])
    return Volume(image[0].numpy(), affine)
