"""Write the checkpoint folder of a tiny nnInteractive model, which the real nninteractive-server loads.

The server needs the folder of this file on PYTHONPATH, for ``TinyNetwork``. The network is one convolution. It marks a
ball around prompts on the object where the image is bright, keeps what was marked, and removes a ball around prompts
beside it. The seed adds noise to its weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

_SIDE = 7
_PATCH = 56
"""Side of its patch: more than twice the margin of 24 that the server keeps when it refines."""

_CHANNELS = {
    "image": 0,
    "mask": 1,
    "box": 2,
    "not_box": 3,
    "point": 4,
    "not_point": 5,
    "scribble": 6,
    "not_scribble": 7,
}


class TinyNetwork(nn.Conv3d):
    """A convolution from the image and seven channels of prompts to the scores of background and object."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__(input_channels, num_classes, _SIDE, padding="same")


def write_checkpoint(folder: Path, seed: int, licence: str = "") -> None:
    """Write the files of a model.

    Args:
        folder: the folder, which is made.
        seed: seed of the noise; models of two seeds differ.
        licence: first line of its file LICENSE, or "" for none.
    """
    network = TinyNetwork(len(_CHANNELS), 2)
    with torch.no_grad():
        random = torch.Generator().manual_seed(seed)
        network.weight.copy_(0.02 * torch.randn(network.weight.shape, generator=random))
        network.bias.zero_()
        grid = torch.linspace(-1, 1, _SIDE)
        ball = (grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2 <= 1.1).float()
        scores = network.weight[1]
        middle = _SIDE // 2
        for name in ("box", "point", "scribble"):
            scores[_CHANNELS[name]] += ball
            scores[_CHANNELS[f"not_{name}"]] -= 3 * ball
        scores[_CHANNELS["mask"], middle, middle, middle] += 6
        scores[_CHANNELS["image"], middle, middle, middle] += 0.2
        network.bias[1] = -3
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 1,
        "patch_size": [_PATCH] * 3,
        "median_image_size_in_voxels": [_PATCH] * 3,
        "spacing": [1, 1, 1],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "tiny_nninteractive.TinyNetwork",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
    }
    plans = {
        "dataset_name": "tiny",
        "plans_name": "tiny",
        "label_manager": "LabelManager",
        "experiment_planner_used": "none",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "original_median_spacing_after_transp": [1, 1, 1],
        "original_median_shape_after_transp": [_PATCH] * 3,
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d": configuration},
    }
    dataset = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "object": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    capability = {
        "inference_class": "nnInteractiveInferenceSession",
        "supported_interactions": dict.fromkeys(("points", "scribble", "lasso", "bbox2d", "bbox3d"), True),
    }
    files = {"plans.json": plans, "dataset.json": dataset, "inference_info.json": capability}
    (folder / "fold_0").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if licence:
        (folder / "LICENSE").write_text(f"{licence}\n")
    checkpoint = {
        "trainer_name": "nnInteractiveTrainer_stub",
        "init_args": {"configuration": "3d"},
        "network_weights": network.state_dict(),
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
