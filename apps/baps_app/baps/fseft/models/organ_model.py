"""Load a foundation model together with what its input volumes must be like."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from baps.blackbox.device import usable_device
from baps.blackbox.weights import load_weights
from baps.errors import InputError
from baps.fseft.models.foundation import FoundationModel
from baps.fseft.models.published import CHECKPOINTS, PUBLISHED, load_foundation_model
from baps.fseft.models.swin_unetr import build_swin_unetr
from baps.fseft.models.totalsegmentator import LICENCE, TASKS, load_totalsegmentator, read_totalsegmentator_folder
from baps.fseft.preprocessing import PreparedVolume, VoxelSize, WindowSides, preprocess
from baps.imaging.volume import Volume

BUNDLED_WEIGHTS = Path(__file__).parent / "bundled" / "organs.safetensors"

ORGAN_MODELS = ("bundled", *PUBLISHED, *TASKS)
"""Names that ``load_organ_model`` accepts."""


@dataclass(frozen=True)
class OrganModel:
    """A foundation model on its device.

    Attributes:
        name: one of ``ORGAN_MODELS``.
        network: the network.
        sha256: SHA-256 of its weights; of TotalSegmentator, of the hashes of its files.
        spacing: size of the voxels that it was trained on.
        side: sides of its sliding window, voxels.
        window: Hounsfield units of CT that are scaled to 0 and 1.
        orientation: where the axes of its images run to, such as ``RAS``.
        padding: value around its images, see ``preprocess``.
        notice: what the operator must know about its licence, or "".
    """

    name: str
    network: FoundationModel
    sha256: str
    spacing: VoxelSize = 1.5
    side: WindowSides = 96
    window: tuple[float, float] = (-175.0, 250.0)
    orientation: str = "RAS"
    padding: float | None = None
    notice: str = ""

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def prepare(self, volume: Volume) -> PreparedVolume:
        """Convert a volume to the image that the model takes, see ``preprocess``.

        Args:
            volume: a volume of any orientation.

        Returns:
            The image, and how it lies in the volume.

        Raises:
            InputError: if the volume is in colour.
        """
        return preprocess(volume, self.spacing, self.side, self.window, self.orientation, self.padding)

    def to_dict(self) -> dict[str, str]:
        """Identify the model, for the record of an adaptation.

        Returns:
            Its name, and the SHA-256 of its weights.
        """
        return {"name": self.name, "weights_sha256": self.sha256}


def load_organ_model(
    name: str = "bundled", weights: Path | None = None, sha256: str = "", device: str = "auto"
) -> OrganModel:
    """Load a foundation model.

    Args:
        name: one of ``ORGAN_MODELS``.
        weights: the checkpoint, or TotalSegmentator's folder; all models but the bundled one need it.
        sha256: expected SHA-256 of the weights, or "" for any.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        The model on its device.

    Raises:
        InputError: if there is no such name, or the weights or the device cannot be used.
        MissingExtraError: if the packages of the extra ``totalsegmentator`` are needed and not installed.
    """
    if name not in ORGAN_MODELS:
        raise InputError(f"There is no organ model named {name!r}. Known ones: {', '.join(ORGAN_MODELS)}.")
    device = usable_device(device)
    if name == "bundled":
        model = _load_bundled(weights or BUNDLED_WEIGHTS, sha256)
    elif weights is None:
        raise InputError(f"The organ model {name} needs weights: give the path of its checkpoint or folder.")
    elif name in TASKS:
        model = _load_totalsegmentator(name, weights, sha256)
    else:
        network, digest = load_foundation_model(name, weights, sha256)
        about = CHECKPOINTS[name]
        model = OrganModel(name, network, digest, about.spacing, window=about.window, orientation=about.orientation)
    model.network.to(device)
    return model


def _load_totalsegmentator(name: str, folder: Path, sha256: str) -> OrganModel:
    on_disk = read_totalsegmentator_folder(name, folder, sha256)
    network, plan = load_totalsegmentator(on_disk), on_disk.plans[0]
    return OrganModel(
        name,
        network,
        on_disk.sha256,
        plan.spacing,
        plan.patch,
        on_disk.window,
        plan.orientation,
        on_disk.padding,
        LICENCE,
    )


def _load_bundled(weights: Path, sha256: str) -> OrganModel:
    state, digest = load_weights(weights, sha256)
    try:
        record = json.loads(weights.with_suffix(".json").read_text())
        network = build_swin_unetr(record["classes"], record["features"], record["window"])
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        model = OrganModel("bundled", network.eval(), digest, float(record["spacing"]), int(record["side"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{weights} does not hold the bundled organ model with its record ({weights.stem}.json) beside it: {error}"
        ) from error
    return model
