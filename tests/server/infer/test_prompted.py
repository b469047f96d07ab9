"""The infer task of clicks, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox import BlackBox
from baps.imaging.volume import Volume
from baps.inference.requests.click import Click, read_click
from baps.inference.segmenter import Segmenter
from baps.io import write_nifti
from baps.registry.store import AdapterStore
from baps.server.infer.prompted import PromptedInfer


def test_mask_and_geometry_are_of_one_volume_if_the_file_is_replaced(
    tmp_path: Path,
    new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]],
    new_black_box: Callable[..., BlackBox],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = tmp_path / "image.nii.gz"
    write_nifti(image, new_phantom()[0])
    replacement, ball = new_phantom(shape=(44, 38, 12), spacing=(1.5, 1.5, 2.5))
    saved: list[Any] = []

    def read_and_replace(request: dict[str, Any], volume: Volume, names: list[str]) -> Click:
        click = read_click(request, volume, names)
        write_nifti(image, replacement)
        return click

    def save(*arguments: Any) -> str:
        saved.append(arguments)
        return "Saved."

    monkeypatch.setattr("baps.server.infer.prompted.read_click", read_and_replace)
    segmenter = Segmenter(new_black_box(side=64), AdapterStore(tmp_path / "adapters"))
    infer = PromptedInfer(lambda: segmenter, tmp_path / "clicks.lock", {"ball": 1}, save, adapted=True)
    file, _ = infer({"image": str(image), "foreground": [[20, 18, 6]], "save_as": "ball"})
    voxels, header = nrrd.read(file)
    assert voxels.shape == replacement.shape
    assert voxels[..., 6].sum() == pytest.approx(ball[..., 6].sum(), rel=0.2)
    np.testing.assert_allclose(np.abs(np.diag(header["space directions"])), (1.5, 1.5, 2.5), atol=1e-5)
    ((_, volume, _, mask, *_),) = saved
    assert volume.same_geometry(replacement)
    assert mask.shape == replacement.shape
