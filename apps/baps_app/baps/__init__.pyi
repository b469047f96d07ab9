from .adapters.adapter import Adapter
from .adapters.adapter_file import read_adapter, write_adapter
from .api import (
    adapt,
    adapt_organ,
    evaluate,
    load_black_box,
    load_organ_model,
    read_volume,
    segment,
    segment_organ,
    write_volume,
)
from .blackbox import BlackBox, RemoteSettings
from .errors import BapsError, InputError, NotFoundError
from .evaluation.cases import Case
from .evaluation.evaluate import Evaluation
from .fseft.adaptation import OrganAdaptation, OrganSettings
from .fseft.adapter_file import read_organ_adapter
from .imaging.metrics import dice
from .imaging.volume import Volume
from .prompts import Prompt
from .training.adapt import Adaptation
from .training.settings import AdaptationSettings

__all__ = [
    "Adaptation",
    "AdaptationSettings",
    "Adapter",
    "BapsError",
    "BlackBox",
    "Case",
    "Evaluation",
    "InputError",
    "NotFoundError",
    "OrganAdaptation",
    "OrganSettings",
    "Prompt",
    "RemoteSettings",
    "Volume",
    "adapt",
    "adapt_organ",
    "dice",
    "evaluate",
    "load_black_box",
    "load_organ_model",
    "read_adapter",
    "read_organ_adapter",
    "read_volume",
    "segment",
    "segment_organ",
    "write_adapter",
    "write_volume",
]
