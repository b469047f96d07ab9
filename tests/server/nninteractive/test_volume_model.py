"""A model behind an nninteractive-server answers the viewers of a site."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from nnInteractive.inference.remote import ServerAtCapacityError, nnInteractiveRemoteInferenceSession

from tests.support.client import threaded_site
from tests.support.faulty_nninteractive import FaultyNnInteractive, Reply, faulty_nninteractive
from tests.support.marks import starts
from tests.support.nninteractive_server import KEY, LICENCE, NnInteractiveServer, nninteractive_server
from tests.support.sites import Site, site

SHAPE = (30, 26, 12)
Connect = Callable[..., Any]


def volume() -> np.ndarray[Any, np.dtype[np.float32]]:
    voxels = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    voxels[8:20, 5:15, 4:10] += 3
    return voxels


def opened(session: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    session.set_image(volume()[None], {"spacing": [1.0, 1.0, 3.0]})
    mask = np.zeros(SHAPE, np.uint8)
    session.set_target_buffer(mask)
    return mask


@pytest.fixture
def faulty() -> Iterator[FaultyNnInteractive]:
    with faulty_nninteractive() as behind:
        yield behind


@pytest.fixture
def running(tmp_path: Path, faulty: FaultyNnInteractive) -> Iterator[Site]:
    faulty.capabilities |= {"license": LICENCE, "supported_interactions": {"points": True, "bbox2d": True}}
    settings = {"volume_black_box": "nninteractive", "volume_remote": faulty.address, "remote_retry_seconds": "1"}
    with threaded_site(tmp_path, cases=1, settings=settings) as one:
        yield one


def test_what_the_model_understands_and_its_licence_are_passed_on(running: Site, connect: Connect) -> None:
    session = connect(running.address)
    assert session.supported_interactions == {
        "points": True, "bbox2d": True, "bbox3d": False, "scribble": False, "lasso": False
    }  # fmt: skip
    assert session.license == LICENCE


def test_prompts_are_answered_by_the_model(running: Site, connect: Connect, faulty: FaultyNnInteractive) -> None:
    session = connect(running.address, label="spleen")
    mask = opened(session)
    session.add_point_interaction([10, 10, 5], True)
    assert mask.sum() == 125
    session.add_point_interaction([10, 10, 9], True)
    assert mask.sum() == 125 + 4 * 25
    assert faulty.paths[-4:] == [
        "/reset_interactions", "/add_initial_seg_interaction", "/add_point_interaction", "/add_point_interaction"
    ]  # fmt: skip
    session.add_point_interaction([10, 10, 10], False)
    assert not mask[10, 10, 10]
    session.undo()
    assert mask.sum() == 225
    assert json.loads((running.adapters / "volume_models.json").read_text())


def test_faults_of_the_model_reach_the_viewer_as_sentences(
    running: Site, connect: Connect, faulty: FaultyNnInteractive
) -> None:
    session = connect(running.address)
    mask = opened(session)
    session.add_point_interaction([10, 10, 5], True)
    replies: list[tuple[Reply, str]] = [
        ((200, {}, b"<html>"), "does not follow the protocol"),
        ((503, {}, b""), "stayed away for 1 s"),
    ]
    for reply, sentence in replies:
        faulty.faults = {"/add_point_interaction": reply, "/healthz": reply}
        with pytest.raises(ServerAtCapacityError, match=sentence):  # Any 503, by its sentence.
            session.add_point_interaction([3, 3, 3], True)
    faulty.faults = {}
    with pytest.raises(httpx.HTTPStatusError) as error:
        session.add_scribble_interaction(np.ones(SHAPE, np.uint8), True)
    assert error.value.response.status_code == 400
    assert "Draw a click or a box in one slice." in error.value.response.text
    session.add_point_interaction([3, 3, 3], True)  # The prompts that failed are gone.
    assert mask.sum() > 125
    assert mask[3, 3, 3]
    session.undo()
    assert mask.sum() == 125


@pytest.fixture
@starts("server")
def behind(tmp_path: Path) -> Iterator[NnInteractiveServer]:
    with nninteractive_server(tmp_path) as one:
        yield one


@pytest.mark.xdist_group("nninteractive-server")
def test_baps_serve_in_front_of_the_real_server(
    tmp_path: Path, behind: NnInteractiveServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    monkeypatch.setenv("BAPS_VOLUME_REMOTE_TOKEN", "not used, for there is a file")
    (tmp_path / "site").mkdir()
    settings = {
        "volume_black_box": "nninteractive",
        "volume_remote": behind.address,
        "volume_remote_token_file": str(key),
    }
    for served in site(tmp_path / "site", cases=1, settings=settings):
        session = connect(served.address)
        mask = opened(session)
        session.add_point_interaction([14, 10, 7], True)
        with closing(nnInteractiveRemoteInferenceSession(behind.address, KEY)) as direct:
            expected = opened(direct)
            direct.add_point_interaction([14, 10, 7], True)
        assert np.array_equal(mask, expected)
        session.add_point_interaction([25, 20, 3], True)
        assert mask[25, 20, 3] == mask[14, 10, 7] == 1
        session.add_point_interaction([14, 10, 7], False)
        assert not mask[14, 10, 7]
        assert "for non-commercial use only" in served.log.read_text()
        assert KEY not in served.log.read_text()
