"""Send the requests of 3D Slicer's module with its own client class, and read the replies as it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import nrrd
import numpy as np
import SimpleITK as sitk  # noqa: N813
from monailabel.client import MONAILabelClient
from numpy.typing import NDArray

Voxel = Sequence[int]

_ALWAYS = {"result_extension": ".nrrd", "result_dtype": "uint8"}
"""What the module adds to every request."""


@dataclass(frozen=True)
class Reply:
    """A mask as Slicer reads it, and the JSON of the reply.

    Attributes:
        image: the mask as an image.
        mask: voxels of the mask, (I, J, K).
        info: JSON of the reply.
    """

    image: sitk.Image
    mask: NDArray[np.bool_]
    info: dict[str, Any]

    @property
    def slices(self) -> list[int]:
        """Return the indices along K of the slices with a mask."""
        result: list[int] = self.mask.any((0, 1)).nonzero()[0].tolist()
        return result


@dataclass(frozen=True)
class Slicer:
    """Slicer's module, connected to a server.

    Attributes:
        client: client of the module.
        folder: folder for files that are sent.
    """

    client: MONAILabelClient
    folder: Path

    def options(self, model: str) -> dict[str, Any]:
        """Return the options of a model as the module merges them into a request: the first item of each list."""
        config = self.client.info()["models"][model]["config"]
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}

    def deepgrow(
        self,
        image: str,
        label: str,
        foreground: Sequence[Voxel],
        background: Sequence[Voxel] = (),
        roi: Sequence[float] | None = None,
        at: int | None = None,
        session: str | None = None,
        model: str = "zero_shot",
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Reply:
        """Click in the section SmartEdit, with a model of dimension 2.

        Args:
            image: name of the image.
            label: name of the organ.
            foreground: all foreground points of the scene, voxels.
            background: all background points of the scene, voxels.
            roi: the box, if one is drawn.
            at: slice that the module sends; by default the last point's.
            session: session of a volume that is not on the server.
            model: name of the model.
            options: options that the user changed.
        """
        at = foreground[-1][2] if at is None else at
        if at:  # As in the module: for slice 0 it sends the points of all slices.
            foreground, background = ([point for point in some if point[2] == at] for some in (foreground, background))
        params: dict[str, Any] = {"label": label, "foreground": foreground, "background": background, "slice": at}
        if roi is not None:
            params["roi"] = roi
        return self.infer(model, image, {**params, **self.options(model), **options}, session=session)

    def deepedit(self, image: str, label: str, points: dict[str, Sequence[Voxel]], reset: bool) -> Reply:
        """Click with a model that the module treats as one of several labels."""
        params = {**points, "label": label, **({"reset_state": True} if reset else {})}
        return self.infer("baps", image, {**params, **self.options("baps")})

    def scribble(
        self,
        image: str,
        label: str,
        segments: dict[str, NDArray[np.bool_]],
        affine: NDArray[np.float64],
        roi: Sequence[int] = (),
        session: str | None = None,
        extension: str = ".nii.gz",
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Reply:
        """Press Update in the section Scribbles.

        Args:
            image: name of the image.
            label: name of the organ.
            segments: masks (I, J, K) of all segments of the scene by name, in order, including scribbles.
            affine: affine of the volume, RAS.
            roi: the box, if one is drawn.
            session: session of a volume that is not on the server.
            extension: the setting File Extension.
            options: further fields of the request.
        """
        file = self.folder / f"scribbles{extension}"
        info = [{"name": name, "id": number} for number, name in enumerate(segments, 1)]
        self.save_node(file, segments, affine)
        queries = {**self.options("scribbles"), **options, "roi": list(roi), "label_info": info}
        return self.infer(
            "scribbles", image, {**queries, "selected_label_name": label}, label_in=str(file), session=session
        )

    def submit(self, image: str, segments: dict[str, NDArray[np.bool_]], affine: NDArray[np.float64]) -> dict[str, Any]:
        """Press Submit Label."""
        file = self.folder / "label.nii.gz"
        organs = {name: mask for name, mask in segments.items() if not name.endswith("_scribbles")}
        self.save_node(file, organs, affine)
        info = [{"name": name, "idx": number} for number, name in enumerate(segments, 1) if name in organs]
        label_info: dict[str, Any] = self.client.save_label(image, str(file), "final", {"label_info": info})
        return label_info

    def infer(self, model: str, image: str, params: dict[str, Any], session: str | None = None, **files: str) -> Reply:
        """Send a request and read the reply."""
        file, reply = self.client.infer(model, image, {**_ALWAYS, **params}, session_id=session, **files)
        result = sitk.ReadImage(str(file))
        mask = np.transpose(sitk.GetArrayFromImage(result)) > 0
        assert result.GetPixelID() == sitk.sitkUInt8
        return Reply(result, mask, reply)

    @staticmethod
    def save_node(file: Path, segments: dict[str, NDArray[np.bool_]], affine: NDArray[np.float64]) -> None:
        """Write a label map with values from 1 in the order of the segments; later segments overwrite earlier ones."""
        labels = np.zeros(next(iter(segments.values())).shape, np.uint8)
        for number, mask in enumerate(segments.values(), 1):
            labels[mask] = number
        if file.name.endswith(".nrrd"):
            lps = np.diag([-1, -1, 1.0]) @ affine[:3]
            space = {"space": "left-posterior-superior", "space directions": lps[:, :3].T, "space origin": lps[:, 3]}
            nrrd.write(str(file), labels, {**space, "kinds": ["domain"] * 3})
        else:
            nibabel.save(nibabel.Nifti1Image(labels, affine), file)
