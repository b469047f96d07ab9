"""Read photographs with instance polygons (YOLO text files), as training pictures and as a source of textures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn import functional as F

from tools.pretraining.blackbox.scenes import Scenes

PHOTOGRAPH_SIZE = 320
"""Width and height of the photographs in memory, pixels; they are cropped square around the centre."""


class Photographs:
    """All photographs of a folder in memory, with their instances.

    Args:
        folder: folder with ``images/*.jpg`` and ``labels/*.txt`` (one line per instance: class, then x y in [0, 1]).
    """

    def __init__(self, folder: Path) -> None:
        pictures, regions = [], []
        for path in sorted((folder / "images").glob("*.jpg")):
            picture = Image.open(path).convert("RGB")
            short = min(picture.size)
            scale = PHOTOGRAPH_SIZE / short
            left, top = (picture.width - short) / 2, (picture.height - short) / 2
            square = picture.resize(
                (PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE), Image.Resampling.BILINEAR, (left, top, left + short, top + short)
            )
            painted = Image.new("I", (PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE), 0)
            draw = ImageDraw.Draw(painted)
            for number, polygon in enumerate(_polygons(folder / "labels" / f"{path.stem}.txt"), start=1):
                points = polygon * (picture.width, picture.height) - (left, top)
                draw.polygon([tuple(p) for p in points * scale], fill=number)
            pictures.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
            regions.append(torch.from_numpy(np.asarray(painted).astype(np.int64)))
        if not pictures:
            raise ValueError(f"No photographs (images/*.jpg) in {folder}.")
        self.pictures = torch.stack(pictures)
        self.regions = torch.stack(regions)
        self._with_instances = self.regions.flatten(1).amax(1).nonzero().flatten()

    def draw(self, generator: torch.Generator, batch: int, size: int) -> Scenes:
        """Draw random squares of random photographs, with random light and colour.

        Args:
            generator: random generator.
            batch: number of pictures, B.
            size: width and height of the pictures, pixels.

        Returns:
            The pictures.
        """
        images, regions = [], []
        for _ in range(batch):
            pick = self._with_instances[int(torch.randint(len(self._with_instances), (1,), generator=generator))]
            size_in = int(torch.randint(PHOTOGRAPH_SIZE // 3, PHOTOGRAPH_SIZE + 1, (1,), generator=generator))
            top, left = (int(v) for v in torch.randint(0, PHOTOGRAPH_SIZE - size_in + 1, (2,), generator=generator))
            window = (slice(top, top + size_in), slice(left, left + size_in))
            picture = self.pictures[pick, :, window[0], window[1]].float()
            region = self.regions[pick][window].float()
            picture = F.interpolate(picture[None], (size, size), mode="bilinear", align_corners=False)[0]
            region = F.interpolate(region[None, None], (size, size), mode="nearest")[0, 0].long()
            if torch.rand(1, generator=generator) < 0.5:
                picture, region = picture.flip(-1), region.flip(-1)
            images.append(picture)
            regions.append(region)
        stacked = torch.stack(images)
        grey = torch.rand((batch, 1, 1, 1), generator=generator) < 0.5
        stacked = torch.where(grey, stacked.mean(1, keepdim=True), stacked)
        contrast = 0.4 + torch.rand((batch, 1, 1, 1), generator=generator)
        middle = stacked.mean((1, 2, 3), keepdim=True)
        shift = (torch.rand((batch, 3, 1, 1), generator=generator) - 0.5) * 40
        stacked = (stacked - middle) * contrast + middle + torch.where(grey, shift[:, :1], shift)
        return Scenes(images=stacked.clamp(0, 255).round(), regions=torch.stack(regions))


def _polygons(path: Path) -> list[NDArray[np.float64]]:
    """Read polygons (N, 2) as x, y in [0, 1], the largest first, so that smaller ones are drawn over it."""
    if not path.exists():
        return []
    rows = [np.array(line.split()[1:], dtype=float).reshape(-1, 2) for line in path.read_text().splitlines() if line]
    rows = [row for row in rows if len(row) >= 3]
    return sorted(rows, key=lambda row: -float(np.prod(row.max(0) - row.min(0))))
