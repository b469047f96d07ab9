"""Few-shot adaptation on bright balls, with an untrained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.adapter_file import write_adapter
from baps.errors import InputError
from baps.evaluation.gate import judge_training
from baps.evaluation.splits import patient_hash
from baps.fseft.adaptation import OrganAdaptation, OrganSettings, adapt_organ, plan_organ_adaptation
from baps.fseft.adapter_file import read_organ_adapter
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.models import FoundationModel, OrganModel
from baps.fseft.preprocessing import preprocess
from baps.fseft.volumes import LabelledVolume, VolumesByPatient
from baps.imaging.volume import Volume
from baps.registry.store import AdapterStore
from baps.training.plan import ServedAdapter
from baps.training.publishing import keep_and_publish

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]

SETTINGS = OrganSettings("linear_probe", learning_rate=0.03, epochs=30, crop=12)


@pytest.fixture(scope="module")
def model(unet: FoundationModel) -> OrganModel:
    return OrganModel("unet", unet, "0" * 64, spacing=2.0, side=16)


@pytest.fixture
def volumes(new_phantom: Phantom) -> Callable[[int], VolumesByPatient]:
    """Return a function that makes volumes of some patients, one each."""

    def make(patients: int) -> VolumesByPatient:
        results = {}
        for number in range(patients):
            volume, ball = new_phantom(seed=number)
            prepared = preprocess(volume, 2.0, 16)
            results[f"patient {number}"] = [
                LabelledVolume(f"patient {number}", prepared.image, prepared.mask(ball), None)
            ]
        return results

    return make


def _weights(adapter: FewShotAdapter) -> dict[str, torch.Tensor]:
    return adapter.state_dict()


def _same(first: OrganAdaptation, second: OrganAdaptation) -> bool:
    weights = _weights(first.adapter), _weights(second.adapter)
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][key], weights[1][key]) for key in weights[0]
    )


def test_two_patients_are_left_out_in_turn(model: OrganModel, volumes: Callable[[int], VolumesByPatient]) -> None:
    adaptation = adapt_organ(model, "heart", volumes(2), SETTINGS)
    assert adaptation.comparison is not None
    # The model does not know the organ.
    assert (adaptation.comparison.count, adaptation.comparison.before) == (2, 0.0)
    assert adaptation.comparison.after > 0.7
    assert min(adaptation.scores.differences.values()) > 0
    assert adaptation.record["check"] == "leave some out"
    assert len(adaptation.record["seen_patients"]) == 2
    assert "patient" not in str(adaptation.record["seen_patients"])
    assert adaptation.record["parameters"] == sum(p.numel() for p in adaptation.adapter.trainable_parameters().values())


@pytest.mark.slow
def test_five_patients_are_left_out_in_turn(model: OrganModel, volumes: Callable[[int], VolumesByPatient]) -> None:
    progress: list[int] = []
    adaptation = adapt_organ(
        model, "heart", volumes(5), SETTINGS, progress=lambda epoch, epochs, _: progress.append(epochs)
    )
    assert set(progress) == {5 * SETTINGS.epochs}  # Four fits that leave patients out, and one on all.
    assert adaptation.comparison is not None
    assert (adaptation.comparison.unit, adaptation.comparison.count) == ("patient", 5)
    assert judge_training(adaptation.scores.differences).serves


def test_single_volume_is_not_judged(model: OrganModel, volumes: Callable[[int], VolumesByPatient]) -> None:
    adaptation = adapt_organ(model, "heart", volumes(1), SETTINGS)
    assert (adaptation.comparison, adaptation.scores.differences) == (None, {})
    assert "There is only one patient" in adaptation.sentence()
    assert adaptation.record["curve"][-1][1] > adaptation.record["curve"][0][1]


def test_known_organ_starts_at_the_models_output(model: OrganModel, volumes: Callable[[int], VolumesByPatient]) -> None:
    adaptation = adapt_organ(model, "Liver", volumes(2), SETTINGS)
    assert adaptation.comparison is not None
    assert adaptation.comparison.before > 0  # Random weights give some mask.


def test_the_same_settings_give_the_same_weights(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient], tmp_path: Path
) -> None:
    first = adapt_organ(model, "heart", volumes(1), SETTINGS)
    same = adapt_organ(model, "heart", volumes(1), SETTINGS, feature_cache=FeatureCache(tmp_path / "readings"))
    again = adapt_organ(model, "heart", volumes(1), SETTINGS, feature_cache=FeatureCache(tmp_path / "readings"))
    second = adapt_organ(model, "heart", volumes(1), replace(SETTINGS, seed=1))
    assert _same(first, same)
    assert _same(first, again)
    assert not _same(first, second)
    assert first.record["fingerprint"] == same.record["fingerprint"] != second.record["fingerprint"]


def test_interrupted_run_gives_the_same_result(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baps.fseft.fitting.checkpoint.Checkpoint.due", True)
    unbroken = adapt_organ(model, "heart", volumes(2), SETTINGS)

    def stop(epoch: int, epochs: int, dice: float) -> None:
        if epoch == SETTINGS.epochs + 7:  # In the second of three fits.
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt_organ(model, "heart", volumes(2), SETTINGS, progress=stop, checkpoint_folder=tmp_path)
    progress: list[int] = []
    resumed = adapt_organ(
        model,
        "heart",
        volumes(2),
        SETTINGS,
        progress=lambda epoch, *_: progress.append(epoch),
        checkpoint_folder=tmp_path,
    )
    assert progress[0] == SETTINGS.epochs + 8
    assert _same(unbroken, resumed)
    assert (unbroken.comparison, unbroken.scores) == (resumed.comparison, resumed.scores)
    assert unbroken.record["curve"] == resumed.record["curve"]


def test_interrupted_run_with_other_data_is_not_resumed(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient], tmp_path: Path
) -> None:
    adapt_organ(model, "heart", volumes(1), SETTINGS, checkpoint_folder=tmp_path)
    progress: list[int] = []
    adapt_organ(
        model,
        "heart",
        volumes(1),
        replace(SETTINGS, seed=1),
        progress=lambda e, *_: progress.append(e),
        checkpoint_folder=tmp_path,
    )
    assert progress[0] == 1


def test_candidate_is_published_once_and_compared_with_the_served_version(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient], tmp_path: Path
) -> None:
    store, volumes_by_patient = AdapterStore(tmp_path), volumes(3)
    two = {patient: volumes_by_patient[patient] for patient in list(volumes_by_patient)[:2]}
    plan = plan_organ_adaptation(model, "heart", two, SETTINGS)
    outcome = keep_and_publish(
        store, ["heart"], (model.sha256,), plan.fingerprint, lambda: adapt_organ(model, "heart", two, SETTINGS, plan)
    )
    assert (outcome["serves"], store.served("heart", model.sha256)) == (True, ("heart", "v0001"))

    adapter, record = read_organ_adapter(store.file("heart", "v0001"), model)
    served = ServedAdapter(adapter, record)
    plan = plan_organ_adaptation(model, "heart", volumes_by_patient, SETTINGS)
    assert sorted(group for _, group in plan.split.folds) == [("patient 0",), ("patient 1",), ("patient 2",)]
    adaptation = adapt_organ(model, "heart", volumes_by_patient, replace(SETTINGS, epochs=40), plan, served=served)
    assert adaptation.comparison is not None
    assert adaptation.comparison.count == 3
    assert adaptation.record["against_served"]["count"] == 1  # The new patient.
    assert adaptation.record["against_served"]["gain"] > 0
    assert list(adaptation.scores.served_differences) == [patient_hash("patient 2")]
    assert len(adaptation.record["seen_patients"]) == 3


def test_an_adapter_of_another_model_is_refused(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient], tmp_path: Path
) -> None:
    adapter = adapt_organ(model, "heart", volumes(1), SETTINGS)
    write_adapter(tmp_path / "heart", adapter.adapter, adapter.record)
    back, _ = read_organ_adapter(tmp_path / "heart", model)
    assert all(torch.equal(value, _weights(adapter.adapter)[key]) for key, value in _weights(back).items())
    with pytest.raises(InputError, match="trained for unet with weights 0{12}"):
        read_organ_adapter(tmp_path / "heart", replace(model, sha256="1" * 64))


def test_new_organ_with_low_dice_is_not_served(model: OrganModel, volumes: Callable[[int], VolumesByPatient]) -> None:
    """Any mask is better than the model's empty one, but a bad mask is not useful."""
    adaptation = adapt_organ(model, "heart", volumes(2), replace(SETTINGS, epochs=1, learning_rate=1e-9))
    assert adaptation.comparison is not None
    assert 0 < adaptation.comparison.after < 0.5
    assert not judge_training(adaptation.scores.differences).serves


def test_cubes_are_as_published_where_there_is_a_gpu(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient]
) -> None:
    settings = OrganSettings("full")
    published = settings.for_device(torch.device("cuda"))
    assert (published.crop, published.crops) == (96, 6)
    chosen = replace(settings, crop=32).for_device(torch.device("cpu"))
    assert (chosen.crop, chosen.crops) == (32, 2)
    recorded = plan_organ_adaptation(model, "heart", volumes(1), settings).facts["settings"]
    assert (recorded["crop"], recorded["crops"]) == (64, 2)


def test_no_volumes_is_an_error(model: OrganModel) -> None:
    with pytest.raises(InputError, match="no labels of heart"):
        plan_organ_adaptation(model, "heart", {}, SETTINGS)


def test_query_volumes_are_refused_for_methods_that_see_crops(
    model: OrganModel, volumes: Callable[[int], VolumesByPatient]
) -> None:
    volumes_by_patient, unlabelled = volumes(2), [volumes(1)["patient 0"][0].image]
    with pytest.raises(InputError, match="Omit the unlabelled volumes"):
        adapt_organ(model, "heart", volumes_by_patient, OrganSettings("bias"), unlabelled=unlabelled)
    adaptation = adapt_organ(model, "heart", volumes_by_patient, replace(SETTINGS, epochs=4), unlabelled=unlabelled)
    assert len(adaptation.record["penalties"]) == 2


def test_inapplicable_method_is_refused(model: OrganModel, volumes: Callable[[int], VolumesByPatient]) -> None:
    with pytest.raises(InputError, match="has none. Use bias, full or spatial"):
        plan_organ_adaptation(model, "heart", volumes(1), OrganSettings("lora"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "magic"}, "no method 'magic'"),
        ({"decoder": True}, "cannot train the decoder"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrganSettings(**wrong)  # type: ignore[arg-type]
