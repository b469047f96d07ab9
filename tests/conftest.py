"""Provide small synthetic volumes, labelled slices and a cheap black box to all tests. Every seed is fixed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from baps.adapters.output_head import OutputHead
from baps.blackbox import BlackBox, load_black_box
from baps.evaluation.cases import LabelledSlice
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window
from tests.support.brightness import BrightnessBlackBox
from tests.support.faulty_server import FaultyServer, faulty_server
from tests.support.marks import mark_by_fixtures, slow_first

# A worker of xdist has a width of its own, which Rich's consoles would keep from their import on.
os.environ.pop("COLUMNS", None)

settings.register_profile(
    "baps",
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("baps")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the processes that their fixtures start, before ``-m`` selects among them."""
    mark_by_fixtures(items)
    slow_first(items)


@pytest.fixture(scope="session")
def bundled() -> BlackBox:
    return load_black_box("bundled", device="cpu")


@pytest.fixture(scope="session")
def new_black_box() -> Callable[..., BrightnessBlackBox]:
    """Make a cheap black box: ``new_black_box(batch_size=16, side=32)``."""
    return BrightnessBlackBox


@pytest.fixture
def lively_head() -> OutputHead:
    """Make a head whose large corrections depend on the prediction, the image and the click."""
    made = OutputHead(3)
    with torch.no_grad():
        made.last.weight.copy_(10 * torch.randn(made.last.weight.shape, generator=torch.Generator().manual_seed(1)))
    return made.eval()


@pytest.fixture(scope="session")
def new_phantom() -> Callable[..., tuple[Volume, NDArray[np.bool_]]]:
    """Make a volume with a bright ball in the centre, and the mask of the ball."""

    def make(
        shape: tuple[int, int, int] = (40, 36, 12),
        spacing: tuple[float, float, float] = (1.0, 1.0, 2.0),
        inside: float = 200,
        outside: float = 60,
        seed: int = 0,
    ) -> tuple[Volume, NDArray[np.bool_]]:
        random = np.random.default_rng(seed)
        where = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), -1) - np.array(shape) / 2
        millimetres = where * spacing
        radius = 0.3 * min(np.array(shape) * spacing)
        ball = np.linalg.norm(millimetres, axis=-1) < radius
        voxels = np.where(ball, inside, outside) + random.normal(0, 3, shape)
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = (20.0, 30.0, -40.0)
        return Volume(voxels.round().astype(np.int16), affine), ball

    return make


@pytest.fixture(scope="session")
def dim_slices() -> Callable[..., dict[str, list[LabelledSlice]]]:
    """Make slices by patient; each patient's dim organ lies in its own cell of a grid of 2 x 4 cells."""

    def make(patients: int, per_patient: int = 4, side: int = 32, seed: int = 0) -> dict[str, list[LabelledSlice]]:
        random = np.random.default_rng(seed)
        rows, columns = np.mgrid[:side, :side]
        found: dict[str, list[LabelledSlice]] = {}
        for number in range(patients):
            cell_y, cell_x = divmod(number, 4)
            pieces = []
            for _ in range(per_patient):
                centre_y = (cell_y + 0.5) * side / 2 + random.uniform(-1, 1)
                centre_x = (cell_x + 0.5) * side / 4 + random.uniform(-0.5, 0.5)
                target = ((rows - centre_y) / (side / 6)) ** 2 + ((columns - centre_x) / (side / 11)) ** 2 < 1
                grey = np.where(target, random.uniform(95, 115), random.uniform(30, 50))
                grey = (grey + random.normal(0, 4, grey.shape)).round().clip(0, 255).astype(np.uint8)
                image = np.repeat(grey[..., None], 3, axis=-1)
                pieces.append(LabelledSlice(f"patient {number}", image, target, Window(0, 255)))
            found[f"patient {number}"] = pieces
        return found

    return make


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """Run a server of a remote model with replies that a test chooses."""
    with faulty_server() as server:
        yield server
