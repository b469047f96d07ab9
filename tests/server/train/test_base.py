"""Invalid options are refused by the request or, if they depend on the cases, by the training."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.registry.store import AdapterStore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label
from baps.server.train.adaptation import AdaptationTrainer
from baps.server.train.base import SiteTrainer
from baps.server.train.organs import OrgansTrainer
from baps.training.settings import AdaptationSettings
from tests.support.sites import SAMPLES

LABELS = {"liver": 1, "spleen": 2}


@pytest.fixture
def studies(tmp_path: Path) -> StudiesDatastore:
    """Two labelled volumes."""
    (tmp_path / "studies").mkdir()
    for case in ("ct_01", "ct_02"):
        shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", tmp_path / "studies")
    datastore = StudiesDatastore(str(tmp_path / "studies"), auto_reload=False, read_only=False)
    for case in ("ct_01", "ct_02"):
        save_label(datastore, LABELS, case, SAMPLES / "labels" / f"{case}.nii.gz", "final", {"author": "anna"})
    return datastore


def trainer(black_box: BlackBox, folder: Path) -> SiteTrainer[AdaptationSettings]:
    store = AdapterStore(folder / "adapters")
    return AdaptationTrainer(lambda: black_box, LABELS, store, None, AdaptationSettings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_images": 0}, "max_images must be at least 1"),
        ({"max_images": 100.5}, "must be of type int"),
        ({"max_images": True}, "must be of type int"),
        ({"label": "heart"}, "There is no label 'heart'"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"correction_ratio": 2}, "correction_ratio"),
        ({"prompt": "poke"}, "poke"),
    ],
)
def test_invalid_options_are_refused(
    studies: StudiesDatastore, bundled: BlackBox, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    training = trainer(bundled, tmp_path)
    with pytest.raises(InputError, match=message):
        training.prepare(options, studies)
    assert training.stats() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_images": 10}, "max_images must be at least .* for labels of 2 patients .*, not 10"),
        ({"max_images": 5, "label": "spleen"}, "max_images must be at least"),
    ],
)
def test_insufficient_options_end_the_training(
    studies: StudiesDatastore,
    bundled: BlackBox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    """The training ends before it reads a volume, and its statistics have the reason."""
    monkeypatch.setattr("baps.server.train.base.lower_priority", lambda: None)  # The test process keeps its priority.
    monkeypatch.setattr(AdaptationTrainer, "_train", lambda *_: pytest.fail("It trains."))
    started = trainer(bundled, tmp_path)
    started.prepare(options, studies)
    with pytest.raises(InputError, match=message):
        started(options, studies)
    assert re.search(message, started.stats()["error"])
    assert started.stats()["total_time"]


def test_a_request_reads_no_volume(
    studies: StudiesDatastore, bundled: BlackBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("get_image_uri", "get_label_uri", "patient", "read_final_labels"):
        monkeypatch.setattr(studies, name, lambda *_: pytest.fail("A volume is read."))
    trainer(bundled, tmp_path).prepare({"label": "spleen"}, studies)


def test_there_must_be_a_label_of_the_organ(studies: StudiesDatastore, bundled: BlackBox, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    site = {**LABELS, "heart": 3}
    training = AdaptationTrainer(lambda: bundled, site, store, None, AdaptationSettings())
    with pytest.raises(InputError, match="There are no saved labels of heart to train on"):
        training.prepare({"label": "heart"}, studies)
    training = AdaptationTrainer(lambda: bundled, {"heart": 3}, store, None, AdaptationSettings())
    with pytest.raises(
        InputError, match=r"any organ .* None of its segments \((spleen, liver|liver, spleen)\) is a label of this site"
    ):
        training.prepare({}, studies)
    assert training.stats() == {}


def test_a_valid_training_is_prepared(studies: StudiesDatastore, bundled: BlackBox, tmp_path: Path) -> None:
    training = trainer(bundled, tmp_path)
    training.prepare({"max_images": 1000, "seed": 2**60 + 1}, studies)
    assert "start_time" in training.stats()


def test_an_unsupported_prompt_is_refused(
    studies: StudiesDatastore, new_black_box: Callable[..., Any], tmp_path: Path
) -> None:
    black_box = new_black_box()
    black_box._capabilities = replace(black_box.capabilities, boxes=False)
    with pytest.raises(InputError, match="brightness does not understand the prompt 'box'"):
        trainer(black_box, tmp_path).prepare({"prompt": "box"}, studies)


def test_invalid_options_of_the_organ_model_are_refused(
    studies: StudiesDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.models import load_organ_model
    from baps.fseft.predictor import OrganSegmenter

    store = AdapterStore(tmp_path / "adapters")
    segmenter = OrganSegmenter(load_organ_model(), store, FeatureCache(None))
    training = OrgansTrainer(lambda: segmenter, LABELS, store.inference_lock_file, store.root, None)
    for options, message in (
        ({"method": "magic"}, "magic"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": -1}, "learning_rate must be"),
    ):
        with pytest.raises(InputError, match=message):
            training.prepare(options, studies)
    training.prepare({"method": "bias"}, studies)
    monkeypatch.setattr(
        "baps.fseft.adapters.methods.transformer_blocks", lambda _: []
    )  # As in a convolutional network.
    with pytest.raises(InputError, match="changes transformer blocks, and this model has none"):
        training.prepare({"method": "lora"}, studies)
