"""TotalSegmentator's folder, written and answered by nnU-Net itself, which runs in ``.venv-nninteractive``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel import orientations
from numpy.typing import NDArray

from baps.imaging.volume import Volume
from tests.support.nnunet_writer import plans_of
from tests.support.paths import ROOT

ENVIRONMENT = ROOT / ".venv-nninteractive"

DATASETS = {"totalsegmentator": (297,), "totalsegmentator_full": (291, 292, 293, 294, 295)}
"""Networks by the name of the organ model."""


def write_totalsegmentator(folder: Path) -> None:
    """Write the networks to ``folder/results``, volumes, and nnU-Net's answers, see ``nnunet_writer``."""
    if not (ENVIRONMENT / "installed").exists():
        pytest.skip("nnU-Net is not installed: make .venv-nninteractive/installed")
    command = [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("nnunet_writer.py"), folder]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def read_written_volume(folder: Path, model: str, windows: str, axes: str = "PIL") -> Volume:
    """Read a volume that was written for a model, with axes that run elsewhere."""
    image = nibabel.load(folder / f"{windows} {_configuration(model)['spacing'][0]}.nii.gz")
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    return Volume(np.asarray(turned.dataobj), turned.affine)


def nnunet_log_odds(folder: Path, model: str, windows: str) -> NDArray[np.float64]:
    """Read nnU-Net's answer as log odds of each structure against all others, (K, H, W, D), in the network's axes."""
    odds = []
    for dataset in DATASETS[model]:
        logits = np.load(folder / f"{windows} {dataset}.npy").astype(np.float64)
        before = np.logaddexp.accumulate(logits)
        after = np.logaddexp.accumulate(logits[::-1])[::-1]
        others = np.logaddexp(before[:-2], after[2:])
        odds.append(logits[1:] - np.concatenate([others, before[-2:-1]]))
    return np.concatenate(odds)


def seen_once(model: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Mark the voxels of an image, in the network's axes, that lie in one window only."""
    once = np.ones(shape, bool)
    for axis, (length, side) in enumerate(zip(shape, _configuration(model)["patch_size"], strict=True)):
        if length > side:
            np.moveaxis(once, axis, 0)[length - side : side] = False
    return once


def _configuration(model: str) -> dict[str, object]:
    return plans_of(DATASETS[model][0])["configurations"]["3d_fullres"]  # type: ignore[no-any-return]
