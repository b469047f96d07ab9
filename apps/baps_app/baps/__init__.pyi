from .adaptation.adapt import Adaptation
from .adaptation.cases import Case
from .adaptation.settings import AdaptationSettings
from .adapter import Adapter
from .adapter_file import read_adapter, write_adapter
from .api import (
    adapt,
    adapt_organ,
    evaluate,
    load_black_box,
    load_organ_model,
    read_volume,
    segment,
    write_volume,
)
from .blackbox import BlackBox, Prompt, RemoteSettings
from .errors import BapsError, InputError, NotFoundError
from .evaluation import Evaluation
from .metrics import dice
from .volume import Volume

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
    "read_volume",
    "segment",
    "write_adapter",
    "write_volume",
]
