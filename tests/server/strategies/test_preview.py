"""What the strategies of Next Sample say that they would offer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from baps.server.datastores.candidates import Candidates
from baps.server.datastores.folder import StudiesDatastore
from baps.server.strategies.disagreement import Disagreement
from baps.server.strategies.first import First
from baps.server.strategies.random import RandomStrategy
from baps.server.web.next_sample import preview_strategies


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[StudiesDatastore]:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    yield StudiesDatastore(str(tmp_path), auto_reload=False, read_only=False)


def test_the_first_by_name_comes_first(datastore: StudiesDatastore) -> None:
    preview = First().preview(Candidates(["c", "a", "b"]), datastore, 2)
    assert [(one.image, one.reason) for one in preview.offers] == [("a", "number 1 by name"), ("b", "number 2 by name")]


def test_chances_grow_with_the_time_since_an_image_was_offered(datastore: StudiesDatastore) -> None:
    now = int(time.time())
    for image, ago in (("a", 3 * 86_400), ("b", 86_400)):
        datastore._datastore.objects[image].image.info["strategy"] = {"random": {"ts": now - ago}}
    offers = RandomStrategy().preview(Candidates(["a", "b"]), datastore, 9).offers
    assert [(one.image, one.reason) for one in offers] == [
        ("a", "last offered 3 days ago; chance 75 %"),
        ("b", "last offered 1 day ago; chance 25 %"),
    ]
    offers = RandomStrategy().preview(Candidates(["a", "c"]), datastore, 9).offers
    assert [(one.image, one.reason) for one in offers] == [
        ("c", "never offered; chance 100 %"),
        ("a", "last offered 3 days ago; chance below 1 %"),
    ]


def test_only_what_was_compared_with_the_present_adapters_has_a_place(datastore: StudiesDatastore) -> None:
    def load() -> None:
        raise AssertionError("No model is loaded for a page.")

    strategy = Disagreement(load, load, {"spleen": 1}, Path("lock"))  # type: ignore[arg-type]
    now, before = {"spleen": ("v2", None)}, {"spleen": ("v1", None)}
    strategy._versions = now  # type: ignore[assignment]
    strategy._scores = {"a": (now, 0.3), "b": (now, 0.7), "c": (before, 0.9), "d": (now, None)}  # type: ignore[dict-item]
    preview = strategy.preview(Candidates(["a", "b", "c", "d"]), datastore, 9)
    assert [one.image for one in preview.offers] == ["b", "a"]
    assert "2 of 4 images are compared so far" in preview.rule
    assert "0.70" in preview.offers[0].reason


def test_a_preview_offers_nothing_and_says_which_part_of_a_pacs_it_is_of(
    datastore: StudiesDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = SimpleNamespace(datastore=lambda: datastore, _strategies={"first": First(), "other": threading.Lock()})
    listed = lambda *_, **__: Candidates(["a"], total_series=900)  # noqa: E731
    monkeypatch.setattr("baps.server.web.next_sample.find_candidates", listed)
    previews = preview_strategies(app)  # type: ignore[arg-type]
    assert list(previews) == ["first"]
    assert "in a part of the 900 series of the PACS" in previews["first"].rule
