"""What no training can use is refused by the request, or, where that depends on the cases, by the training."""

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
    made = StudiesDatastore(str(tmp_path / "studies"), auto_reload=False, read_only=False)
    for case in ("ct_01", "ct_02"):
        save_label(made, LABELS, case, SAMPLES / "labels" / f"{case}.nii.gz", "final", {"author": "anna"})
    return made


def trainer(black_box: BlackBox, folder: Path) -> SiteTrainer[AdaptationSettings]:
    store = AdapterStore(folder / "adapters")
    return AdaptationTrainer(lambda: black_box, LABELS, store, None, AdaptationSettings())


@pytest.mark.parametrize(
    ("options", "said"),
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
def test_options_that_no_training_can_use(
    studies: StudiesDatastore, bundled: BlackBox, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    asked = trainer(bundled, tmp_path)
    with pytest.raises(InputError, match=said):
        asked.prepare(options, studies)
    assert asked.stats() == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_images": 10}, "max_images must be at least .* for labels of 2 patients .*, not 10"),
        ({"max_images": 5, "label": "spleen"}, "max_images must be at least"),
    ],
)
def test_options_that_do_not_suffice_for_the_cases(
    studies: StudiesDatastore,
    bundled: BlackBox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    said: str,
) -> None:
    """The training ends before it reads a volume, and its statistics say why."""
    monkeypatch.setattr("baps.server.train.base.lower_priority", lambda: None)  # This process goes on.
    monkeypatch.setattr(AdaptationTrainer, "_train", lambda *_: pytest.fail("It trains."))
    started = trainer(bundled, tmp_path)
    started.prepare(options, studies)
    with pytest.raises(InputError, match=said):
        started(options, studies)
    assert re.search(said, started.stats()["error"])
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
    asked = AdaptationTrainer(lambda: bundled, site, store, None, AdaptationSettings())
    with pytest.raises(InputError, match="There are no saved labels of heart to train on"):
        asked.prepare({"label": "heart"}, studies)
    asked = AdaptationTrainer(lambda: bundled, {"heart": 3}, store, None, AdaptationSettings())
    with pytest.raises(InputError, match="any organ .* Its segments spleen, liver|liver, spleen are no labels of this"):
        asked.prepare({}, studies)
    assert asked.stats() == {}


def test_what_can_be_trained_is_prepared(studies: StudiesDatastore, bundled: BlackBox, tmp_path: Path) -> None:
    asked = trainer(bundled, tmp_path)
    asked.prepare({"max_images": 1000, "seed": 2**60 + 1}, studies)
    assert "start_time" in asked.stats()


def test_a_prompt_that_the_model_does_not_understand(
    studies: StudiesDatastore, new_black_box: Callable[..., Any], tmp_path: Path
) -> None:
    black_box = new_black_box()
    black_box._capabilities = replace(black_box.capabilities, boxes=False)
    with pytest.raises(InputError, match="brightness does not understand the prompt 'box'"):
        trainer(black_box, tmp_path).prepare({"prompt": "box"}, studies)


def test_options_that_the_organ_model_cannot_use(
    studies: StudiesDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baps.fseft.feature_cache import FeatureCache
    from baps.fseft.models import load_organ_model
    from baps.fseft.predictor import OrganSegmenter

    store = AdapterStore(tmp_path / "adapters")
    segmenter = OrganSegmenter(load_organ_model(), store, FeatureCache(None))
    asked = OrgansTrainer(lambda: segmenter, LABELS, store, store.root, None)
    for options, said in (
        ({"method": "magic"}, "magic"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": -1}, "learning_rate must be"),
    ):
        with pytest.raises(InputError, match=said):
            asked.prepare(options, studies)
    asked.prepare({"method": "bias"}, studies)
    monkeypatch.setattr(
        "baps.fseft.adapters.methods.transformer_blocks", lambda _: []
    )  # As in a network of convolutions.
    with pytest.raises(InputError, match="changes transformer blocks, and this model has none"):
        asked.prepare({"method": "lora"}, studies)
