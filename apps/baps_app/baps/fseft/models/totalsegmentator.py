"""Load TotalSegmentator: the networks of its CT tasks ``total_fast`` (3 mm) and ``total`` (five parts, 1.5 mm).

Wasserthal et al., *TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images*, Radiology:
Artificial Intelligence 2023. The weights of version 2 are read from the folder that its own download command fills.
TotalSegmentator itself is neither installed nor run: it needs other versions of packages than MONAI Label, and sends
usage statistics.

For each of the 117 structures, the features are its log odds, ``log p - log(1 - p)``, where ``p`` is the softmax
probability of its network; a linear head selects them. The features below them would add little, because the logits
are linear in those, and 117 volumes are large already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from baps.blackbox.weights import load_weights, sha256
from baps.errors import InputError
from baps.fseft.models.foundation import FoundationModel
from baps.fseft.models.nnunet import CHECKPOINT, PLAN_FILES, NnUNetPlan, read_nnunet_plan


@dataclass(frozen=True)
class Task:
    """A task of TotalSegmentator.

    Attributes:
        name: its name in TotalSegmentator's commands.
        datasets: nnU-Net's numbers of its networks.
    """

    name: str
    datasets: tuple[int, ...]


TASKS = {
    "totalsegmentator": Task("total_fast", (297,)),
    "totalsegmentator_full": Task("total", (291, 292, 293, 294, 295)),
}
"""Tasks by the name of the organ model."""

STRUCTURES = 117
"""Number of structures of each task."""

LICENCE = (
    "TotalSegmentator's code is Apache-2.0, and its authors call the weights of total and total_fast openly available "
    "for any usage. Many of its other tasks need a licence; they are not read here. It is not a medical device. Cite "
    "Wasserthal et al. 2023 and Isensee et al. 2021."
)
"""What the operator must know about the licence."""

_SCALE = 5.0
"""Typical log odds of a confident output; adapters read features of unit size."""


@dataclass(frozen=True)
class TotalSegmentatorFolder:
    """The networks of a task on disk.

    Attributes:
        folders: the folder of each network.
        plans: their plans; all have the same spacing, window and orientation.
        sha256: SHA-256 of the hashes of all their files.
    """

    folders: tuple[Path, ...]
    plans: tuple[NnUNetPlan, ...]
    sha256: str

    @property
    def window(self) -> tuple[float, float]:
        """Hounsfield units that are scaled to 0 and 1: the range of all networks."""
        return min(plan.window[0] for plan in self.plans), max(plan.window[1] for plan in self.plans)

    @property
    def padding(self) -> float:
        """Value around an image: nnU-Net pads with the mean of a network's intensities; this is the mean over all."""
        low, high = self.window
        return (sum(plan.mean for plan in self.plans) / len(self.plans) - low) / (high - low)


class _Body(nn.Module):
    """The networks, from an image in [0, 1] to the log odds of all structures.

    Args:
        plans: their plans.
        window: Hounsfield units of 0 and 1.
    """

    def __init__(self, plans: Sequence[NnUNetPlan], window: tuple[float, float]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(plan.build() for plan in plans)
        self._plans, (self._low, self._high) = tuple(plans), window

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hounsfield = images * (self._high - self._low) + self._low
        odds = [
            _log_odds(network((hounsfield.clamp(*plan.window) - plan.mean) / plan.std))[:, 1:]
            for network, plan in zip(self.parts, self._plans, strict=True)
        ]
        return torch.cat(odds, 1) / _SCALE


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Compute the log odds of each class against all others together, (B, K, H, W, D) from logits of this shape."""
    probability = logits.log_softmax(1)
    # The difference to 1 of a probability of nearly 1 would be lost: the most likely class is computed from the others.
    highest, index = logits.max(1, keepdim=True)
    rest = logits.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
    odds = probability - torch.log1p(-probability.scatter(1, index, -torch.inf).exp())
    return odds.scatter(1, index, highest - rest)


def read_totalsegmentator_folder(name: str, folder: Path, expected_sha256: str = "") -> TotalSegmentatorFolder:
    """Find the networks of a task, and read their plans; no weights are loaded.

    Args:
        name: one of ``TASKS``.
        folder: the folder that TotalSegmentator's download command filled, or that of one of its networks.
        expected_sha256: expected ``TotalSegmentatorFolder.sha256``, or "" for any.

    Returns:
        The networks.

    Raises:
        InputError: if it is another folder, a part is missing, or the hash differs.
    """
    task = TASKS[name]
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, which the organ model {name} needs. {_remedy(task)}")
    if folder.name.startswith("Dataset"):
        folder = folder.parent
    folders = [_find_network(name, folder, dataset) for dataset in task.datasets]
    files = [part / file for part in folders for file in (*PLAN_FILES, CHECKPOINT)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise InputError(f"A part of the organ model {name} is missing: {missing}. {_remedy(task)}")
    try:
        digest = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    except OSError as error:
        raise InputError(f"The organ model {name} cannot be read: {error}. Give the server read permission.") from error
    if expected_sha256 and digest != expected_sha256.lower():
        raise InputError(
            f"The files of the organ model {name} in {folder} have SHA-256 {digest}, but {expected_sha256} was "
            "expected. Fetch them again, or give the hash that you trust."
        )
    plans = [read_nnunet_plan(part) for part in folders]
    if len({(plan.spacing, plan.patch, plan.orientation, plan.multiple) for plan in plans}) > 1:
        raise InputError(f"The networks of {name} in {folder} see images of different kinds. {_remedy(task)}")
    structures = {structure for plan in plans for structure in plan.classes}
    if len(structures) != STRUCTURES or sum(len(plan.classes) for plan in plans) != STRUCTURES:
        raise InputError(
            f"The organ model {name} in {folder} has {len(structures)} structures, and version 2 has {STRUCTURES}. "
            f"{_remedy(task)}"
        )
    return TotalSegmentatorFolder(tuple(folders), tuple(plans), digest)


def _find_network(name: str, folder: Path, dataset: int) -> Path:
    """Find the folder of a network, as nnU-Net names it."""
    found = sorted(folder.glob(f"Dataset{dataset}_TotalSegmentator_*/*__nnUNetPlans__3d_fullres"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{folder} has {len(found)} networks Dataset{dataset}. Keep the one that you want to use.")
    others = sorted(path.name for path in (*folder.glob("Dataset*"), *folder.glob("nnUNet/3d_fullres/Task*")))
    has = f"which has {', '.join(others[:6])}{' and more' * (len(others) > 6)}" if others else "which has no networks"
    raise InputError(
        f"The organ model {name} is Dataset{dataset} of TotalSegmentator, version 2, and it is not in {folder}, {has}. "
        f"{_remedy(TASKS[name])}"
    )


def _remedy(task: Task) -> str:
    return (
        f"Fetch it with TotalSegmentator's own command, totalseg_download_weights -t {task.name}, and give the folder "
        "that it fills (~/.totalsegmentator/nnunet/results, or TOTALSEG_WEIGHTS_PATH)."
    )


def load_totalsegmentator(on_disk: TotalSegmentatorFolder) -> FoundationModel:
    """Load the networks of a task as one foundation model.

    Args:
        on_disk: the networks.

    Returns:
        The model, on the CPU. Its images are clipped at ``TotalSegmentatorFolder.window``, and scaled to [0, 1].

    Raises:
        InputError: if weights cannot be read, or do not fit their plan.
        MissingExtraError: if the packages of the extra ``totalsegmentator`` are not installed.
    """
    plans = on_disk.plans
    classes = [structure for plan in plans for structure in plan.classes]
    stages = [(part, stage) for part, plan in enumerate(plans) for stage in range(len(plan.network["strides"]) - 1)]
    decoder = [f"parts.{part}.decoder.{kind}.{stage}" for part, stage in stages for kind in ("transpconvs", "stages")]
    encoder = [f"parts.{part}.encoder" for part in range(len(plans))]
    model = FoundationModel(
        lambda: _Body(plans, on_disk.window), len(classes), classes, plans[0].multiple, encoder, decoder
    )
    model.select_logits(_SCALE)
    for folder, network in zip(on_disk.folders, model.body.get_submodule("parts").children(), strict=True):
        file = folder / CHECKPOINT
        state, _ = load_weights(file)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"The weights in {file} are not those of the network in its plans.json. Fetch both again."
            ) from error
    return model.eval()
