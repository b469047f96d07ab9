"""Make phantom volumes of an abdomen, CT-like and MR-like, with labels. They contain no data of patients.

They model the difficulties of real images:

* anatomy: a body with fat, bowel, muscle, spine, ribs, bases of the lungs, liver, spleen, kidneys, stomach and aorta,
  mostly warped ellipsoids, different for each patient;
* low contrast: organs differ by 10 to 40 HU in CT (with a window of 400 HU), and touch each other;
* CT: point spread, correlated noise of 14 to 20 HU, a scanner offset of up to 8 HU;
* MR: organ signals of a fat-suppressed T2 image, a scanner gain of 0.5 to 3, a bias field of up to 40 %, Rician noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.imaging.volume import Volume
from baps.io import write_nifti

SHAPE = (128, 128, 24)
SPACING = (2.8, 2.8, 6.0)
LABELS = {"liver": 1, "spleen": 2, "kidneys": 3, "stomach": 4, "aorta": 5}
"""Label names and their values in the labelmaps."""

# The phantom lies in LPS axes (I to the patient's left, J to the back, K to the head), like an axial CT.
AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
AFFINE[:2, 3] = [SPACING[0] * (SHAPE[0] - 1) / 2, SPACING[1] * (SHAPE[1] - 1) / 2]

_CT = {
    "air": (-1000, 0), "fat": (-105, 8), "muscle": (52, 5), "bone": (320, 60), "lung": (-820, 30), "liver": (66, 8),
    "spleen": (72, 8), "kidneys": (88, 10), "stomach": (28, 12), "aorta": (105, 15), "bowel": (38, 6),
}  # fmt: skip
_MR = {
    "air": (6, 2), "fat": (60, 10), "muscle": (85, 8), "bone": (70, 10), "lung": (15, 3), "liver": (125, 12),
    "spleen": (200, 20), "kidneys": (225, 20), "stomach": (160, 40), "aorta": (40, 8), "bowel": (150, 25),
}  # fmt: skip
"""Mean of each tissue, and standard deviation between patients, in HU (CT) or arbitrary units (MR)."""


@dataclass(frozen=True)
class Phantom:
    """The anatomy of a patient.

    Attributes:
        tissues: Names of the tissues.
        tissue: Index of the tissue at each voxel, (I, J, K).
        labels: The labelmap, (I, J, K).
    """

    tissues: tuple[str, ...]
    tissue: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def smooth_field(random: np.random.Generator, scale_mm: float) -> NDArray[np.float32]:
    """Draw a Gaussian random field of unit standard deviation.

    Args:
        random: Random generator.
        scale_mm: Standard deviation of the smoothing, in mm.

    Returns:
        The field, (I, J, K).
    """
    sigma = [scale_mm / step for step in SPACING]
    field = ndimage.gaussian_filter(random.normal(size=SHAPE), sigma, mode="wrap")
    return (field / field.std()).astype(np.float32)


def draw_phantom(random: np.random.Generator) -> Phantom:
    """Draw the anatomy of one patient."""
    grids = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * step for n, step in zip(SHAPE, SPACING, strict=True)), indexing="ij"
    )
    x, y, z = (grid + 5.0 * smooth_field(random, 40) for grid in grids)
    size = random.uniform(0.92, 1.08)

    def ellipsoid(
        centre: tuple[float, float, float], radii: tuple[float, float, float], turn: float = 0.0
    ) -> NDArray[np.bool_]:
        cx, cy, cz = (c * size + random.normal(0, 4) for c in centre)
        rx, ry, rz = (r * size * random.uniform(0.9, 1.1) for r in radii)
        turn = math.radians(turn + random.normal(0, 6))
        dx, dy = x - cx, y - cy
        along, across = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
        edge = 0.07 * smooth_field(random, 14)
        return (along / rx) ** 2 + (across / ry) ** 2 + ((z - cz) / rz) ** 2 < 1 + edge

    tissues = tuple(_CT)
    tissue = np.zeros(SHAPE, np.uint8)
    labels = np.zeros(SHAPE, np.uint8)

    def fill(name: str, where: NDArray[np.bool_]) -> None:
        tissue[where] = tissues.index(name)
        labels[where] = LABELS.get(name, 0)

    def body(shrink: float) -> NDArray[np.bool_]:
        return (x / (158 * size - shrink)) ** 2 + (y / (112 * size - shrink)) ** 2 < 1

    fill("fat", body(0))
    fill("muscle", body(13))
    inside = body(24)
    fill("fat", inside & (y < 48))
    fill("bowel", inside & (smooth_field(random, 16) > -0.5))
    for angle in np.linspace(0.2, 2 * math.pi + 0.2, 16, endpoint=False):
        rib = ellipsoid((138 * math.cos(angle), 93 * math.sin(angle), random.uniform(-50, 50)), (8, 8, 26))
        fill("bone", rib & body(8) & ~body(26))
    upper = z > 38 + 6 * smooth_field(random, 30)
    fill(
        "lung",
        inside
        & upper
        & ((np.abs(x) > 55) | (y < -30))
        & (ellipsoid((-80, 5, 80), (60, 85, 55)) | ellipsoid((80, 5, 80), (60, 85, 55))),
    )
    fill("stomach", inside & ellipsoid((52, -38, 12), (46, 32, 40), -25))
    fill("spleen", inside & ellipsoid((98, 38, 18), (24, 46, 34), -18))
    fill("liver", inside & (ellipsoid((-72, -8, 12), (66, 76, 58), 12) | ellipsoid((-12, -48, 18), (62, 30, 32), 8)))
    fill(
        "kidneys", inside & (ellipsoid((-62, 62, -32), (25, 30, 46), 25) | ellipsoid((62, 62, -28), (25, 30, 46), -25))
    )
    fill("bone", ellipsoid((0, 72, 0), (24, 24, 400)))
    fill("aorta", ellipsoid((14, 42, 0), (11, 11, 400)))
    fill("muscle", inside & (ellipsoid((-34, 84, 0), (22, 18, 400)) | ellipsoid((34, 84, 0), (22, 18, 400))))
    return Phantom(tissues, tissue, labels)


def render_ct(phantom: Phantom, random: np.random.Generator) -> NDArray[np.int16]:
    """Render a CT of the phantom, (I, J, K) in HU."""
    level = np.array([random.normal(*_CT[name]) for name in phantom.tissues], np.float32)
    clean = level[phantom.tissue] + 5 * smooth_field(random, 10) * (phantom.tissue > 0)
    blurred = ndimage.gaussian_filter(clean, (0.7, 0.7, 0.4)) + random.uniform(-8, 8)
    noise = ndimage.gaussian_filter(random.normal(size=SHAPE), (0.6, 0.6, 0.0))
    noisy = blurred + noise / noise.std() * random.uniform(14, 20) * np.where(phantom.tissue > 0, 1.0, 0.5)
    return noisy.clip(-1024, 3071).round().astype(np.int16)


def render_mr(phantom: Phantom, random: np.random.Generator) -> NDArray[np.int16]:
    """Render an image of the phantom like fat-suppressed T2, (I, J, K) in arbitrary units."""
    level = np.array([random.normal(*_MR[name]) for name in phantom.tissues], np.float32).clip(2)
    clean = level[phantom.tissue] * (1 + 0.06 * smooth_field(random, 8))
    bias = np.exp(0.17 * smooth_field(random, 110)).clip(0.6, 1.4)
    blurred = ndimage.gaussian_filter(clean * bias, (0.6, 0.6, 0.3))
    sigma = random.uniform(9, 14)
    noisy = np.hypot(blurred + random.normal(0, sigma, SHAPE), random.normal(0, sigma, SHAPE))
    return (noisy * random.uniform(0.5, 3)).round().clip(0, 32767).astype(np.int16)


def write_cases(folder: Path, kind: str, count: int, seed: int = 0) -> Iterator[Path]:
    """Write volumes to ``images/`` in a folder and their labels to ``labels/``, one after another.

    Args:
        folder: The folder, which is made if it does not exist.
        kind: ``ct`` or ``mr``.
        count: Number of volumes.
        seed: Random seed of the phantoms and their noise.

    Yields:
        The file of each image.
    """
    render = {"ct": render_ct, "mr": render_mr}[kind]
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        random = np.random.default_rng([seed, {"ct": 0, "mr": 1}[kind], number])
        phantom = draw_phantom(random)
        name = f"{kind}_{number:02d}.nii.gz"
        write_nifti(folder / "images" / name, Volume(render(phantom, random), AFFINE))
        write_nifti(folder / "labels" / name, Volume(phantom.labels, AFFINE))
        yield folder / "images" / name
