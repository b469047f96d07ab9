"""Read a model that nnU-Net (version 2) trained: what its images are like, its classes, and its network.

Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*, Nature
Methods 2021. Everything comes from the files that its training writes beside the weights. Only the network that its
default planner chooses, a plain U-Net of one channel of CT, is built; its layers are those of
``dynamic_network_architectures``, the package that nnU-Net uses itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from baps.errors import InputError, MissingExtraError

CHECKPOINT = Path("fold_0", "checkpoint_final.pth")
"""Path of the weights in the folder of a model."""

PLAN_FILES = ("dataset.json", "plans.json")

_READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
"""nnU-Net's readers that return the axes of a file in reverse order."""

_REVERSED = "SAR"
"""Where the axes of an image run to, in the order of these readers, if those of the file run to RAS."""

_LAYERS = {
    "conv_op": "torch.nn.modules.conv.Conv3d", "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None, "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
"""Layers of nnU-Net's default network, as its plans name them."""

_MAX_STAGES, _MAX_FEATURES, _MAX_CONVOLUTIONS, _MAX_SIDE, _MAX_CLASSES = 8, 512, 8, 320, 255


@dataclass(frozen=True)
class NnUNetPlan:
    """A model's images, classes and network.

    Attributes:
        classes: names of its outputs in order, without the background, which comes first.
        spacing: size of the voxels along each axis of its images, mm.
        patch: sides of its sliding window, voxels.
        orientation: where the axes of its images run to, if its files' axes run to RAS.
        window: Hounsfield units at which images are clipped.
        mean: Hounsfield units that are subtracted after that.
        std: Hounsfield units by which the difference is divided.
        network: sizes of the network's layers, by the names of ``PlainConvUNet``'s arguments.
    """

    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    orientation: str
    window: tuple[float, float]
    mean: float
    std: float
    network: Mapping[str, Any]

    @property
    def multiple(self) -> tuple[int, int, int]:
        """Number by which the network divides each side of an image."""
        multiple: tuple[int, int, int] = tuple(np.prod(self.network["strides"], 0).tolist())
        return multiple

    def build(self) -> nn.Module:
        """Build the network with random weights, on the CPU.

        Returns:
            It converts images (B, 1, H, W, D) to logits (B, K + 1, H, W, D), whose sides must be multiples of
                ``multiple``.

        Raises:
            MissingExtraError: if the packages of the extra ``totalsegmentator`` are not installed.
        """
        try:
            from dynamic_network_architectures.architectures.unet import PlainConvUNet
        except ImportError as error:
            raise MissingExtraError("A network of nnU-Net", "totalsegmentator") from error
        network: nn.Module = PlainConvUNet(
            1,
            len(self.network["strides"]),
            num_classes=len(self.classes) + 1,
            conv_op=nn.Conv3d,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs=_LAYERS["norm_op_kwargs"],
            nonlin=nn.LeakyReLU,
            nonlin_kwargs=_LAYERS["nonlin_kwargs"],
            **self.network,
        )
        return network


def read_nnunet_plan(folder: Path) -> NnUNetPlan:
    """Read the plan of a model.

    Args:
        folder: folder that holds ``plans.json`` and ``dataset.json``.

    Returns:
        The plan.

    Raises:
        InputError: if the files cannot be read, or describe another kind of model.
    """
    try:
        dataset, plans = (json.loads((folder / name).read_text()) for name in PLAN_FILES)
        plan = _parse_plan(dataset, plans)
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} has no plans.json and dataset.json of a 3D U-Net of nnU-Net 2 for CT: {error}. Fetch the model "
            "again."
        ) from error
    return plan


def _parse_plan(dataset: Mapping[str, Any], plans: Mapping[str, Any]) -> NnUNetPlan:
    configuration = plans["configurations"]["3d_fullres"]
    is_ct = configuration["normalization_schemes"] == ["CTNormalization"]
    if not is_ct or plans["image_reader_writer"] not in _READERS:
        raise ValueError("it does not read CT volumes")
    numbers = {name: int(number) for name, number in dataset["labels"].items()}
    classes = sorted(numbers, key=numbers.__getitem__)
    if sorted(numbers.values()) != list(range(len(classes))) or not 2 <= len(classes) <= _MAX_CLASSES + 1:
        raise ValueError(f"labels must be 0 for the background, 1, 2 and so on, up to {_MAX_CLASSES}")
    intensities = plans.get("foreground_intensity_properties_per_channel")
    if intensities is None:  # Until nnU-Net 2.0.
        intensities = plans["foreground_intensity_properties_by_modality"]
    low, high, mean, std = (
        float(intensities["0"][name]) for name in ("percentile_00_5", "percentile_99_5", "mean", "std")
    )
    if not -np.inf < low < high < np.inf or not low <= mean <= high or not 0 < std < np.inf:
        raise ValueError(f"intensities from {low} to {high}, mean {mean}, standard deviation {std}")
    plan = NnUNetPlan(
        tuple(classes[1:]),
        _three(float, configuration["spacing"]),
        _three(int, configuration["patch_size"]),
        "".join(_REVERSED[axis] for axis in plans["transpose_forward"]),
        (low, high),
        mean,
        std,
        _read_network(configuration),
    )
    if sorted(plan.orientation) != sorted(_REVERSED) or not all(0 < size < np.inf for size in plan.spacing):
        raise ValueError(f"axes {plans['transpose_forward']}, spacing {plan.spacing}")
    if any(n % k or not 2 * k <= n <= _MAX_SIDE for n, k in zip(plan.patch, plan.multiple, strict=True)):
        raise ValueError(f"a window of {plan.patch} voxels for a network that divides sides by {plan.multiple}")
    return plan


def _three(kind: type[Any], values: Any) -> tuple[Any, Any, Any]:
    first, second, third = map(kind, values)
    return first, second, third


def _read_network(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Read the sizes of the layers, which nnU-Net 2.4 began to write in another form."""
    if "architecture" in configuration:
        name, given = (configuration["architecture"][key] for key in ("network_class_name", "arch_kwargs"))
        others = {key: given[key] for key in _LAYERS if given[key] != _LAYERS[key]}
        features = given["features_per_stage"]
        names = ("kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")
    else:
        name, given, others = configuration["UNet_class_name"], configuration, {}
        base, maximum = given["UNet_base_num_features"], given["unet_max_num_features"]
        stages = len(given["n_conv_per_stage_encoder"][:_MAX_STAGES])
        features = [min(base * 2**stage, maximum) for stage in range(stages)]
        names = ("conv_kernel_sizes", "pool_op_kernel_sizes", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder")
    if name.rpartition(".")[2] != "PlainConvUNet" or others:
        raise ValueError(f"the network {name} {others or ''}")
    kernels, strides = ([_three(int, sizes) for sizes in given[key]] for key in names[:2])
    features, encoder, decoder = (
        [int(number) for number in numbers] for numbers in (features, *map(given.get, names[2:]))
    )
    stages = len(features)
    if not (
        2 <= stages <= _MAX_STAGES
        and (len(kernels), len(strides), len(encoder), len(decoder)) == (stages, stages, stages, stages - 1)
        and all(0 < number <= _MAX_FEATURES for number in features)
        and all(0 < number <= _MAX_CONVOLUTIONS for number in encoder + decoder)
        and all({*kernel} <= {1, 3} for kernel in kernels)
        and all({*stride} <= {1, 2} for stride in strides)
    ):
        raise ValueError("layers of other sizes than nnU-Net plans")
    return {
        "features_per_stage": features,
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": encoder,
        "n_conv_per_stage_decoder": decoder,
    }
