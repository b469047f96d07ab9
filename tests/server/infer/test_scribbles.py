"""The infer task of strokes, without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import BlackBox
from baps.errors import InputError, NotFoundError
from baps.imaging.canvas import Plane
from baps.imaging.volume import Volume
from baps.inference.scribbles import keep_strokes, strokes_to_prompt
from baps.inference.segmenter import Segmenter
from baps.io import write_nifti, write_nrrd
from baps.registry.store import AdapterStore
from baps.server.infer.scribbles import ScribblesInfer
from baps.server.jobs import LongRequests

INFO = [
    {"name": "ball", "id": 1},
    {"name": "other", "id": 2},
    {"name": "background_scribbles", "id": 3},
    {"name": "foreground_scribbles", "id": 4},
]


class Painting:
    """A bright ball, strokes on it, and the task that answers."""

    def __init__(self, folder: Path, volume: Volume, ball: NDArray[np.bool_], black_box: BlackBox) -> None:
        self.volume, self.ball, self.folder = volume, ball, folder
        self.image = folder / "image.nii.gz"
        write_nifti(self.image, volume)
        self.segmenter = Segmenter(black_box, AdapterStore(folder / "adapters"))
        self.saved: list[tuple[Any, ...]] = []
        self.task = ScribblesInfer(
            lambda: self.segmenter, folder / "clicks.lock", {"ball": 1}, self._save, LongRequests()
        )
        self.labels = np.zeros(volume.shape, np.uint8)
        self.labels[18:22, 18, (5, 6)] = 4
        self.labels[3:9, 3, (6, 8)] = 3

    def _save(self, *given: Any) -> str:
        self.saved.append(given)
        return "Saved as ball."

    def ask(self, **params: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The reply's mask and words."""
        path = self.folder / "scribbles.nrrd"
        write_nrrd(path, Volume(self.labels, self.volume.affine))
        request = {"image": str(self.image), "label": str(path), "label_info": INFO, "selected_label_name": "ball"}
        file, content = self.task({**request, **params})
        voxels, header = nrrd.read(file)
        assert (voxels.shape, voxels.dtype) == (self.volume.shape, np.uint8)
        lps = np.diag([-1, -1, 1.0]) @ self.volume.affine[:3]
        np.testing.assert_allclose(header["space directions"].T, lps[:, :3], atol=1e-5)
        np.testing.assert_allclose(header["space origin"], lps[:, 3], atol=1e-4)
        return voxels, content


@pytest.fixture
def painting(
    tmp_path: Path,
    new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]],
    new_black_box: Callable[..., BlackBox],
) -> Painting:
    return Painting(tmp_path, *new_phantom(), new_black_box(side=40))


def test_strokes_are_segmented_like_clicks(painting: Painting) -> None:
    mask, reply = painting.ask()
    assert (reply["label"], reply["slices"], reply["axis"], reply["adapter"]) == ("ball", [5, 6], "K", None)
    assert mask.any((0, 1)).nonzero()[0].tolist() == [5, 6]
    for k in (5, 6):
        plane = Plane(2, k)
        foreground, background = plane.extract(painting.labels == 4), plane.extract(painting.labels == 3)
        prompt = strokes_to_prompt(foreground, background, painting.segmenter.black_box.capabilities)
        expected = painting.segmenter.segment(painting.image, plane, prompt).mask
        np.testing.assert_array_equal(plane.extract(mask) > 0, keep_strokes(expected, foreground, background))
        assert expected.sum() == pytest.approx(painting.ball[:, :, k].sum(), rel=0.1)


def test_strokes_reach_the_black_box_as_clicks_of_their_own_slice(
    painting: Painting, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = []
    segment = painting.segmenter.segment

    labels: list[str] = []

    def listen(path: Path, plane: Plane, prompt: Any, adapter: object) -> Any:
        request.append((plane, len(prompt.negative)))
        return segment(path, plane, prompt, adapter)

    monkeypatch.setattr(painting.segmenter, "segment", listen)
    monkeypatch.setattr(painting.segmenter, "load_adapter", labels.append)
    painting.ask()
    assert request == [(Plane(2, 5), 0), (Plane(2, 6), 2)]
    assert labels == ["ball"]  # Once per request.


def test_slices_with_only_background_strokes_are_not_changed(painting: Painting) -> None:
    _, reply = painting.ask()
    assert reply["notes"] == ["Only background strokes on slice 8: not segmented."]


def test_masks_on_other_slices_are_kept(painting: Painting) -> None:
    """Slicer replaces the whole segment by the reply."""
    painting.labels[1:4, 30:33, (5, 9)] = 1
    painting.labels[30:33, 30:33, 9] = 2
    mask, _ = painting.ask()
    assert mask.any((0, 1)).nonzero()[0].tolist() == [5, 6, 9]
    np.testing.assert_array_equal(mask[:, :, 9], painting.labels[:, :, 9] == 1)
    assert not mask[1:4, 30:33, 5].any()


def test_nothing_outside_the_box_is_changed(painting: Painting) -> None:
    painting.labels[39, 35, 5] = 1
    mask, reply = painting.ask(roi=[22, 15, 0, 35, 5, 5])
    assert reply["slices"] == [5]
    assert reply["notes"][0] == "4 voxels of foreground strokes outside the box skipped."
    assert mask[15:23, :, 5].any()
    beside = np.delete(mask, range(15, 23), axis=0)
    assert (mask[39, 35, 5], beside.sum()) == (1, 1)


def test_a_model_for_boxes_gets_a_box(painting: Painting) -> None:
    """With the one that was drawn, or else the one around the strokes."""
    black_box = painting.segmenter.black_box
    black_box._capabilities = replace(black_box.capabilities, clicks=False, negative_clicks=False)  # type: ignore
    for roi, width in (([], 4), ([10, 29, 9, 26, 0, 11], 20)):
        painting.ask(roi=roi)
        _, prompts = black_box.queries[-1]  # type: ignore[attr-defined]
        (prompt,) = prompts
        assert prompt.positive == prompt.negative == ()
        assert prompt.box[2] - prompt.box[0] == pytest.approx(width - 1)


def test_the_adapter_of_the_label_is_used_with_a_fallback(
    painting: Painting,
) -> None:
    head = OutputHead()
    with torch.no_grad():
        head.last.bias.fill_(-9)  # Finds nothing anywhere.
    adapter, store = Adapter(build_visual_prompt("basis"), head.eval()), painting.segmenter.store
    record = {"adapter": adapter.to_dict(), "black_box": {"weights_sha256": "b" * 64}}
    store.publish("other", store.add("other", adapter, record, "accepted"))
    assert painting.ask()[1]["adapter"] is None
    mask, reply = painting.ask(selected_label_name="other")
    assert mask[18:22, 18, 5].all()
    assert reply["notes"][-1] == "The adapted mask violated a stroke on slices 5, 6; the mask there is less adapted."


@pytest.mark.parametrize("compress", [True, False])
def test_the_reply_is_compressed_unless_raw_voxels_are_requested(painting: Painting, compress: bool) -> None:
    path = painting.folder / "strokes.nrrd"
    write_nrrd(path, Volume(painting.labels, painting.volume.affine))
    request = {"image": str(painting.image), "label": str(path), "label_info": INFO, "result_compress": compress}
    file, _ = painting.task(request)
    assert nrrd.read_header(file)["encoding"] == ("gzip" if compress else "raw")


def test_invalid_requests(painting: Painting) -> None:
    with pytest.raises(NotFoundError, match="no such image"):
        painting.task({"image": ""})
    painting.labels[painting.labels == 4] = 0
    with pytest.raises(InputError, match="no foreground stroke"):
        painting.ask()
    assert not list(Path(painting.task._replies.name).iterdir())


def test_slicer_offers_it_in_the_section_scribbles(painting: Painting) -> None:
    info = painting.task.info()
    assert (info["type"], info["dimension"], info["labels"], info["config"]) == (
        "scribbles",
        3,
        [],
        {"save_as": ["do not save", "ball"]},
    )


def test_the_mask_is_saved_on_the_painted_slices(painting: Painting) -> None:
    painting.ask()
    assert painting.saved == []
    mask, reply = painting.ask(save_as="ball", image_id="case 1", client_id="anna")
    [(image, volume, organ, saved, slices, author, confirms)] = painting.saved
    assert (image, organ, slices, author, confirms) == ("case 1", "ball", [5, 6], "anna", False)
    assert volume.shape == painting.volume.shape
    np.testing.assert_array_equal(saved, mask > 0)
    assert "Saved as ball." in reply["notes"]
