"""The black box equals the official client at the real nninteractive-server, and outlives its deaths."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox.volumes.loading import load_volume_black_box
from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import BapsError
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumePrompt, VolumeRegion
from tests.support.nninteractive_server import KEY, LICENCE, NnInteractiveServer

remote = pytest.importorskip("nnInteractive.inference.remote", reason="the extra 'nninteractive' is not installed")

pytestmark = pytest.mark.xdist_group("nninteractive-server")

SHAPE = (34, 22, 15)
SPACING = (0.7, 0.9, 4.0)
CLICK: list[VolumePrompt] = [VolumePoint((14, 10, 7), True)]
Load = Callable[..., Any]


def volume() -> NDArray[np.float32]:
    voxels = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    voxels[8:20, 5:15, 4:10] += 3
    return voxels


def earlier() -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[9:13, 6:14, 4:9] = True
    return mask


def load(server: NnInteractiveServer, known: Path | None = None, **changes: Any) -> Any:
    settings = VolumeRemoteSettings(server.address, KEY, timeout=60, retry_seconds=60)
    return load_volume_black_box("nninteractive", replace(settings, **changes), known=known)


def official(server: NnInteractiveServer, steps: Callable[[Any], object], autozoom: bool = True) -> NDArray[np.uint8]:
    """The answer that the official client gets."""
    with closing(remote.nnInteractiveRemoteInferenceSession(server.address, KEY)) as session:
        session.set_image(volume()[None], {"spacing": list(SPACING)})
        session.set_do_autozoom(autozoom)
        mask = np.zeros(SHAPE, np.uint8)
        session.set_target_buffer(mask)
        steps(session)
    return mask


def painted(where: tuple[Any, ...]) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[where] = 1
    return mask


SCRIBBLE, LASSO = painted((slice(9, 18), 10, 7)), painted((slice(8, 20), slice(5, 15), 6))


def start_and_click(session: Any) -> None:
    session.add_initial_seg_interaction(earlier().astype(np.uint8))
    session.add_point_interaction([14, 10, 7], True)


def click_twice(session: Any) -> None:
    session.add_point_interaction([14, 10, 7], True, run_prediction=False)
    session.add_point_interaction([20, 10, 7], False)


CASES: dict[str, tuple[list[VolumePrompt], bool, Callable[[Any], object]]] = {
    "point": (CLICK, False, lambda session: session.add_point_interaction([14, 10, 7], True)),
    "points": ([*CLICK, VolumePoint((20, 10, 7), False)], False, click_twice),
    "2D box": (
        [VolumeBox((7, 4, 7), (21, 16, 8), True)],
        False,
        lambda session: session.add_bbox_interaction([[7, 21], [4, 16], [7, 8]], True),
    ),
    "3D box": (
        [VolumeBox((7, 4, 3), (21, 16, 11), True)],
        False,
        lambda session: session.add_bbox_interaction([[7, 21], [4, 16], [3, 11]], True),
    ),
    "scribble": (
        [VolumeRegion.of(SCRIBBLE, (0, 0, 0), False, True)],
        False,
        lambda session: session.add_scribble_interaction(SCRIBBLE, True),
    ),
    "lasso": (
        [VolumeRegion.of(LASSO, (0, 0, 0), True, True)],
        False,
        lambda session: session.add_lasso_interaction(LASSO, True),
    ),
    "mask and point": (CLICK, True, start_and_click),
    "mask": ([], True, lambda session: session.add_initial_seg_interaction(earlier().astype(np.uint8), True)),
}


@pytest.mark.parametrize(("prompts", "start", "steps"), CASES.values(), ids=CASES)
def test_answers_equal_those_of_the_official_client(
    real_server: NnInteractiveServer, prompts: list[VolumePrompt], start: bool, steps: Callable[[Any], object]
) -> None:
    expected = official(real_server, steps)
    assert 0 < expected.sum() < expected.size / 2
    with closing(load(real_server)) as black_box:
        for _ in range(2):
            answer = black_box.predict(volume(), SPACING, prompts, earlier() if start else None)
            assert np.array_equal(answer, expected)
        assert black_box.images_queried == 2


def test_what_the_server_declares(real_server: NnInteractiveServer) -> None:
    with closing(load(real_server)) as first, closing(load(real_server)) as second:
        capabilities = first.capabilities
        assert second.capabilities == capabilities
    assert capabilities.licence == LICENCE
    assert capabilities.points
    assert capabilities.boxes
    assert capabilities.flat_boxes
    assert capabilities.scribbles
    assert capabilities.lassos
    assert capabilities.masks


def test_a_wrong_key_gets_a_sentence(real_server: NnInteractiveServer) -> None:
    for key in ("wrong", ""):
        with pytest.raises(BapsError, match=r"refused \(HTTP 401\): .* bearer token\. Put its API key"):
            load(real_server, token=key)


def test_its_sessions_can_be_used_up(real_server: NnInteractiveServer) -> None:
    opened = [load(real_server) for _ in range(3)]
    try:
        with pytest.raises(BapsError, match=r"no free session \(HTTP 503: server is at capacity \(3 sessions\)\)"):
            load(real_server)
    finally:
        for one in opened:
            one.close()
    load(real_server).close()


def test_a_server_that_is_killed_during_a_prediction_is_awaited(own_server: NnInteractiveServer) -> None:
    with closing(load(own_server)) as black_box:
        expected = black_box.predict(volume(), SPACING, CLICK)

        def restart() -> None:
            own_server.kill()
            own_server.start()

        restarting = threading.Timer(0.1, restart)
        restarting.start()
        try:
            assert np.array_equal(black_box.predict(volume(), SPACING, CLICK), expected)
        finally:
            restarting.join()
        assert black_box.images_queried in (2, 3)  # One that was requested from the dead server counts.


def test_other_weights_are_another_model(own_server: NnInteractiveServer, tmp_path: Path) -> None:
    known = tmp_path / "volume_models.json"
    with closing(load(own_server, known)) as black_box:
        first = black_box.capabilities.weights_sha256
        black_box.predict(volume(), SPACING, CLICK)
        own_server.kill()
        own_server.start(seed=2)
        with pytest.raises(BapsError, match=r"was replaced while it was in use\. Restore the old one"):
            black_box.predict(volume(), SPACING, CLICK)
        with closing(load(own_server, known)) as other:
            assert other.capabilities.weights_sha256 != first
        own_server.kill()
        own_server.start(seed=1)
        black_box.predict(volume(), SPACING, CLICK)
        with closing(load(own_server, known)) as same:
            assert same.capabilities.weights_sha256 == first


def test_heartbeats_keep_the_session_and_a_lost_one_is_replaced(own_server: NnInteractiveServer) -> None:
    """The server looks for silent sessions every 15 seconds."""
    with closing(load(own_server)) as black_box:
        expected = black_box.predict(volume(), SPACING, CLICK)
        lease = black_box._session._lease
        time.sleep(18)
        assert np.array_equal(black_box.predict(volume(), SPACING, CLICK), expected)
        assert black_box._session._lease == lease
        black_box._session._stop.set()  # As if this program hung.
        time.sleep(18)
        assert np.array_equal(black_box.predict(volume(), SPACING, CLICK), expected)
        assert black_box._session._lease != lease
        assert black_box.images_queried == 3
