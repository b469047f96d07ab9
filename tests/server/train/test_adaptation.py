"""Trainings resume after a kill, end with the server, and use only confirmed labels."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from baps.evaluation.splits import patient_hash
from baps.registry.store import AdapterStore
from tests.support.client import threaded_site
from tests.support.sites import Site, sample_labels, site

SHORT = {
    "label": "spleen", "batch_size": 4, "curve_points": 1, "curve_slices": 2, "click_sets": 1, "check_slices": 4,
    "slices_per_volume": 6, "head": "none", "zoom": "none",
}  # fmt: skip
"""Options of a training that takes few images and fits no head."""


def save(server: Site, case: str, values: tuple[int, ...] = (2,), **info: object) -> None:
    """Submit the true labels of a sample volume."""
    image = nibabel.load(server.studies / f"{case}.nii.gz")
    voxels = np.where(np.isin(sample_labels(case), values), sample_labels(case), 0).astype(np.uint8)
    path = server.studies.parent / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    names = {1: "liver", 2: "spleen"}
    info = {"label_info": [{"name": names[value], "idx": value} for value in values], **info}
    server.client.save_label(case, str(path), "final", info)


def stats(server: Site) -> dict[str, object]:
    statistics: dict[str, object] = server.client.info()["train_stats"]["baps"]
    return statistics


def wait_until_trained(server: Site) -> dict[str, object]:
    while "total_time" not in stats(server) or server.client.train_status(check_if_running=True):
        time.sleep(0.3)
    return stats(server)


def training_curve(folder: Path) -> list[tuple[int, float]]:
    """Return the steps and black-box images that TensorBoard displays for the last training of the spleen."""
    events = EventAccumulator(str(max((folder / "tensorboard").iterdir())))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("spleen/black_box_images")]


def _command(process: psutil.Process) -> list[str]:
    """Return the command of a process, or an empty list if it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def training_process(server: Site, images: int) -> psutil.Process:
    """Wait until the training has sent a number of images, and return its process."""
    while True:
        processes = [c for c in server.process.children(recursive=True) if "train" in _command(c)]
        if processes and int(stats(server).get("black_box_images", 0)) >= images:  # type: ignore[call-overload]
            return processes[0]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_training_resumes_and_gives_the_same_adapter(tmp_path: Path) -> None:
    weights, records = [], []
    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
        running = site(tmp_path / name, cases=3)
        server = next(running)
        try:
            for case in ("ct_01", "ct_02"):
                save(server, case)
            options = {**SHORT, "max_images": 300, "seed": 3}
            server.client.train_start("baps", options)
            if name == "killed":
                training_process(server, 60).kill()
                while server.client.train_status(check_if_running=True):
                    time.sleep(0.1)
                assert not stats(server)["adapters"]
                server.client.train_start("baps", options)
            end = wait_until_trained(server)
            result = end["adapters"]["spleen"]  # type: ignore[index]
            assert (result["replayed_images"] >= 60) == (name == "killed")
            folder = server.adapters / "label-spleen"
            assert not (folder / "training.jsonl").exists()
            version = folder / "v0001"
            records.append(json.loads((version / "record.json").read_text()))
            weights.append((version / "adapter.safetensors").read_bytes())
            log = [json.loads(line) for line in (version / "training.jsonl").read_text().splitlines()]
            assert log[-1]["images"] == records[-1]["black_box_images"] <= 300
            assert any("step" in line and "seed" in line for line in log)
            assert training_curve(server.adapters)[-1][1] == end["black_box_images"]
        finally:
            running.close()  # type: ignore[attr-defined]
    skip = ("created", "seconds", "replayed_images")
    plain = [{key: value for key, value in record.items() if key not in skip} for record in records]
    assert plain[0] == plain[1]
    heads = [int.from_bytes(content[:8], "little") + 8 for content in weights]
    assert weights[0][heads[0] :] == weights[1][heads[1] :]


@pytest.mark.slow
def test_repeating_a_training_creates_no_second_version(tmp_path: Path) -> None:
    options = {**SHORT, "max_images": 150}
    with threaded_site(tmp_path, cases=3) as server:
        for case in ("ct_01", "ct_02"):
            save(server, case)
        for _ in range(2):
            server.client.train_start("baps", options)
            result = wait_until_trained(server)["adapters"]["spleen"]  # type: ignore[index]
            assert result["version"] == "v0001"
        assert "Nothing has changed" in result["reason"]
        store = AdapterStore(server.adapters)
        store.publish("spleen", "v0001")
        store.withdraw("spleen")
        server.client.train_start("baps", options)
        wait_until_trained(server)
        assert store.published("spleen") is None  # Training again does not undo what the operator did.
        server.client.train_start("baps", {**options, "seed": 1})
        assert wait_until_trained(server)["adapters"]["spleen"]["version"] == "v0002"  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["terminate", "kill"])
def test_a_training_stops_with_the_server_and_can_be_resumed(tmp_path: Path, method: str) -> None:
    running = site(tmp_path, cases=3)
    server = next(running)
    for case in ("ct_01", "ct_02"):
        save(server, case)
    server.client.train_start("baps", {"max_images": 100_000})
    training = training_process(server, 1)
    assert training.nice() == 19  # Inference has priority.
    getattr(server.process, method)()
    _, alive = psutil.wait_procs([server.process, training], timeout=30)
    assert not alive
    running.close()  # type: ignore[attr-defined]
    assert list(server.adapters.glob("*/training.jsonl"))


@pytest.mark.slow
def test_only_confirmed_labels_are_trained_on(own_server: Site) -> None:
    save(own_server, "ct_01")
    save(own_server, "ct_03", model="baps")
    save(own_server, "ct_01", model="baps")  # It must not replace a person's label.
    status = own_server.client.info()["datastore"]
    assert (status["completed"], status["label_tags"]) == (1, {"final": 1, "original": 2})
    save(own_server, "ct_02", author="Dr. Who", slices=[8, 9, 10, 11])
    entries = json.loads((own_server.studies / "datastore_v2.json").read_text())["objects"]
    first, second = entries["ct_03"]["labels"]["original"]["info"], entries["ct_02"]["labels"]["final"]["info"]
    assert (first["confirmed"], first["model"]) == (False, "baps")
    assert (second["confirmed"], second["author"], second["annotated_slices"]) == (
        True,
        "Dr. Who",
        {"spleen": [8, 9, 10, 11]},
    )
    own_server.client.train_start("baps", {**SHORT, "max_images": 300, "slices_per_volume": 24})
    wait_until_trained(own_server)
    record = json.loads((own_server.adapters / "label-spleen" / "v0001" / "record.json").read_text())
    hashes = [patient_hash(case) for case in ("ct_01", "ct_02")]
    assert sorted(record["training_patients"]) == sorted(hashes)
    spleen_slices = int((sample_labels("ct_01") == 2).any((0, 1)).sum())
    assert record["slices"] <= spleen_slices + 4
