from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.errors import BapsError, InputError
from baps.fseft.adapter_file import adapter_record, read_organ_adapter
from baps.fseft.adapters import build_adapter
from baps.fseft.fitting import Example, FitSettings, fit
from baps.fseft.inference import compute_inputs
from baps.fseft.predictor import OrganSegmenter, predict, unadapted
from baps.fseft.preprocessing import preprocess
from baps.imaging.metrics import dice
from baps.imaging.volume import Volume

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]


def publish(segmenter: OrganSegmenter, organ: str, bias: float | None = None, sha256: str = "") -> str:
    """Publish an untrained linear probe whose bias gives the same output everywhere."""
    adapter = build_adapter("linear_probe", segmenter.model.network, organ)
    with torch.no_grad():
        for value, parameter in zip(adapter.trainable_parameters().values(), (0.0, bias), strict=True):
            value.fill_(parameter or 0.0)
    record = {
        "adapter": adapter_record("linear_probe", organ, False, 0),
        "black_box": {"name": "small", "weights_sha256": sha256 or segmenter.model.sha256},
    }
    version = segmenter.store.add(organ, adapter, record)
    segmenter.store.publish(organ, version)
    return version


def _probabilities_of(segmenter: OrganSegmenter, volume: Volume, organ: str) -> NDArray[np.float32]:
    """Compute the probabilities of an organ with the served adapter or the model."""
    model, version = segmenter.model, segmenter.served(organ)
    adapter = read_organ_adapter(segmenter.store.file(organ, version), model)[0] if version else unadapted(model, organ)
    prepared = preprocess(volume, model.spacing, model.side)
    return predict(adapter, prepared, segmenter.feature_cache.for_image(model, prepared.image), model.side)


def test_learned_organ_is_segmented_on_another_volume(segmenter: OrganSegmenter, new_phantom: Phantom) -> None:
    model = segmenter.model
    adapter = build_adapter("linear_probe", model.network, "heart")
    examples = []
    for seed in (0, 1):
        volume, ball = new_phantom(seed=seed)
        prepared = preprocess(volume, model.spacing, model.side)
        examples.append(Example(compute_inputs(model.network, "features", prepared.image, 16), prepared.mask(ball)))
    fit(adapter, examples, FitSettings(0.03, epochs=40, crop=12))
    record = {"adapter": adapter_record("linear_probe", "heart", False, 0), "black_box": model.to_dict()}
    segmenter.store.publish("heart", segmenter.store.add("heart", adapter, record))

    volume, ball = new_phantom(seed=2, shape=(36, 40, 14))
    result = segmenter.segment(volume, {"heart": 7, "pancreas": 3})
    assert (result.served, result.unknown, result.stopped) == ({"heart": "v0001"}, ("pancreas",), ())
    assert result.labelmap.dtype == np.uint8
    assert set(np.unique(result.labelmap)) == {0, 7}
    assert dice(result.labelmap == 7, ball) > 0.75
    np.testing.assert_array_equal(result.labelmap == 7, _probabilities_of(segmenter, volume, "heart") > 0.5)


def test_voxel_belongs_to_the_smallest_organ(
    segmenter: OrganSegmenter, new_phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liver is more probable than the kidney in it, in whatever order they are segmented."""
    volume, ball = new_phantom()
    kidney, everywhere = ball.copy(), np.ones_like(ball)
    kidney[: ball.shape[0] // 2] = False
    masks = {"liver": (ball, 0.9), "kidney": (kidney, 0.6), "body": (everywhere, 0.99)}
    monkeypatch.setattr(segmenter, "_adapter", lambda organ, version: organ)
    monkeypatch.setattr(
        "baps.fseft.predictor.predict", lambda organ, *_: np.where(masks[organ][0], masks[organ][1], 0.2)
    )
    for organ in masks:
        publish(segmenter, organ)
    values = {"body": 1, "kidney": 2, "liver": 3}
    expected = np.where(kidney, 2, np.where(ball, 3, 1))
    for order in (("liver", "kidney", "body"), ("kidney", "body", "liver")):
        labelmap = segmenter.segment(volume, {organ: values[organ] for organ in order}).labelmap
        np.testing.assert_array_equal(labelmap, expected)


def test_source_of_each_organ(segmenter: OrganSegmenter, new_phantom: Phantom) -> None:
    assert (segmenter.served("spleen"), segmenter.served("heart")) == ("", None)
    assert publish(segmenter, "spleen", 2.0) == "v0001"
    publish(segmenter, "liver", 2.0, sha256="e" * 64)  # The adapter is for another model.
    assert (segmenter.served("spleen"), segmenter.served("liver")) == ("v0001", "")
    volume, _ = new_phantom()
    first = _probabilities_of(segmenter, volume, "spleen")
    mask = segmenter.segment(volume, {"spleen": 1}).labelmap
    np.testing.assert_array_equal(mask, first > 0.5)
    publish(segmenter, "spleen", -2.0)
    assert segmenter.served("spleen") == "v0002"
    assert (_probabilities_of(segmenter, volume, "spleen") < first)[first > 0.5].all()
    assert segmenter.segment(volume, {"spleen": 1}).labelmap.sum() < mask.sum()
    segmenter.store.roll_back("spleen")
    np.testing.assert_array_equal(_probabilities_of(segmenter, volume, "spleen"), first)
    np.testing.assert_array_equal(segmenter.segment(volume, {"spleen": 1}).labelmap, mask)


def test_unadapted_organ_equals_the_model(segmenter: OrganSegmenter, new_phantom: Phantom) -> None:
    volume, _ = new_phantom()
    prepared = preprocess(volume, 2.0, 16)
    expected = compute_inputs(segmenter.model.network, "probabilities", prepared.image, 16)[1:2]
    queried = _probabilities_of(segmenter, volume, "liver")
    restored = prepared.restore(expected)
    sure = np.abs(restored - 0.5) > 0.02
    assert sure.mean() > 0.5
    np.testing.assert_array_equal((queried > 0.5)[sure], (restored > 0.5)[sure])
    np.testing.assert_allclose(queried[queried > 0.5], restored[queried > 0.5], atol=0.02)
    np.testing.assert_array_equal(segmenter.segment(volume, {"liver": 1}).labelmap, queried > 0.5)


def test_second_look_at_a_volume_does_not_run_the_model(
    segmenter: OrganSegmenter, new_phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = new_phantom()
    first = segmenter.segment(volume, {"spleen": 1, "liver": 2}).labelmap
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)
    np.testing.assert_array_equal(segmenter.segment(volume, {"spleen": 1, "liver": 2}).labelmap, first)
    publish(segmenter, "heart", 2.0)  # Another organ, which reads the same features.
    assert (segmenter.segment(volume, {"heart": 3}).labelmap == 3).any()


def test_damaged_adapter_does_not_affect_the_others(segmenter: OrganSegmenter, new_phantom: Phantom) -> None:
    for organ in ("a", "b"):
        publish(segmenter, organ, 2.0)
    segmenter.store.file("a", "v0001").write_bytes(b"junk")
    result = segmenter.segment(new_phantom()[0], {"a": 1, "b": 2})
    assert (result.served, result.unknown) == ({"b": "v0001"}, ("a",))
    assert (result.labelmap == 2).any()


def test_segmentation_can_be_stopped_between_organs(segmenter: OrganSegmenter, new_phantom: Phantom) -> None:
    for organ in ("a", "b", "c"):
        publish(segmenter, organ, 2.0)
    progress: list[tuple[int, int]] = []
    result = segmenter.segment(
        new_phantom()[0], {"a": 1, "b": 2, "c": 3}, lambda: len(progress) < 2, lambda *now: progress.append(now)
    )
    assert progress[:2] == [(0, 3), (1, 3)]
    assert (result.served, result.stopped, result.unknown) == ({"a": "v0001"}, ("b", "c"), ())
    assert (result.labelmap == 1).any()


def test_unknown_organs_are_refused_with_a_remedy(segmenter: OrganSegmenter, new_phantom: Phantom) -> None:
    volume, _ = new_phantom()
    with pytest.raises(InputError, match=r"knows spleen, liver, aorta.* no adapter for heart.*train `organs`"):
        segmenter.segment(volume, {"heart": 1})


def test_out_of_memory_is_reported(
    segmenter: OrganSegmenter, new_phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", full)
    with pytest.raises(BapsError, match="not enough memory"):
        segmenter.segment(new_phantom()[0], {"spleen": 1, "liver": 2})
