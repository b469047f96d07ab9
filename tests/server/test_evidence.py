"""Confirmed labels judge the adapters that serve and the newest ones."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter, identity_adapter
from baps.adapters.visual_prompt import build_visual_prompt
from baps.annotations.first_prompts import FirstPrompts
from baps.blackbox import load_black_box
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case
from baps.evaluation.evidence import EvidenceStream
from baps.evaluation.splits import patient_hash
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.prompts import Prompt
from baps.registry.evidence import change_evidence, read_evidence, read_statuses
from baps.registry.store import SHARED, AdapterStore
from baps.server import evidence as evidence_module
from baps.server.datastores.folder import StudiesDatastore
from baps.server.evidence import ClickJudge, EvidenceCollector, VolumeJudge
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import label_versions
from baps.site.audit import AuditFile
from baps.site.settings import Settings
from tests.support.client import site_client, threaded_site
from tests.support.flood import FloodBlackBox, emptying_adapter, flood_as_volume_model, flood_record
from tests.support.sites import SAMPLES, sample_labels, spleen_click

LABELS = {"liver": 1, "spleen": 2}
CASES = ("ct_01", "ct_02", "ct_03")


class FakeJudge:
    """Gives every adapter the same difference, and remembers whom it was asked to judge."""

    def __init__(self, store: AdapterStore, difference: float = 0.2) -> None:
        self.store, self.difference = store, difference
        self.judged: list[tuple[str, int]] = []

    def identity(self) -> tuple[str, ...]:
        return ("sam",)

    def score(self, label: str, files: Mapping[str, Path], case: Case, volume: str) -> dict[str, float]:
        assert all(file.exists() for file in files.values())
        self.judged.append((case.patient, len(files)))
        return dict.fromkeys(files, self.difference)


class Hospital:
    """A folder of studies, a store with an adapter of the spleen, and a collector."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, studies = folder, folder / "studies"
        studies.mkdir()
        for case in CASES:
            shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", studies)
        self.datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
        self.site = Settings(labels=LABELS, adapters=folder / "adapters", **settings)
        self.store = AdapterStore(self.site.adapters)
        self.audit = AuditFile(self.site.audit_file)
        self.audit.check()
        self.judge = FakeJudge(self.store)
        self.collector = self.restart()

    def restart(self) -> EvidenceCollector:
        return EvidenceCollector(self.datastore, self.site, (self.judge,), self.audit)

    def train(self, *patients: str, name: str = "spleen", **record: Any) -> str:
        """Store a candidate that was trained on patients, and let the gate decide."""
        differences = {patient_hash(patient): 0.1 for patient in patients}
        content = {
            "adapter": identity_adapter().to_dict(),
            "black_box": {"weights_sha256": "sam"},
            "scores": {"differences": differences},
            "seen_patients": list(differences),
            **record,
        }
        version = self.store.add(name, identity_adapter(), content)
        with change_evidence(self.store, name, ("sam",)) as evidence:
            evidence.open(self.store, name, version, "sam")
        return version

    def save(self, case: str, shift: int = 0, **info: object) -> None:
        """Save a label of the spleen and the liver, moved by some voxels."""
        labels = np.roll(sample_labels(case), shift, axis=0)
        affine = nibabel.load(SAMPLES / "images" / f"{case}.nii.gz").affine
        path = self.folder / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), affine), path)
        save_label(self.datastore, LABELS, case, path, "final", info)

    def label_versions(self, case: str) -> dict[str, dict[str, str]]:
        """Return the version of a case's label as a training records it."""
        version = label_versions(self.datastore, LABELS)["spleen"][case]
        return {patient_hash(case): {patient_hash(case): version}}

    def stream(self, version: str, name: str = "spleen") -> EvidenceStream:
        return read_evidence(self.store, name).gate.open(version, "sam")


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def test_patients_who_come_after_the_training_judge_and_those_of_the_training_do_not(hospital: Hospital) -> None:
    hospital.save("ct_01")
    version = hospital.train("ct_01")
    hospital.save("ct_02")
    hospital.collector.collect()
    assert hospital.judge.judged == [("ct_02", 1)]
    stream = hospital.stream(version)
    assert stream.measured() == ["cross-fitted", "after training"]
    assert stream.differences().tolist() == [0.1, 0.2]
    assert stream.patients[1] == patient_hash("ct_02")
    hospital.collector.collect()
    hospital.restart().collect()
    assert len(hospital.judge.judged) == 1


def test_nothing_is_judged_without_adapters(hospital: Hospital) -> None:
    hospital.save("ct_01")
    hospital.collector.collect()
    assert (hospital.judge.judged, hospital.store.labels()) == ([], [])


def test_what_serves_and_the_newest_candidate_are_judged_on_the_same_patient(hospital: Hospital) -> None:
    first = hospital.train("a", "b", "c")
    second = hospital.train("a", "b", "c", scores={"differences": {patient_hash("a"): -0.3}})
    assert hospital.store.published("spleen") == first
    hospital.save("ct_01")
    hospital.collector.collect()
    assert hospital.judge.judged == [("ct_01", 2)]
    assert [patient_hash("ct_01") in hospital.stream(version) for version in (first, second)] == [True, True]


def test_a_label_that_is_submitted_again_is_judged_again_and_counts_once(hospital: Hospital) -> None:
    version = hospital.train("a")
    hospital.save("ct_01")
    hospital.collector.collect()
    hospital.judge.difference = -0.1
    hospital.save("ct_01", shift=1)
    hospital.collector.collect()
    assert len(hospital.judge.judged) == 2
    assert hospital.stream(version).differences().tolist() == [0.1, -0.1]


def test_evidence_of_a_label_that_is_gone_is_dropped(hospital: Hospital) -> None:
    hospital.save("ct_01")
    version = hospital.train("ct_01", "somebody", label_versions=hospital.label_versions("ct_01"))
    hospital.save("ct_02")
    hospital.collector.collect()
    assert len(hospital.stream(version)) == 3
    for case in ("ct_01", "ct_02"):
        hospital.datastore.remove_label(case, "final")
    hospital.collector.collect()
    assert hospital.stream(version).patients == (patient_hash("somebody"),)


def test_a_label_that_changed_since_the_training_does_not_count_and_is_not_judged_by_what_learned_it(
    hospital: Hospital,
) -> None:
    hospital.save("ct_01")
    versions = hospital.label_versions("ct_01")
    hospital.save("ct_01", shift=1)  # While the training runs.
    version = hospital.train("ct_01", "somebody", label_versions=versions)
    hospital.collector.collect()
    hospital.save("ct_01", shift=2)
    hospital.collector.collect()
    assert hospital.judge.judged == []
    assert hospital.stream(version).patients == (patient_hash("somebody"),)


@pytest.mark.parametrize("key", ["seen_patients", "training_patients"])
def test_patients_of_the_training_without_evidence_do_not_judge(hospital: Hospital, key: str) -> None:
    """For example, a training on one patient, or of an earlier release."""
    version = hospital.train(**{key: [patient_hash("ct_01")]})
    hospital.save("ct_01")
    hospital.save("ct_02")
    hospital.collector.collect()
    hospital.restart().collect()
    assert hospital.judge.judged == [("ct_02", 1)]
    assert hospital.stream(version).patients == (patient_hash("ct_02"),)


def test_another_volume_of_a_patient_of_the_training_changes_nothing(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("ct_01,one\nct_02,one\n")
    hospital = Hospital(tmp_path, patients=table)
    hospital.save("ct_01")
    versions = {patient_hash("one"): hospital.label_versions("ct_01")[patient_hash("ct_01")]}
    version = hospital.train("one", seen_patients=[patient_hash("one")], label_versions=versions)
    for shift in (0, 1):
        hospital.save("ct_02", shift)
        hospital.collector.collect()
    assert hospital.judge.judged == []
    assert hospital.stream(version).differences().tolist() == [0.1]


@pytest.mark.parametrize("missing", ["all images", "a label that was not read yet"])
def test_labels_that_are_not_listed_keep_their_evidence(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """For example, a share is not mounted, or many labels were copied into the folder and are read bit by bit."""
    version = hospital.train("a")
    for case in ("ct_01", "ct_02"):
        hospital.save(case)
    hospital.collector.collect()
    with monkeypatch.context() as patch:
        checks = hospital.datastore.known_final_labels()
        kept = {} if missing == "all images" else {"ct_02": checks["ct_02"]}
        patch.setattr(hospital.datastore, "known_final_labels", lambda **_: kept)
        hospital.collector.collect()
    assert len(hospital.stream(version)) == 3
    hospital.collector.collect()
    assert len(hospital.judge.judged) == 2


def test_a_label_without_adapters_judges_the_shared_adapter_which_serves_it(hospital: Hospital) -> None:
    version = hospital.train("a", name=SHARED)
    hospital.judge.difference = -0.3
    for case in CASES:
        hospital.save(case)
    hospital.collector.collect()
    assert len(hospital.judge.judged) == 2 * len(CASES)  # Of liver and spleen.
    assert len(hospital.stream(version, SHARED)) == 1 + len(CASES)
    assert hospital.store.published(SHARED) is None


def test_a_fault_of_one_label_does_not_stop_the_others(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hospital.train("a", name="liver")
    version = hospital.train("a")
    hospital.save("ct_01")
    score = hospital.judge.score

    def fail_on_liver(label: str, *others: Any) -> dict[str, float]:
        if label == "liver":
            raise RuntimeError(label)
        return score(label, *others)

    monkeypatch.setattr(hospital.judge, "score", fail_on_liver)
    hospital.collector.collect()
    assert "RuntimeError" in caplog.text
    assert len(hospital.stream(version)) == 2


def test_a_damaged_candidate_does_not_keep_the_next_one_from_being_judged(hospital: Hospital) -> None:
    damaged = hospital.train("a")
    hospital.store.file("spleen", damaged).write_text("rubbish")
    hospital.save("ct_01")
    hospital.collector.collect()
    assert hospital.judge.judged == []
    hospital.train("a")
    hospital.collector.collect()
    assert hospital.judge.judged == [("ct_01", 1)]


def test_labels_that_no_person_confirmed_do_not_judge(hospital: Hospital) -> None:
    hospital.train("a")
    hospital.save("ct_01", confirmed=False)
    hospital.collector.collect()
    assert hospital.judge.judged == []


def test_two_volumes_of_a_patient_count_as_one(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("ct_01,one\nct_02,one\nct_03,two\n")
    hospital = Hospital(tmp_path, patients=table)
    version = hospital.train("a")
    for case, difference in zip(CASES, (0.1, 0.3, 0.5), strict=True):
        hospital.judge.difference = difference
        hospital.save(case)
        hospital.collector.collect()
    assert hospital.stream(version).differences().tolist() == pytest.approx([0.1, 0.2, 0.5])


def test_a_label_that_cannot_judge_is_not_tried_again(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital.train("a")
    hospital.save("ct_01")
    tried = 0

    def refuse(*_: object) -> dict[str, float]:
        nonlocal tried
        tried += 1
        raise InputError("The organ is too small.")

    monkeypatch.setattr(hospital.judge, "score", refuse)
    hospital.collector.collect()
    hospital.collector.collect()
    assert tried == 1


def test_changes_of_the_state_are_audited_without_patients(hospital: Hospital) -> None:
    version = hospital.train("a", "b", "c")
    hospital.judge.difference = -0.4
    for case in CASES:
        hospital.save(case)
    hospital.collector.collect()
    assert hospital.store.published("spleen") is None
    assert not read_statuses(hospital.store, "spleen")[version].serves
    lines = [json.loads(line) for line in hospital.site.audit_file.read_text().splitlines()]
    changes = [line for line in lines if line["what"] == "change the state of an adapter"]
    assert changes[-1]["adapter"] == f"spleen/{version}"
    assert (changes[-1]["by"], changes[-1]["serves"]) == ("server", False)
    assert not any(case in json.dumps(changes) for case in CASES)


def test_the_only_label_of_a_site_also_judges_the_adapter_of_clicks_without_a_label(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.site = Settings(labels={"spleen": 2}, adapters=hospital.site.adapters)
    for name in ("spleen", SHARED):
        hospital.train("a", name=name, fingerprint="the same")
    hospital.save("ct_01")
    hospital.restart().collect()
    assert hospital.judge.judged == [("ct_01", 1)]
    for name in ("spleen", SHARED):
        assert hospital.stream("v0001", name).differences().tolist() == [0.1, 0.2]


def test_clicks_on_a_confirmed_label_are_counted_and_compared(hospital: Hospital) -> None:
    """The bundled model with an adapter that blackens the image."""
    black_box = load_black_box()
    weights = black_box.capabilities.weights_sha256
    visual_prompt = build_visual_prompt("basis")
    with torch.no_grad():
        visual_prompt.head.bias.view(3, 4)[:, 0] = -5  # type: ignore[union-attr, operator]
    adapter = Adapter(visual_prompt)
    record = {"adapter": adapter.to_dict(), "black_box": {"weights_sha256": weights}}
    version = hospital.store.add("spleen", adapter, record)
    hospital.store.publish("spleen", version)
    hospital.save("ct_01")
    before = black_box.images_queried
    judge = ClickJudge(lambda: black_box, hospital.store, 12, FirstPrompts(hospital.folder / "prompts.sqlite"))
    EvidenceCollector(hospital.datastore, hospital.site, (judge,), hospital.audit).collect()
    assert 0 < black_box.images_queried - before <= 12
    stream = read_evidence(hospital.store, "spleen").gate.open(version, weights)
    assert stream.patients == (patient_hash("ct_01"),)
    assert stream.differences()[0] < -0.1


def test_too_few_images_judge_nothing(hospital: Hospital) -> None:
    black_box = load_black_box()
    judge = ClickJudge(lambda: black_box, hospital.store, 1, FirstPrompts(hospital.folder / "prompts.sqlite"))
    case = Case(SAMPLES / "images" / "ct_01.nii.gz", SAMPLES / "labels" / "ct_01.nii.gz", 2, "ct_01")
    version = hospital.train("a")
    assert judge.score("spleen", {"0": hospital.store.file("spleen", version)}, case, "volume") == {}


def test_a_click_and_a_submitted_label_become_evidence_on_a_running_server(tmp_path: Path) -> None:
    capabilities = load_black_box().capabilities
    with threaded_site(tmp_path, cases=2) as site:
        store = AdapterStore(site.adapters)
        trained_for = {"weights_sha256": capabilities.weights_sha256}
        record = {"adapter": identity_adapter().to_dict(), "black_box": trained_for}
        version = store.add("spleen", identity_adapter(), record)
        store.publish("spleen", version)
        point = spleen_click("ct_01")
        site.client.infer("baps", "ct_01", {"foreground": [point], "background": [], "label": "spleen"})
        affine = nibabel.load(SAMPLES / "images" / "ct_01.nii.gz").affine
        path = tmp_path / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image((sample_labels("ct_01") == 2).astype(np.uint8), affine), path)
        site.client.save_label("ct_01", str(path), "final", {"label_info": [{"name": "spleen", "idx": 1}]})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            stream = read_evidence(store, "spleen").gate.open(version, capabilities.weights_sha256)
            if len(stream):
                break
            time.sleep(0.2)
        prompts = FirstPrompts(site.adapters / "prompts.sqlite").read(patient_hash("ct_01"), "spleen")
    assert stream.patients == (patient_hash("ct_01"),)
    assert stream.differences().tolist() == [0]  # An identity makes no difference.
    assert prompts == {point[2]: Prompt(((float(point[0]), float(point[1])),))}


def test_a_label_that_cannot_judge_does_not_keep_another_label_of_the_image_from_judging(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both organs are in one file."""
    hospital.train("a", name="liver")
    version = hospital.train("a")
    hospital.save("ct_01")
    score = hospital.judge.score

    def refuse_liver(label: str, *others: Any) -> dict[str, float]:
        if label == "liver":
            raise InputError("The organ is too small.")
        return score(label, *others)

    monkeypatch.setattr(hospital.judge, "score", refuse_liver)
    hospital.collector.collect()
    assert len(hospital.stream(version)) == 2


FLOOD = FloodBlackBox().capabilities.identity


def _volume_judge(hospital: Hospital, load: Callable[[], FloodBlackBox], predictions: int = 60) -> VolumeJudge:
    segmenter = VolumeSegmenter(load, AdapterStore(hospital.site.adapters / "volumes"))
    return VolumeJudge(segmenter, hospital.store.inference_lock_file, predictions)


def _train_volume_model(store: AdapterStore, *patients: str, **record: Any) -> str:
    """Store a version for the 3D model that was trained on patients, and serve it."""
    differences = {patient_hash(patient): 0.1 for patient in patients}
    adapter = emptying_adapter()
    more = {"scores": {"differences": differences}, "seen_patients": list(differences), **record}
    version = store.add("spleen", adapter, flood_record(adapter, **more))
    store.publish("spleen", version)
    with change_evidence(store, "spleen", FLOOD) as evidence:
        evidence.open(store, "spleen", version, " ".join(FLOOD))
    return version


def _volume_stream(store: AdapterStore, version: str) -> EvidenceStream:
    return read_evidence(store, "spleen").gate.open(version, " ".join(FLOOD))


def test_a_confirmed_label_judges_adapters_of_the_3d_model_with_six_predictions(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    black_box, waited = FloodBlackBox(), list[Path]()
    monkeypatch.setattr(evidence_module, "wait_for_idle", lambda file: lambda: waited.append(file))
    judge = _volume_judge(hospital, lambda: black_box)
    hospital.save("ct_01")
    versions = [_train_volume_model(judge.store, "ct_01") for _ in range(2)]
    hospital.save("ct_02")
    collector = EvidenceCollector(hospital.datastore, hospital.site, (hospital.judge, judge), hospital.audit)
    for _ in range(2):
        collector.collect()
    assert 0 < black_box.images_queried <= 6
    assert waited == [hospital.store.inference_lock_file] * black_box.images_queried  # Users go first.
    assert hospital.judge.judged == []  # Adapters of clicks are in another store.
    stream = _volume_stream(judge.store, versions[-1])
    assert stream.patients == (patient_hash("ct_01"), patient_hash("ct_02"))
    assert stream.measured() == ["cross-fitted", "after training"]
    assert stream.differences()[1] < -0.1
    assert black_box.wait is None  # Users of the same model do not wait for themselves.


def test_a_site_may_allow_fewer_predictions(hospital: Hospital) -> None:
    black_box = FloodBlackBox()
    judge = _volume_judge(hospital, lambda: black_box, 3)
    _train_volume_model(judge.store)
    hospital.save("ct_01")
    EvidenceCollector(hospital.datastore, hospital.site, (judge,), hospital.audit).collect()
    assert black_box.images_queried == 2


@pytest.mark.parametrize("fault", ["load", "predict"])
def test_a_3d_model_that_is_away_is_tried_again_later(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    black_box, tried, is_away = FloodBlackBox(), 0, True
    predict = black_box._predict

    def fail_if(kind: str) -> None:
        nonlocal tried
        if is_away and kind == fault:
            tried += 1
            raise BapsError("The server does not answer. Start it.")

    def load() -> FloodBlackBox:
        fail_if("load")
        return black_box

    def predict_or_fail(*arguments: Any) -> Any:
        fail_if("predict")
        return predict(*arguments)

    monkeypatch.setattr(black_box, "_predict", predict_or_fail)
    judge = _volume_judge(hospital, load)
    version = _train_volume_model(judge.store, "somebody")
    hospital.train("a")
    for case in CASES:
        hospital.save(case)
    collector = EvidenceCollector(hospital.datastore, hospital.site, (judge, hospital.judge), hospital.audit)
    for _ in range(3):
        collector.collect()
    assert tried == 1
    assert len(hospital.judge.judged) == len(CASES)  # Another model is not kept from judging.
    monkeypatch.setattr(evidence_module, "_AWAY_SECONDS", 0)
    collector._away.clear()
    for _ in range(3):
        collector.collect()
    assert tried == 4
    said = [one.getMessage() for one in caplog.records if "does not answer" in one.getMessage()]
    assert said == ["spleen: adapters wait to be judged. The server does not answer. Start it."] * 2
    is_away = False
    collector.collect()
    assert len(_volume_stream(judge.store, version)) == 1 + len(CASES)
    assert not collector._away


def test_a_submitted_label_judges_the_3d_model_of_a_running_server(tmp_path: Path) -> None:
    with flood_as_volume_model(), threaded_site(tmp_path, cases=1, settings={"volume_black_box": "bundled3d"}) as site:
        store = AdapterStore(site.adapters / "volumes")
        version = _train_volume_model(store)
        affine = nibabel.load(SAMPLES / "images" / "ct_01.nii.gz").affine
        path = tmp_path / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image((sample_labels("ct_01") == 2).astype(np.uint8), affine), path)
        site.client.save_label("ct_01", str(path), "final", {"label_info": [{"name": "spleen", "idx": 1}]})
        deadline = time.monotonic() + 60
        while not len(_volume_stream(store, version)) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert _volume_stream(store, version).patients == (patient_hash("ct_01"),)


def test_a_site_without_a_3d_model_does_not_judge_its_adapters(tmp_path: Path) -> None:
    with site_client(tmp_path) as client:
        app = client.app.state.web.app  # type: ignore[attr-defined]
        assert [type(judge).__name__ for judge in app._collector._judges] == ["ClickJudge", "OrganJudge"]
