"""Draw labelled slices with the masks of an adapter. Pictures are made when they are looked at, and never stored.

The masks of the last few slices are in memory, because a page shows several pictures of each. The model answers clicks
of users first.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from baps.adapters.volumes.adapter import ShownVolume
from baps.adapters.volumes.adapter_file import read_volume_adapter
from baps.errors import NotFoundError
from baps.evaluation.cases import Case, CaseReader, slices_showing
from baps.evaluation.folders import read_patient_table
from baps.evaluation.prospective_volumes import fixed_prompts
from baps.evaluation.splits import patient_hash
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.metrics import dice
from baps.imaging.slice_image import canvas_image
from baps.inference.segmenter import LoadedAdapter
from baps.inference.volume_segmenter import LoadedVolumeAdapter
from baps.prompts import Prompt
from baps.prompts.simulated import draw_prompt
from baps.prompts.volume_prompts import Mask, VolumeBox, VolumePoint
from baps.server.training_cases import labelled_cases
from baps.server.web.adapter_table import ORGANS, VOLUMES, PatientEvidence
from baps.server.web.images import ImageName
from baps.utils.cache import Cache
from baps.utils.priority_lock import low_priority

if TYPE_CHECKING:
    from baps.server.app import BapsApp

SHOWN = {
    "image": "Image and prompt",
    "unadapted": "Unadapted model",
    "adapted": "This version",
    "served": "What serves now",
    "label": "Label",
}
"""Pictures of a case, and their titles."""

_COLOURS = {"unadapted": (255, 157, 46), "adapted": (54, 209, 124), "served": (74, 168, 255), "label": (255, 255, 255)}
_PROMPT_COLOUR = (255, 77, 109)
_SIDE = 512
"""Side of the canvas that a slice is drawn on, in pixels."""

_PICTURE_SIDE = 320
"""Side of a picture, in pixels."""

_MIN_CROP = 128
"""Smallest part of the canvas that a picture shows, in pixels."""

_FONT = ImageFont.load_default(16)
_CACHE_BYTES = 32 << 20
_SEED = 7


@dataclass(frozen=True)
class LabelledImage:
    """An image to draw, and the adapters whose masks are drawn.

    Attributes:
        model: ``baps``, ``organs`` or ``volume``.
        organ: The organ, or "" for the adapter of clicks without an organ.
        version: The version.
        served: The version that serves, or "" for the unadapted model.
        name: The image, and an organ that is labelled on it.
    """

    model: str
    organ: str
    version: str
    served: str
    name: ImageName


@dataclass(frozen=True)
class DrawnCase:
    """A slice on the canvas, with masks.

    Attributes:
        image: (S, S, 3) uint8.
        masks: Masks by name, (S, S).
        scores: Dice of each mask at the pixels of the slice, by name.
        prompt: The prompt on the canvas, or None for organ models.
    """

    image: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.bool_]]
    scores: Mapping[str, float]
    prompt: Prompt | None


@dataclass(frozen=True)
class ChosenCase:
    """A patient whose pictures are shown.

    Attributes:
        title: ``Worst``, ``Median`` or ``Best``.
        patient: The patient's evidence.
        name: The image, or None if its label is gone.
    """

    title: str
    patient: PatientEvidence
    name: ImageName | None


def chosen_cases(patients: Sequence[PatientEvidence], names: Mapping[str, ImageName]) -> list[ChosenCase]:
    """Choose the patients with the worst, the median and the best difference.

    Args:
        patients: The patients that judged a version.
        names: Labelled images by hash. Patients without one are passed over if there are others.

    Returns:
        One to three patients; none if nobody judged.
    """

    def name_of(patient: PatientEvidence) -> ImageName | None:
        return next((names[one] for one in (*patient.images, patient.patient) if one in names), None)

    ordered = sorted((one for one in patients if name_of(one)), key=lambda one: one.difference)
    if not ordered:
        return []
    places = {"Worst": 0, "Median": len(ordered) // 2, "Best": len(ordered) - 1}
    chosen: dict[int, str] = {}
    for title, place in places.items():
        chosen.setdefault(place, title)
    return [ChosenCase(title, ordered[place], name_of(ordered[place])) for place, title in sorted(chosen.items())]


class Pictures:
    """Draws pictures. Thread-safe.

    Args:
        app: The app.
    """

    def __init__(self, app: BapsApp) -> None:
        self._app, self._cache = app, Cache(_CACHE_BYTES, _size)

    def draw(self, image: LabelledImage, show: str) -> bytes:
        """Draw a picture.

        Args:
            image: The image.
            show: Name of the picture, see ``SHOWN``.

        Returns:
            A PNG file.

        Raises:
            NotFoundError: If the label is gone.
            BapsError: If the image or an adapter cannot be read, or the model does not answer.
        """
        case = self._find_case(image)
        key = (image, case.label_version, str(case.labels))
        with low_priority():
            drawn, _ = self._cache.get_or_compute(key, lambda: self._segment(image, case))
        return draw_png(drawn, show)

    def _find_case(self, image: LabelledImage) -> Case:
        app, organ = self._app, image.organ or image.name.organ
        labels = {organ: app.site.labels[organ]} if organ in app.site.labels else {}
        cases, _ = labelled_cases(app.datastore(), labels, read_patient_table(app.site.patients), image.name.image)
        found = next(iter(cases.get(organ, [])), None)
        if found is None:
            raise NotFoundError("The label of this image is gone, or nobody has confirmed it.")
        return found

    def _segment(self, image: LabelledImage, case: Case) -> DrawnCase:
        volume, organ, window = CaseReader().read(case)
        prompt: Prompt | None = None
        if image.model == VOLUMES:
            shown = ShownVolume(volume.voxels, volume.spacing, window)
            plane, prompt, masks = self._volume_masks(image, shown, _annotated_part(organ, case))
        else:
            small = Canvas.fit(volume, Plane(SLICE_AXIS, 0), _SIDE)
            indices = slices_showing(organ, small, case.annotated_slices)
            prompts = self._app.first_prompts(patient_hash(case.name), image.organ or image.name.organ)
            # Where a user prompted, or else where the organ is largest.
            made = [index for index in indices if index in prompts]
            index = max(made or indices, key=lambda one: int(organ[:, :, one].sum()))
            plane = Plane(SLICE_AXIS, index)
            if image.model == ORGANS:
                masks = self._organ_masks(image, case, plane)
            else:
                kind = "click" if self._app.black_box().capabilities.clicks else "box"
                random = np.random.default_rng([_SEED, index])
                prompt = prompts.get(index) or draw_prompt(plane.extract(organ), kind, random)
                masks = self._click_masks(image, case, plane, prompt)
        canvas, target = Canvas.fit(volume, plane, _SIDE), plane.extract(organ)
        return DrawnCase(
            canvas_image(volume, plane, canvas, window)[: canvas.size[0], : canvas.size[1]],
            {
                name: (canvas.draw(mask.astype(np.float32)) > 0.5)[: canvas.size[0], : canvas.size[1]]
                for name, mask in {**masks, "label": target}.items()
            },
            {name: dice(mask, target) for name, mask in masks.items()},
            prompt.mapped(canvas.to_canvas) if prompt else None,
        )

    def _click_masks(
        self, image: LabelledImage, case: Case, plane: Plane, prompt: Prompt
    ) -> dict[str, NDArray[np.bool_]]:
        """Segment the slice from the prompt, with the unadapted model and each adapter."""
        segmenter, masks = self._app.segmenter(), dict[str, NDArray[np.bool_]]()
        for name, version in _versions(image).items():
            loaded = None
            if version:
                stored = segmenter.store.load(image.organ, version)
                loaded = LoadedAdapter((image.organ, version), stored.adapter, ("picture", image.organ, version))
            masks[name] = segmenter.segment(case.image, plane, prompt, loaded, interactive=False).mask
        return masks

    def _volume_masks(
        self, image: LabelledImage, shown: ShownVolume, organ: Mask
    ) -> tuple[Plane, Prompt, dict[str, NDArray[np.bool_]]]:
        """Segment the volume from a 3D prompt, and return a slice through it, the prompt there, and each mask there."""
        segmenter, masks = self._app.volumes(), dict[str, NDArray[np.bool_]]()
        (drawn,) = fixed_prompts(segmenter.black_box.capabilities, organ, shown.spacing)
        if isinstance(drawn, VolumePoint):
            plane = Plane(SLICE_AXIS, drawn.voxel[SLICE_AXIS])
            prompt = Prompt((plane.project(drawn.voxel),))
        else:
            assert isinstance(drawn, VolumeBox)
            plane = Plane(SLICE_AXIS, int(organ.sum((0, 1)).argmax()))
            (left, top, _), (right, bottom, _) = drawn.low, drawn.high
            prompt = Prompt(box=(left, top, right - 1, bottom - 1))
        for name, version in _versions(image).items():
            loaded = None
            if version:
                adapter, _ = read_volume_adapter(segmenter.store.file(image.organ, version))
                loaded = LoadedVolumeAdapter((image.organ, version), adapter)
            masks[name] = plane.extract(segmenter.segment(shown, [drawn], None, loaded))
        return plane, prompt, masks

    def _organ_masks(self, image: LabelledImage, case: Case, plane: Plane) -> dict[str, NDArray[np.bool_]]:
        """Segment the volume without a prompt, and return the slice of each mask."""
        from baps.fseft.adapter_file import read_organ_adapter  # Networks, which take seconds to import.
        from baps.fseft.feature_cache import FeatureCache
        from baps.fseft.predictor import predict, unadapted
        from baps.io import read_volume

        segmenter, masks = self._app.organs(), dict[str, NDArray[np.bool_]]()
        model = segmenter.model
        with segmenter.turn:
            prepared = model.prepare(read_volume(case.image))
            get_inputs = FeatureCache(None).for_image(model, prepared.image)
            for name, version in _versions(image).items():
                adapter = (
                    read_organ_adapter(segmenter.store.file(image.organ, version), model)[0]
                    if version
                    else unadapted(model, image.organ)
                )
                masks[name] = plane.extract(predict(adapter, prepared, get_inputs, model.side) > 0.5)
        return masks


def _versions(image: LabelledImage) -> dict[str, str]:
    """Return the version of each mask to draw; "" stands for the unadapted model."""
    versions = {"unadapted": "", "adapted": image.version}
    return {**versions, "served": image.served} if image.served not in ("", image.version) else versions


def _annotated_part(organ: Mask, case: Case) -> Mask:
    """Return the mask of an organ on the slices on which it was annotated."""
    if case.annotated_slices is None:
        return organ
    return organ & np.isin(np.arange(organ.shape[SLICE_AXIS]), list(case.annotated_slices))


def draw_png(case: DrawnCase, show: str) -> bytes:
    """Draw the part of a slice around the organ, with the outline of a mask.

    Args:
        case: The slice.
        show: ``image`` for the slice and the prompt, or the name of a mask.

    Returns:
        A PNG file.
    """
    rows, columns = _crop(case)
    part = replace(
        case, image=case.image[rows, columns], masks={name: mask[rows, columns] for name, mask in case.masks.items()}
    )
    scale = _PICTURE_SIDE / max(part.image.shape[:2])
    size = (round(part.image.shape[1] * scale), round(part.image.shape[0] * scale))
    picture = Image.fromarray(part.image).resize(size, Image.Resampling.BICUBIC)
    if show in part.masks:
        mask = Image.fromarray(part.masks[show].astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
        inside = np.asarray(mask) > 127
        pixels, colour = np.asarray(picture, np.float32).copy(), np.array(_COLOURS[show], np.float32)
        pixels[inside] = 0.75 * pixels[inside] + 0.25 * colour
        pixels[inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)] = colour
        picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    _draw_prompt(pen, case.prompt, (columns.start, rows.start), scale)
    if show in case.scores:
        pen.text(
            (8, size[1] - 24), f"Dice {case.scores[show]:.2f}", (255, 255, 255), _FONT, stroke_width=2, stroke_fill=0
        )
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _crop(case: DrawnCase) -> tuple[slice, slice]:
    """Return the rows and columns of a square around the label and the masks."""
    label = np.argwhere(case.masks["label"])
    centre, extent = (label.min(0) + label.max(0)) / 2, int((label.max(0) - label.min(0)).max())
    side = min(max(_MIN_CROP, 2 * extent), *case.image.shape[:2])
    starts = [
        int(np.clip(middle - side / 2, 0, total - side))
        for middle, total in zip(centre, case.image.shape[:2], strict=True)
    ]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def _draw_prompt(pen: ImageDraw.ImageDraw, prompt: Prompt | None, origin: tuple[int, int], scale: float) -> None:
    def place(x: float, y: float) -> tuple[float, float]:
        return (x - origin[0] + 0.5) * scale, (y - origin[1] + 0.5) * scale

    for x, y in (place(*point) for point in (prompt.positive if prompt else ())):
        for ends in ((x - 7, y, x + 7, y), (x, y - 7, x, y + 7)):
            pen.line(ends, _PROMPT_COLOUR, width=2)
    if prompt and prompt.box:
        left, top, right, bottom = prompt.box
        pen.rectangle((*place(left, top), *place(right, bottom)), outline=_PROMPT_COLOUR, width=2)


def _size(case: DrawnCase) -> int:
    return case.image.nbytes + sum(mask.nbytes for mask in case.masks.values())
