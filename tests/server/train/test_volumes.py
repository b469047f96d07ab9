"""The 3D model of a site is adapted to saved labels."""

from __future__ import annotations

import time
from pathlib import Path

import nrrd
import pytest

from baps.errors import InputError
from baps.registry.store import AdapterStore
from tests.server.train.test_adaptation import save
from tests.support.sites import site, spleen_click


@pytest.mark.slow
def test_a_training_ends_with_a_verdict_and_serves(tmp_path: Path) -> None:
    running = site(tmp_path, cases=3, settings={"volume_black_box": "bundled3d"})
    server = next(running)
    try:
        for case in ("ct_01", "ct_02", "ct_03"):
            save(server, case)
        server.client.train_start("volume", {"label": "spleen", "max_predictions": 40, "head": "none"})
        while "total_time" not in server.client.info()["train_stats"]["volume"]:
            time.sleep(0.5)
        stats = server.client.info()["train_stats"]["volume"]
        assert "error" not in stats
        outcome = stats["adapters"]["spleen"]
        assert outcome["black_box_images"] <= 40
        store = AdapterStore(server.adapters / "volumes")
        record = store.record("spleen", outcome["version"])
        assert len(record["scores"]["candidate"]) == 3
        file, reply = server.client.infer("volume", "ct_01", {"label": "spleen", "foreground": [spleen_click("ct_01")]})
        assert nrrd.read(file)[0].any()
        assert reply["adapter"] == (f"spleen/{outcome['version']}" if outcome["serves"] else None)
    finally:
        running.close()  # type: ignore[attr-defined]


def test_options_that_cannot_be_used(tmp_path: Path) -> None:
    from baps.inference.volume_segmenter import VolumeSegmenter
    from baps.server.train.volumes import VolumeTrainer
    from tests.support.flood import FloodBlackBox

    segmenter = VolumeSegmenter(FloodBlackBox, AdapterStore(tmp_path))
    trainer = VolumeTrainer(lambda: segmenter, {"spleen": 2}, tmp_path / "lock", None)
    with pytest.raises(InputError, match="Unknown training options: max_images"):
        trainer.read_options({"max_images": 3})
    for wrong in ({"max_predictions": 0}, {"zoom": "big"}, {"prompt": "lasso"}):
        with pytest.raises(InputError):
            trainer.prepare(wrong, None)  # type: ignore[arg-type]
