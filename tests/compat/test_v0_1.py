"""Files of version 0.1 still work: settings, adapters, labels, users, secrets and the audit file.

``tests/fixtures/v0_1/README.md`` says how the files were made. ``expected/`` has the results of version 0.1 for
them, written by the functions of this file at that commit. Every test works on a copy, so that nothing is written into
the repository.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray

from baps.adapters.adapter_file import read_adapter
from baps.annotations.history import LabelHistory
from baps.blackbox import BlackBox
from baps.blackbox.remote.inference_protocol import Address, connect
from baps.cli import app as command_line
from baps.errors import BapsError
from baps.evaluation.cases import load_cases
from baps.fseft.adapter_file import read_organ_adapter
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.models import OrganModel, load_organ_model
from baps.fseft.predictor import OrganSegmenter, predict
from baps.fseft.preprocessing import preprocess
from baps.inference.requests.click import read_click
from baps.inference.segmenter import Segmenter
from baps.io import read_label_map, read_volume
from baps.registry.store import AdapterStore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.train.adaptation import AdaptationTrainer
from baps.server.train.organs import OrgansTrainer
from baps.server.training_cases import labelled_cases
from baps.site.audit import AuditFile
from baps.site.audit_check import check_audit
from baps.site.openid_settings import read_openid
from baps.site.pacs_credentials import read_pacs_credentials
from baps.site.settings import Settings, read_settings
from baps.site.users import Users
from baps.training.publishing import adapt_and_publish
from baps.training.settings import AdaptationSettings
from baps.utils.deprecation import OldNameWarning
from baps.utils.limits import max_volume_bytes
from tests.support.paths import ROOT, SAMPLE_DATA

FIXTURE = ROOT / "tests" / "fixtures" / "v0_1"
SAMPLES = SAMPLE_DATA / "ct" / "images"

# All renames: {name in version 0.1: name now}. Names that are not listed are unchanged.
SETTINGS = {
    "ahead": "prefetch_slices",
    "most_upload_mb": "max_upload_mb",
    "most_volume_mb": "max_volume_mb",
    "organ_cache_gb": "feature_cache_gb",
    "pacs_login": "pacs_credentials",
    "remote_batch": "remote_batch_size",
    "remote_patience": "remote_retry_seconds",
    "remote_side": "remote_image_size",
    "whole_labels": "complete_labels",
}
REMOTE = {"side": "image_size", "patience": "retry_seconds"}
TRAINING = {
    "batch": "batch_size",
    "corrected": "correction_ratio",
    "radius": "perturbation_radius",
    "rate": "learning_rate",
}
ORGAN_TRAINING = {"rate": "learning_rate"}
OPTIONS = {
    "corrected": "correction_ratio",
    "optimizer": "optimiser",
    "queries": "unlabelled",
    "rate": "learning_rate",
    "zero_shot": "unadapted",
}
"""Of the parameters of the commands' functions."""
STATUSES = {"passed": "accepted", "refused": "rejected"}
"""What a check said of an adapter."""
RECORD = {"known_patients": "seen_patients"}
"""Keys of an adapter's record."""
LABEL_INFO = {"covers": "annotated_slices"}
"""Keys of what is kept of a label."""

LABELS = {"spleen": 2, "left kidney": 4}
"""Of the site."""

TOKENS = {
    "anna": "baps_n0oHvHUAWFWW4hzapl7oI6vGJYdkUrn6pnVnm6XmUOY",
    "ben": "baps_f2JbJyMN2O-Yaj277GMM_YXv8AKfyRQymvAhkURb2M8",
    "tess": "baps_1ajrpD5YMnjBL2AwE8BIUkdmaGhzXbxA3N2cgFKcCuY",
}
"""Made for this test; they open nothing else."""

UNSURE = 1e-3
"""Another processor may round a probability so near to 0.5 to the other side."""


@dataclass(frozen=True)
class Site:
    """A copy of the files of version 0.1."""

    folder: Path

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def store(self) -> AdapterStore:
        return AdapterStore(self.folder / "adapters")

    @property
    def organ_store(self) -> AdapterStore:
        return AdapterStore(self.folder / "adapters" / "organs")

    @property
    def datastore(self) -> StudiesDatastore:
        return StudiesDatastore(str(self.studies), False, False)

    def image(self, name: str) -> Path:
        """Return the path of a volume of the site, or of the sample data: ``samples/ct_09``."""
        folder, _, case = name.rpartition("/")
        return (SAMPLES if folder else self.studies) / f"{case}.nii.gz"


def copy_site(folder: Path) -> Site:
    """Copy the fixture, with the permissions that git does not store."""
    shutil.copytree(FIXTURE, folder)
    for path in (folder / "adapters" / "audit.jsonl.key", *(folder / "secrets").iterdir()):
        path.chmod(0o600)
    return Site(folder)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return copy_site(tmp_path / "site")


@pytest.fixture(scope="module")
def organ_model() -> OrganModel:
    return load_organ_model("bundled", None, "", "cpu")


def expected(name: str) -> Any:
    """Read the results of version 0.1."""
    return json.loads((FIXTURE / "expected" / f"{name}.json").read_text())


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename the keys of version 0.1 to the new ones."""
    return {names.get(name, name): value for name, value in values.items()}


@contextmanager
def one_warning_each(old_names: Iterable[str], names: Mapping[str, str]) -> Iterator[None]:
    """Check that there is exactly one warning for each old name, which gives the new one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OldNameWarning)
        yield
    sentences = [str(one.message) for one in caught if issubclass(one.category, OldNameWarning)]
    requested = {old: names[old] for old in old_names if old in names}
    assert len(sentences) == len(requested), sentences
    for old, new in requested.items():
        (sentence,) = [one for one in sentences if one.startswith(f"{old} ")]
        assert f"is now called {new}." in sentence


# Settings.


def plain(value: Any) -> Any:
    """Convert a setting to JSON values."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, (tuple, list)) else value


def environment() -> dict[str, str]:
    lines = (FIXTURE / "environment").read_text().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def read_of(source: str) -> Settings:
    """Read settings from a file, the environment or ``--conf`` pairs."""
    if source == "environment":
        return read_settings({}, environment())
    if source == "conf.json":
        words = json.loads((FIXTURE / source).read_text())
        return read_settings(dict(zip(words[1::3], words[2::3], strict=True)), {})
    return read_settings({"config": str(FIXTURE / "settings" / source)}, {})


SOURCES = [*sorted(path.name for path in (FIXTURE / "settings").glob("*.json")), "environment", "conf.json"]


@pytest.mark.parametrize("source", SOURCES)
def test_settings_are_read_as_before(source: str) -> None:
    requested = expected("settings")[source]
    names, old_names = SETTINGS, set(requested)
    if source == "empty_values.json":
        old_names = set(json.loads((FIXTURE / "settings" / source).read_text()))
    elif source == "environment":
        names = {f"BAPS_{old.upper()}": f"BAPS_{new.upper()}" for old, new in SETTINGS.items()}
        old_names = {f"BAPS_{old.upper()}" for old in requested}
    with one_warning_each(old_names, names):
        settings = read_of(source)
    results = {name: plain(getattr(settings, name)) for name in renamed(requested, SETTINGS)}
    assert results == renamed(requested, SETTINGS)


def test_fixture_has_every_setting_of_version_0_1() -> None:
    names = set(expected("settings")["every_setting.json"])
    assert len(names) == 38
    assert {f"BAPS_{name.upper()}" for name in names} <= set(environment())
    assert {SETTINGS.get(name, name) for name in names} <= set(vars(Settings()))
    assert all(expected("settings")[source].keys() == names for source in ("environment", "conf.json"))


def test_an_empty_value_means_the_default_as_before() -> None:
    assert read_of("empty_values.json") == Settings()


def test_a_remote_model_is_described_as_before() -> None:
    remote = read_of("remote.json").remote_model
    assert remote is not None
    requested = {"address": "grpc://10.0.0.5:8081/sam", "side": 768, "batch_size": 2, "prompts": "boxes"}
    requested |= {"timeout": 30.0, "patience": 300.0}
    assert asdict(remote) == {**renamed(requested, REMOTE), "connections": 1}


def test_other_variables_are_read_as_before(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment()
    provider = read_openid(site.folder / "secrets" / "openid.json", variables)
    assert provider.client_secret == variables["BAPS_OPENID_SECRET"]
    login = read_pacs_credentials(None, variables)
    assert (login.user, login.password) == ("baps", variables["MONAI_LABEL_DICOMWEB_PASSWORD"])
    for name in ("BAPS_MOST_VOLUME_MB", "BAPS_REMOTE_TOKEN"):
        monkeypatch.setenv(name, variables[name])
    monkeypatch.delenv("BAPS_MAX_VOLUME_MB", raising=False)
    with one_warning_each(["BAPS_MOST_VOLUME_MB"], {"BAPS_MOST_VOLUME_MB": "BAPS_MAX_VOLUME_MB"}):
        assert max_volume_bytes() == 2048 << 20
    with pytest.raises(BapsError, match="token"):  # The token is read: it must not be sent unencrypted.
        connect(Address.parse("http://models.hospital:8000/sam"), 1.0)
    file = site.folder / "settings" / "folder.json"
    assert read_settings({}, {"BAPS_CONFIG": str(file)}) == read_settings({"config": str(file)}, {})


@pytest.mark.parametrize("line", json.loads((FIXTURE / "command_lines.json").read_text()))
def test_command_lines_are_read_as_before(line: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, str] = {}

    def recording(callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def record(**given: object) -> None:
            for name, value in given.items():
                one = value[0] if isinstance(value, list) and len(value) == 1 else value  # It may be repeated now.
                read[name] = str(getattr(one, "value", one))

        return record

    for command in commands(command_line):
        monkeypatch.setattr(command, "callback", recording(command.callback))
    options = {f"--{old}".replace("_", "-"): f"--{new}".replace("_", "-") for old, new in OPTIONS.items()}
    with one_warning_each(line["words"], options):
        command_line(list(line["words"]), standalone_mode=False)
    requested = renamed(line["read"], OPTIONS)
    assert {name: read.get(name) for name in requested} == requested


def commands(app: typer.Typer) -> Iterator[Any]:
    """List all commands, including those of groups."""
    yield from app.registered_commands
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance)


@pytest.mark.parametrize("line", json.loads((FIXTURE / "training_options.json").read_text()))
def test_training_options_are_read_as_before(line: Mapping[str, Any], tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    defaults = AdaptationSettings(visual_prompt="basis")  # It is tone by now.
    trainers: dict[str, Any] = {
        "baps": AdaptationTrainer(lambda: pytest.fail("no model"), {}, store, None, defaults),
        "organs": OrgansTrainer(lambda: pytest.fail("no model"), {}, store.inference_lock_file, tmp_path, None),
    }
    trainer = trainers[line["trainer"]]
    names = TRAINING if line["trainer"] == "baps" else ORGAN_TRAINING
    with one_warning_each(line["request"], names):
        settings = trainer._settings(trainer.read_options(dict(line["request"])))
    if line["trainer"] == "organs":
        settings = settings.for_device(torch.device("cpu"))
    requested = renamed(line["settings"], names)
    assert {name: getattr(settings, name) for name in requested} == requested


# Adapters.


def adapter_facts(store: AdapterStore) -> dict[str, Any]:
    """Describe all versions of a store, with the keys of version 0.1."""
    keys = ("parent", "created", "known_patients", "fingerprint", "adapter_sha256", "verdict", "status")
    result: dict[str, Any] = {}
    for label in store.labels():
        versions = {}
        for version in store.versions(label):
            record = store.record(label, version)
            versions[version] = {key: record.get(RECORD.get(key, key)) for key in keys}
            versions[version]["was_served"] = store.was_served(label, version)
        result[label] = {"versions": versions, "published": store.published(label)}
    return result


@pytest.mark.parametrize("kind", ["adapters", "organs"])
def test_versions_of_adapters_are_listed_as_before(site: Site, kind: str) -> None:
    requested = expected("adapters")[kind]
    for label in requested.values():
        for version in label["versions"].values():
            version["status"] = STATUSES.get(version["status"], version["status"])
    assert adapter_facts(site.store if kind == "adapters" else site.organ_store) == requested


def clicks() -> list[dict[str, Any]]:
    """Read requests of viewers, and the image of each."""
    return json.loads((FIXTURE / "expected" / "clicks.json").read_text())


def probability(segmenter: Segmenter, site: Site, request: Mapping[str, Any], label: str, adapted: bool = True) -> Any:
    """Segment a click; return the probabilities and the adapter that answered."""
    image = site.image(request["image"])
    volume, _ = segmenter.volume(image)
    click = read_click({**request["click"], "label": label}, volume, list(LABELS))
    answer = segmenter.segment(image, click.plane, click.prompt, segmenter.load_adapter(label) if adapted else None)
    return answer.probability, answer.adapter


def answers(site: Site, black_box: BlackBox) -> Iterator[tuple[str, NDArray[np.float32], Any]]:
    """Segment every click with every adapter; yields a name, the probabilities, and the adapter that answered."""
    store = site.store
    for file in sorted((site.folder / "adapter_files").glob("*.safetensors*")):
        adapter, record = read_adapter(file)
        store.publish(file.name, store.add(file.name, adapter, record, "unverified"))
    segmenter = Segmenter(black_box, store)
    for number, request in enumerate(clicks()):
        yield f"unadapted {number}", *probability(segmenter, site, request, "spleen", adapted=False)
    for label in store.labels():
        for version in store.versions(label):
            store.publish(label, version)
            for number, request in enumerate(clicks()):
                yield f"{label or 'shared'} {version} {number}", *probability(segmenter, site, request, label)


def test_adapters_serve_the_same_masks(site: Site, bundled: BlackBox) -> None:
    served_at_first = {label: site.store.published(label) for label in site.store.labels()}
    requested, answered = np.load(FIXTURE / "expected" / "masks.npz"), expected("answered_by")
    names = []
    for name, result, by in answers(site, bundled):
        names.append(name)
        mask = requested[name]
        assert mask.shape == result.shape, name
        differs = ((result > 0.5) != mask) & (np.abs(result - 0.5) > UNSURE)
        assert not differs.any(), f"{name}: {differs.sum()} of {mask.sum()} voxels"
        assert (list(by) if by else None) == answered[name], name
    assert sorted(names) == sorted(requested.files)
    assert served_at_first == {label: one["published"] for label, one in expected("adapters")["adapters"].items()}


def organ_answers(site: Site, model: OrganModel) -> Iterator[tuple[str, NDArray[Any]]]:
    """Compute the masks of the served adapters and of the unadapted model, and each adapter's probabilities."""
    store, readings = site.organ_store, FeatureCache(site.folder / "readings")
    volume = read_volume(site.image("ct_05"))
    prepared = preprocess(volume, model.spacing, model.side)
    reading = readings.for_image(model, prepared.image)

    def segment() -> NDArray[np.uint8]:
        return OrganSegmenter(model, store, readings).segment(volume, LABELS).labelmap

    yield "served", segment()
    for label in store.labels():
        for version in store.versions(label):
            adapter, _ = read_organ_adapter(store.file(label, version), model)
            yield (
                f"{label} {version}",
                predict(adapter, prepared, reading, model.side)[::2, ::2, ::2].astype(np.float16),
            )
        store.withdraw(label)
    yield "unadapted", segment()


def test_organ_adapters_give_the_same_masks(site: Site, organ_model: OrganModel) -> None:
    requested, names = np.load(FIXTURE / "expected" / "organs.npz"), []
    for name, result in organ_answers(site, organ_model):
        names.append(name)
        if result.dtype == np.uint8:
            disputed = (result > 0) & (requested[name] > 0)  # What several organs claim is the smallest one's now.
            changed = (result != requested[name]) & ~disputed
            assert changed.sum() <= 0.002 * requested[name].astype(bool).sum(), name
            assert (result != requested[name]).sum() <= 0.004 * requested[name].astype(bool).sum(), name
        else:
            np.testing.assert_allclose(result, requested[name], atol=2e-3, err_msg=name)
            assert requested[name].std() > 0.005, name  # A constant mask would prove little.
    assert sorted(names) == sorted(requested.files)


def training_slices(site: Site, black_box: BlackBox, organ: str) -> Any:
    """Load the labelled slices of an organ as the server's trainer does."""
    cases, _ = labelled_cases(site.datastore, LABELS, {})
    slices, skipped = load_cases(cases[organ], black_box.capabilities.input_size, 24, site.folder)
    assert not skipped
    return slices


def test_stopped_training_of_another_version_begins_anew(site: Site, bundled: BlackBox) -> None:
    """The procedure has changed since, so that the answers in the log are to other questions."""
    log, settings = site.store.log("spleen"), AdaptationSettings(**renamed({"max_images": 200, "seed": 7}, TRAINING))
    assert json.loads(log.read_text().splitlines()[-1])["images"] > 0
    versions = site.store.versions("spleen")
    outcome = adapt_and_publish(site.store, ("spleen",), bundled, training_slices(site, bundled, "spleen"), settings)
    assert outcome["replayed_images"] == 0
    assert site.store.versions("spleen") == [*versions, outcome["version"]]
    assert not log.exists()


def test_finished_training_is_repeated_with_the_new_procedure_and_the_old_version_is_kept(
    site: Site, bundled: BlackBox
) -> None:
    requested = expected("retrained")
    settings, label = AdaptationSettings(**renamed(requested["settings"], TRAINING)), requested["label"]
    record = site.store.record(label, requested["version"])
    result = adapt_and_publish(site.store, (label,), bundled, training_slices(site, bundled, label), settings)
    assert result["version"] > requested["version"]
    assert site.store.record(label, requested["version"]) == record


# Labels.


def sha256(voxels: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(voxels, np.uint8).tobytes()).hexdigest()[:16]


def label_facts(site: Site) -> dict[str, Any]:
    """Describe every version of every label, and the labels that are served and trained on."""
    history, datastore = LabelHistory(site.studies), site.datastore
    labels: dict[str, Any] = {}
    for image, tag in history.labels():
        volume = read_volume(history.image_file(image))
        versions = []
        for version in history.versions(image, tag):
            old_keys = {new: old for old, new in LABEL_INFO.items()}
            info = {old_keys.get(key, key): value for key, value in version.info.items() if key != "label_info"}
            names = {one["name"]: one["idx"] for one in version.info["label_info"]}
            result = read_label_map(version.file, volume)
            masks = {name: sha256(result.mask(value)) for name, value in names.items()}
            facts = {"name": version.name, "sha256": version.sha256, "info": info, "names": names, "masks": masks}
            versions.append({**facts, "is_evidence": version.used_in_training})
        file, info = history.served(image, tag)
        served = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "version": info["version"]}
        newest, _ = history.newest(image, tag)
        labels[f"{image} {tag}"] = {
            "versions": versions, "served": served, "newest": newest, "removed": history.removed(image, tag)
        }  # fmt: skip
    cases, skipped = labelled_cases(datastore, LABELS, {})
    trained = {
        organ: [
            {"labels": str(case.labels.relative_to(site.studies)), "value": case.value, "patient": case.patient,
             "covered": sorted(case.annotated_slices) if case.annotated_slices is not None else None}
            for case in result
        ]
        for organ, result in cases.items()
    }  # fmt: skip
    lists = {"labelled": sorted(datastore.get_labeled_images()), "unlabelled": sorted(datastore.get_unlabeled_images())}
    return {"labels": labels, "trained": trained, "left_out": sorted(skipped), "images": lists}


def test_labels_are_read_as_before(site: Site) -> None:
    assert label_facts(site) == expected("labels")


def test_labels_can_be_restored_and_confirmed(site: Site) -> None:
    history = LabelHistory(site.studies)
    first, *_, last = history.versions("ct_01", "final")
    assert history.restore("ct_01", "final", first.name) > last.name
    assert history.served("ct_01", "final")[0].read_bytes() == first.file.read_bytes()
    assert history.confirm("ct_02", "final", by="tess") == ["spleen"]
    cases, _ = labelled_cases(site.datastore, LABELS, {})
    (case,) = [case for case in cases["spleen"] if case.patient == "ct_02"]
    assert case.labels.read_bytes() == history.served("ct_02", "final")[0].read_bytes()


# Users, secrets and the audit file.


def test_users_are_recognised_by_their_tokens(site: Site) -> None:
    users = Users(site.folder / "secrets" / "users.json")
    roles = {"anna": "annotator", "ben": "annotator", "tess": "trainer"}
    assert {name: user.role.value for name, user in users.all().items()} == roles
    for name, token in TOKENS.items():
        result = users.find(token)
        assert result is not None
        assert (result.name, result.expires is None) == (name, name != "tess")
    assert users.find("baps_another") is None


def test_secrets_are_read_as_before(site: Site) -> None:
    provider = json.loads((site.folder / "secrets" / "openid.json").read_text())
    result = read_openid(site.folder / "secrets" / "openid.json", {}).model_dump(mode="json", exclude_none=True)
    assert result == provider
    login = read_pacs_credentials(site.folder / "secrets" / "pacs_login.json", {})
    assert (login.user, login.password) == ("baps", "another-password-for-tests-only")


def audit_facts(site: Site) -> dict[str, Any]:
    check = check_audit(site.folder / "adapters" / "audit.jsonl")
    return asdict(check)


def test_audit_file_is_verified_as_before(site: Site) -> None:
    assert audit_facts(site) == expected("audit")
    assert check_audit(site.folder / "adapters" / "audit.jsonl", expected("audit")["last"]["chain"]).breaks == []


def test_audit_file_is_continued(site: Site) -> None:
    file = site.folder / "adapters" / "audit.jsonl"
    before = check_audit(file)
    AuditFile(file).add({"user": "anna", "what": "segment"})
    after = check_audit(file)
    assert (after.breaks, after.chained) == ([], before.chained + 1)
    line = json.loads(file.read_text().splitlines()[1])
    file.write_text(file.read_text().replace(line["chain"], "0" * 64, 1))
    assert check_audit(file).breaks
