"""Functions that segment, adapt and evaluate without a server; ``import baps`` offers them.

The commands ``baps segment``, ``baps adapt``, ``baps evaluate``, ``baps organs segment`` and ``baps organs adapt`` take
the same steps. The functions keep nothing on disk but what you name: ``write_volume`` and ``write_adapter`` write a
file, and ``adapt`` writes the log that you give it. Paths are text or ``Path``. A function raises ``InputError`` with
one sentence if it cannot use what you give it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from baps import blackbox, io
from baps.adapters.adapter import Adapter, segment_adapted
from baps.adapters.click_consistency import fall_back_on_violated_clicks
from baps.blackbox import BlackBox, RemoteSettings
from baps.errors import InputError
from baps.evaluation.cases import load_cases
from baps.evaluation.evaluate import Evaluation
from baps.evaluation.evaluate import evaluate as evaluate_cases
from baps.evaluation.folders import find_cases
from baps.imaging.canvas import SLICE_AXIS, Canvas
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import choose_window
from baps.inference.requests.click import read_click
from baps.training import adapt as training
from baps.training.adapt import Adaptation, ProgressReport
from baps.training.settings import AdaptationSettings

if TYPE_CHECKING:
    from baps.fseft.adaptation import OrganAdaptation, OrganProgress, OrganSettings
    from baps.fseft.adapters import FewShotAdapter
    from baps.fseft.models import OrganModel

AnyPath = str | Path
Voxel = tuple[float, float, float]


def load_black_box(
    name: str = "bundled",
    weights: AnyPath | None = None,
    sha256: str = "",
    device: str = "auto",
    remote: RemoteSettings | None = None,
) -> BlackBox:
    """Load a promptable model.

    Args:
        name: ``bundled``, ``sam``, ``medsam``, ``sam_hq``, ``sam2`` (SAM 2 and 2.1), ``sam3``, or ``remote``. SAM and
            MedSAM have the same tensors, but expect other images, so the name chooses between them.
        weights: the checkpoint; all but ``bundled`` and ``remote`` need one.
        sha256: the hash that the checkpoint must have, or "" for the published one if the file name is known. For
            ``remote``: the identity that the model must have.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``, or several, as in ``cuda:0,cuda:1``: one replica on each.
        remote: the address of the model ``remote``.

    Returns:
        The model. It returns masks and nothing else; ``capabilities`` says which prompts it understands.

    Raises:
        InputError: if the name or the device is unknown, or the weights or the remote model cannot be used.
        BapsError: if a remote model does not answer.
    """
    return blackbox.load_black_box(name, Path(weights) if weights else None, sha256, device, remote)


def load_organ_model(
    name: str = "bundled", weights: AnyPath | None = None, sha256: str = "", device: str = "auto"
) -> OrganModel:
    """Load a volumetric organ model, which needs no prompt.

    Args:
        name: ``bundled``, ``totalsegmentator``, ``totalsegmentator_full``, or the name of a published checkpoint.
        weights: the checkpoint, or TotalSegmentator's folder; all but the bundled model need one.
        sha256: the hash that the weights must have, or "".
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        The model on its device. Unlike a black box, it gives its features, and methods may train its weights.

    Raises:
        InputError: if the name or the device is unknown, or the weights cannot be used.
        MissingExtraError: if the packages of the extra ``totalsegmentator`` are needed and not installed.
    """
    from baps.fseft.models import load_organ_model as load

    return load(name, Path(weights) if weights else None, sha256, device)


def read_volume(path: AnyPath) -> Volume:
    """Read an image: NIfTI, NRRD, MetaImage, a folder of one DICOM series, PNG, JPEG, TIFF or NPZ.

    Args:
        path: the file or folder.

    Returns:
        Voxels (I, J, K) in the order of the file, and the affine from voxel indices to patient positions, mm, RAS.

    Raises:
        InputError: if it is missing, broken, too large, or not one volume.
    """
    return io.read_volume(Path(path))


def write_volume(path: AnyPath, volume: Volume) -> None:
    """Write a volume or a mask as ``.nii.gz``, ``.nii`` or ``.nrrd``; an older file is replaced when it is complete.

    Args:
        path: the file.
        volume: what to write; its voxels keep their type and order.

    Raises:
        InputError: if the name has another ending, or the axes are not at right angles, which NIfTI cannot store.
    """
    io.write_volume(Path(path), volume)


def segment(
    image: AnyPath | Volume,
    clicks: Sequence[Voxel] = (),
    background: Sequence[Voxel] = (),
    box: Sequence[float] = (),
    *,
    plane: str = "as stored",
    black_box: BlackBox | None = None,
    adapter: Adapter | None = None,
) -> Volume:
    """Segment one slice of a volume from clicks, a box, or both.

    The last click says which slice is meant; points on other slices are ignored. If the adapted mask violates a
    corrective click, a less adapted mask is returned instead, as the server does.

    Args:
        image: a volume, or its path.
        clicks: voxel indices (i, j, k) inside the object.
        background: voxel indices (i, j, k) outside the object, on the same slice.
        box: first and last voxel of the object along each axis, (i0, i1, j0, j1, k0, k1); empty for no box.
        plane: the slices to segment: ``as stored`` (across K), ``axial``, ``coronal``, ``sagittal``, or across ``I``,
            ``J`` or ``K``.
        black_box: the model; None loads the bundled one.
        adapter: what was trained for this model, or None for the unadapted model. It is used on slices across K only,
            because it was accepted on these.

    Returns:
        A mask of the whole volume: voxels (I, J, K) uint8, 1 inside the object, 0 elsewhere and on all other slices.

    Raises:
        InputError: if the image cannot be read, or the prompt lies outside it or is empty.
    """
    volume = image if isinstance(image, Volume) else read_volume(image)
    black_box = black_box or load_black_box()
    request = {"foreground": list(clicks), "background": list(background), "roi": list(box), "plane": plane}
    click = read_click(request, volume, [])
    canvas = Canvas.fit(volume, click.plane, black_box.capabilities.input_size)
    pixels = canvas_image(volume, click.plane, canvas, choose_window(volume))[None]
    prompt = click.prompt.mapped(canvas.to_canvas)

    def predict(candidate: Adapter | None) -> NDArray[np.float32]:
        return segment_adapted(black_box, candidate, pixels, [prompt], [canvas.size])[0]

    used = adapter if click.plane.axis == SLICE_AXIS else None
    probability, _ = fall_back_on_violated_clicks(predict(used), used, prompt, predict)
    mask = np.zeros(volume.shape, np.uint8)
    click.plane.insert(mask, canvas.restore(probability) > 0.5)
    return Volume(mask, volume.affine)


def segment_organ(
    image: AnyPath | Volume, organ: str, adapter: FewShotAdapter | None = None, *, model: OrganModel | None = None
) -> Volume:
    """Segment an organ of a whole volume with a volumetric organ model, which needs no prompt.

    Args:
        image: a volume, or its path.
        organ: the organ. Without an adapter, it must be one that the model knows.
        adapter: what was trained for this organ and this model, or None for the unadapted model.
        model: the organ model; None loads the bundled one.

    Returns:
        A mask: voxels (I, J, K) uint8, 1 inside the organ.

    Raises:
        InputError: if the image cannot be read, is in colour, or the model does not know the organ.
        BapsError: if the GPU is out of memory.
    """
    from baps.fseft.predictor import segment_volume, unadapted

    volume = image if isinstance(image, Volume) else read_volume(image)
    model = model or load_organ_model()
    adapter = adapter or unadapted(model, organ)
    if adapter is None:
        raise InputError(
            f"The organ model {model.name} does not know {organ}. Give an adapter, or one of: "
            f"{', '.join(model.network.classes)}."
        )
    return segment_volume(model, adapter, volume)


def adapt(
    images: AnyPath,
    labels: AnyPath,
    label: int | str | None = None,
    *,
    black_box: BlackBox | None = None,
    settings: AdaptationSettings | None = None,
    patients: AnyPath | None = None,
    log: AnyPath | None = None,
    progress: Callable[[ProgressReport], None] | None = None,
) -> Adaptation:
    """Adapt a promptable model to labelled images, and compare the result with the unadapted model.

    The comparison uses patients that the adapter was not trained on. Images and labels belong together if their file
    names agree.

    Args:
        images: the folder of images.
        labels: the folder of labels.
        label: the value of the object in the labels, or the name of its segment; None uses every label.
        black_box: the model; None loads the bundled one. It is asked for ``settings.max_images`` masks at most.
        settings: how to adapt; None uses the defaults.
        patients: a CSV file of image and patient, for images that do not name their patient.
        log: a file that records the answers of the model; an interrupted adaptation resumes from it.
        progress: called with a report every few steps.

    Returns:
        The adapter, the result of the comparison, the training curve, and a record of everything the result depends on.

    Raises:
        InputError: if the folders hold nothing to train on, or a setting cannot be used.
        BapsError: if the model fails.
    """
    black_box, settings = black_box or load_black_box(), settings or AdaptationSettings()
    selection = find_cases(Path(images), Path(labels), label, Path(patients) if patients else None)
    slices, skipped = load_cases(selection.cases, black_box.capabilities.input_size, settings.slices_per_volume)
    if not slices:
        raise InputError(f"None of the labels can be used. {next(iter(skipped.values()), '')}")
    return training.adapt(black_box, slices, settings, progress=progress, log=Path(log) if log else None)


def adapt_organ(
    images: AnyPath,
    labels: AnyPath,
    label: int | str,
    organ: str,
    *,
    model: OrganModel | None = None,
    settings: OrganSettings | None = None,
    patients: AnyPath | None = None,
    max_volumes: int | None = None,
    progress: OrganProgress | None = None,
) -> OrganAdaptation:
    """Adapt a volumetric organ model to a few labelled volumes, and compare the result with the unadapted model.

    Args:
        images: the folder of images.
        labels: the folder of labels.
        label: the value of the organ in the labels, or the name of its segment.
        organ: the organ's name; for an organ that the model knows, training starts from the model's own answer.
        model: the organ model; None loads the bundled one.
        settings: how to adapt; None uses the defaults.
        patients: a CSV file of image and patient, for images that do not name their patient.
        max_volumes: the number of labelled volumes to use, in the order of their names; None uses all.
        progress: called after every epoch with the epochs done, their total, and the last training Dice.

    Returns:
        The adapter, the result of the comparison, and a record of everything the result depends on.

    Raises:
        InputError: if the folders hold nothing to train on, or a setting cannot be used.
    """
    from baps.fseft.adaptation import OrganSettings
    from baps.fseft.adaptation import adapt_organ as adapt_model
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.volumes import load_volumes

    model = model or load_organ_model()
    selection = find_cases(Path(images), Path(labels), label, Path(patients) if patients else None)
    volumes, skipped = load_volumes(selection.cases[:max_volumes], model)
    if not volumes:
        raise InputError(f"None of the labels can be used. {next(iter(skipped.values()), '')}")
    with TemporaryDirectory(prefix="baps-features-") as folder:
        cache = FeatureCache(Path(folder))  # The frozen model runs once per volume, not once per fit.
        report = progress or (lambda epoch, epochs, dice: None)
        return adapt_model(model, organ, volumes, settings or OrganSettings(), feature_cache=cache, progress=report)


def evaluate(
    images: AnyPath,
    labels: AnyPath,
    label: int | str | None = None,
    *,
    black_box: BlackBox | None = None,
    adapter: Adapter | None = None,
    prompt: str = "click",
    clicks: int = 1,
    seed: int = 0,
    patients: AnyPath | None = None,
) -> Evaluation:
    """Measure Dice on labelled images, from simulated clicks that are the same for every model and adapter.

    Args:
        images: the folder of images.
        labels: the folder of labels.
        label: the value of the object in the labels, or the name of its segment; None uses every label.
        black_box: the model; None loads the bundled one.
        adapter: what was trained for this model, or None for the unadapted model.
        prompt: the first prompt, ``click`` or ``box``.
        clicks: prompts per slice, 1 to 10; each one after the first corrects the largest error.
        seed: of the simulated clicks.
        patients: a CSV file of image and patient, for images that do not name their patient.

    Returns:
        Dice of each image and label, and the number of images that were sent to the model; ``mean`` is the mean over
        labels, then images.

    Raises:
        InputError: if no image can be used, or the model does not understand the clicks.
    """
    cases = find_cases(Path(images), Path(labels), label, Path(patients) if patients else None).cases
    return evaluate_cases(black_box or load_black_box(), cases, adapter, prompt, seed, clicks=clicks)
