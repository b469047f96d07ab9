"""MONAI Label's own SAM2, as its sample apps serve it, for comparison in ``benchmarks/interactive/clicks.py``.

The files that ``MONAI_SAM_MODEL_PT`` and ``MONAI_SAM_MODEL_CFG`` name must be in the folder of ``--conf model_dir``.
"""

from __future__ import annotations

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.sam2.infer import Sam2InferTask
from monailabel.tasks.activelearning.random import Random


class StockApp(MONAILabelApp):
    """An app with one model."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="stock SAM2", labels=["organ"])

    def init_infers(self) -> dict[str, InferTask]:
        return {"sam2": Sam2InferTask(self.conf["model_dir"], type=InferType.DEEPGROW, dimension=2)}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"random": Random()}
