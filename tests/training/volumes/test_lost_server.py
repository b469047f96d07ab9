"""A training over the real nninteractive-server, which is killed in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.blackbox.volumes.loading import load_volume_black_box
from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import BapsError
from baps.evaluation.labelled_volumes import VolumesByPatient
from baps.training.adapt import Adaptation, ProgressReport
from baps.training.volumes.adapt import adapt_volumes
from baps.training.volumes.settings import VolumeSettings
from tests.support.flood import leaky_volume
from tests.support.marks import starts
from tests.support.nninteractive_server import KEY, NnInteractiveServer, nninteractive_server

SETTINGS = VolumeSettings(max_predictions=30, head="none", visual_prompt="none", click_sets=1)


@pytest.fixture
@starts("server")
def server(tmp_path: Path) -> Iterator[NnInteractiveServer]:
    with nninteractive_server(tmp_path) as running:
        yield running


@pytest.mark.xdist_group("nninteractive-server")
def test_a_training_over_a_lost_server_goes_on_from_its_log(server: NnInteractiveServer, tmp_path: Path) -> None:
    volumes: VolumesByPatient = {one.patient: [one] for one in map(leaky_volume, range(2))}
    log, killed = tmp_path / "log.jsonl", False

    def train(kill_at: int | None, file: Path | None) -> Adaptation[VolumeAdapter]:
        def watch(report: ProgressReport) -> None:
            nonlocal killed
            if kill_at is not None and report.images >= kill_at and not killed:
                killed = True
                server.kill()

        remote = VolumeRemoteSettings(server.address, KEY, retry_seconds=2)
        with closing(load_volume_black_box("nninteractive", remote)) as black_box:
            return adapt_volumes(black_box, volumes, SETTINGS, progress=watch, log=file)

    whole = train(None, None)
    assert whole.record["black_box_images"] <= 30
    with pytest.raises(BapsError, match="stayed away for 2 s"):
        train(2, log)
    server.start()
    resumed = train(None, log)
    assert resumed.record["replayed_images"] >= 2
    assert resumed.record["scores"] == whole.record["scores"]
    first, second = (one.adapter.state_dict() for one in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    server.kill()
    server.start(seed=2)  # Other weights: the log belongs to another model, and nothing of it is used.
    other = train(None, log)
    assert other.record["replayed_images"] == 0
    assert other.record["black_box"]["weights_sha256"] != whole.record["black_box"]["weights_sha256"]
