"""A small MONAI Label app to attack: two models that segment bright voxels, and MONAI Label's own datastores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import AsDiscreted, EnsureChannelFirstd, LoadImaged, SqueezeDimd
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.transform.post import Restored


class BrightInferTask(BasicInferTask):
    """Segments bright voxels.

    Args:
        weights: file of the network, which returns its input unchanged.
        label: name of the label of the mask.
    """

    def __init__(self, weights: Path, label: str) -> None:
        super().__init__(str(weights), None, InferType.SEGMENTATION, [label], 3, f"Segments {label}")

    def pre_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        return [LoadImaged(keys="image", reader="NibabelReader"), EnsureChannelFirstd(keys="image")]

    def post_transforms(self, data: Any = None) -> Sequence[Callable[..., Any]]:
        return [
            AsDiscreted(keys="pred", threshold=60),
            SqueezeDimd(keys="pred", dim=0),
            Restored(keys="pred", ref_image="image"),
        ]


class StockApp(MONAILabelApp):
    """A MONAI Label app without protections of our own."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.weights = Path(app_dir) / "bright.ts"
        if not self.weights.exists():
            torch.jit.script(torch.nn.Identity()).save(str(self.weights))
        super().__init__(app_dir, studies, conf, name="Stock", description="MONAI Label, unmodified")

    def init_infers(self) -> dict[str, InferTask]:
        return {label: BrightInferTask(self.weights, label) for label in ("liver", "spleen")}
