"""Pages about adapters of the 3D model, which a site may have beside those of clicks and of the organ model."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from baps.evaluation.cases import Case
from baps.evaluation.splits import patient_hash
from baps.registry.evidence import change_evidence
from baps.registry.store import AdapterStore
from baps.server.train.stats import Stats
from baps.server.web.pictures import _annotated_part
from baps.server.web.served import evidence_plots, served_organs
from baps.server.web.train_options import EXPLANATIONS, list_options
from tests.support.flood import FloodBlackBox, emptying_adapter, flood_as_volume_model, flood_record
from tests.support.web_site import CASES, WebSite, send, web_site

SPLEEN = {"model": "volume", "organ": "spleen"}
FIRST = {**SPLEEN, "version": "v0001"}
IDENTITY = FloodBlackBox().capabilities.identity


def _store(site: WebSite) -> AdapterStore:
    return AdapterStore(site.folder / "adapters" / "volumes")


def _add_version(store: AdapterStore, gain: float) -> str:
    """Store an adapter that empties every mask, with what a training measured, and let the gate decide."""
    adapter, gains = emptying_adapter(), {patient_hash(case): gain + 0.01 * n for n, case in enumerate(CASES)}
    record = flood_record(
        adapter,
        verdict={"before": 0.4, "after": 0.4 + gain},
        scores={"differences": gains, "unadapted": dict.fromkeys(gains, 0.4)},
        training_patients=list(gains),
        volumes=3,
        parts=["zoom", "head"],
        curve=[[12, 0.4], [60, 0.7]],
        black_box_images=377,
        settings={"zoom": "chosen"},
    )
    version = store.add("spleen", adapter, record)
    with change_evidence(store, "spleen", IDENTITY) as evidence:
        evidence.open(store, "spleen", version, " ".join(IDENTITY))
    return version


def _volume_site(folder: Path) -> Iterator[WebSite]:
    with flood_as_volume_model(), web_site(folder, {"volume_black_box": "bundled3d"}) as site:
        _add_version(_store(site), 0.2)
        _add_version(_store(site), -0.1)
        site.state.app.volume_black_box()
        site.state.counts.get(wait=30)
        yield site


@pytest.fixture(scope="module")
def volume_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebSite]:
    """A site with a 3D model, for the tests that change nothing."""
    yield from _volume_site(tmp_path_factory.mktemp("volume_pages"))


@pytest.fixture
def own_volume_pages(tmp_path: Path) -> Iterator[WebSite]:
    """A site with a 3D model for one test alone."""
    yield from _volume_site(tmp_path)


def test_the_overview_lists_the_3d_model_and_what_serves(volume_pages: WebSite) -> None:
    text = unescape(volume_pages.browser("anna").get("/").text)
    row = next(row for row in text.split("<tr>") if "model=volume" in row)
    assert "<td>3D click</td>" in row
    assert re.search(r"v0001 <span[^>]*>for flood</span>", row)
    assert ">.400<" in row
    assert ">.600<" in row
    assert "<dt>3D model</dt><dd>flood</dd>" in text
    plots = evidence_plots(served_organs(volume_pages.state.adapters)[0])
    assert "3D click" in {organ.kind for organ, _, _ in plots}


def test_before_the_3d_model_is_loaded_the_chosen_version_is_shown(
    volume_pages: WebSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, because its server is away."""
    app = volume_pages.state.app
    assert app.identity("volume") == IDENTITY
    monkeypatch.setattr(app, "_volume_black_box", None)
    assert app.identity("volume") is None
    text = volume_pages.browser("anna").get("/").text
    assert "is loading, or does not answer" in text
    assert volume_pages.state.adapters.read("volume", "spleen").serves == "v0001"


def test_the_adapters_page_names_the_kind(volume_pages: WebSite) -> None:
    text = volume_pages.browser("theo").get("/web/adapters").text
    assert "whole organs, from clicks in 3d" in text
    assert "/web/adapters/version?model=volume&amp;organ=spleen&amp;version=v0002" in text


def test_a_version_says_what_is_around_the_model(volume_pages: WebSite) -> None:
    browser = volume_pages.browser("theo")
    for path in ("/web/adapters/version", "/web/adapters/report"):
        text = unescape(browser.get(path, params=FIRST).text)
        for name, value in (
            ("Cube around the prompts", "60 mm wide"),
            ("Tone curve", "none"),
            ("Head", "trained"),
            ("Volumes", "3"),
            ("Predictions", "377"),
            ("Model", "flood"),
        ):
            assert re.search(rf"<dt>{name}</dt><dd>{value}\b", text), (path, name)
        assert "<dt>Parts</dt>" not in text
    text = browser.get("/web/adapters/version", params=FIRST).text
    assert "on whole volumes, from one prompt each" in text
    assert ">predictions</text>" in text
    assert "Make the pictures" in text


@pytest.mark.parametrize(
    ("about", "shown"),
    [
        ({"width": None, "tone": False, "head": True}, "none, the model sees the whole volume"),
        ({"width": 80.4, "tone": True, "head": False}, "80 mm wide"),
        ({}, None),
        ("rubbish", None),
    ],
)
def test_a_record_of_another_kind_stops_no_page(own_volume_pages: WebSite, about: object, shown: str | None) -> None:
    file = _store(own_volume_pages).file("spleen", "v0001").with_name("record.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "adapter": about}))
    reply = own_volume_pages.browser("theo").get("/web/adapters/version", params=FIRST)
    assert reply.status_code == 200
    assert ("Cube around the prompts" in reply.text) == (shown is not None)
    assert (shown or "zoom, head") in reply.text


def test_warnings_name_the_3d_model(own_volume_pages: WebSite) -> None:
    _store(own_volume_pages).file("spleen", "v0001").write_bytes(b"broken")
    text = own_volume_pages.browser("anna").get("/").text
    assert "<strong>Adapter of spleen (3D model)</strong>" in text
    assert "Restore it from your backup, or train again." in text


def test_publish_roll_back_and_withdraw(own_volume_pages: WebSite) -> None:
    browser, store = own_volume_pages.browser("theo"), _store(own_volume_pages)

    def ask(action: str, **more: str) -> tuple[str, str]:
        text = browser.get("/web/adapters/confirm", params={**SPLEEN, "action": action, **more}).text
        shown = re.search(r'name="shown" value="([^"]*)"', text)
        assert shown
        return text, shown[1]

    text, shown = ask("publish", version="v0002")
    assert "Put v0002 on trial for spleen?" in text
    assert "v0002 answers every prompt for the spleen in 3D" in text
    assert "in a viewer of nnInteractive" in text
    reply = send(browser, "/web/adapters/publish", **SPLEEN, version="v0002", shown=shown)
    assert (reply.status_code, reply.headers["Location"]) == (303, "/web/adapters/organ?model=volume&organ=spleen")
    assert store.published("spleen") == "v0002"
    assert own_volume_pages.store.published("spleen") == "v0001"  # That of clicks on slices.
    assert "theo chose v0002 in place of v0001" in browser.get(reply.headers["Location"]).text
    send(browser, "/web/adapters/rollback", **SPLEEN, shown=ask("rollback")[1])
    assert store.published("spleen") == "v0001"
    send(browser, "/web/adapters/withdraw", **SPLEEN, shown=ask("withdraw")[1])
    assert store.published("spleen") is None
    assert send(own_volume_pages.browser("anna"), "/web/adapters/rollback", **SPLEEN, shown="").status_code == 403


def _picture(site: WebSite, show: str, version: str = "v0001", case: str = "ct_01") -> NDArray[np.int64]:
    query = {**SPLEEN, "version": version, "patient": patient_hash(case), "show": show}
    reply = site.browser("theo").get("/web/adapters/picture", params=query)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Cache-Control"] == "no-store"
    return np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB"), int)


def test_pictures_show_the_click_and_the_masks_on_its_slice(volume_pages: WebSite) -> None:
    text = volume_pages.browser("theo").get("/web/adapters/pictures", params=FIRST).text
    assert re.findall(r"(Worst|Median|Best) patient", text) == ["Worst", "Median", "Best"]
    assert "One slice of each patient, through the click." in text
    image, unadapted, adapted = (_picture(volume_pages, show) for show in ("image", "unadapted", "adapted"))
    assert (image == (255, 77, 109)).all(-1).any()  # The click.
    assert (unadapted == (255, 157, 46)).all(-1).any()  # An outline.
    # The adapter empties the mask but for the voxel of the click.
    green = (adapted == (54, 209, 124)).all(-1)
    assert green.sum() < (unadapted == (255, 157, 46)).all(-1).sum()
    assert (_picture(volume_pages, "label") == 255).all(-1).any()
    assert _picture(volume_pages, "served", "v0002").shape == (320, 320, 3)


def test_a_model_that_takes_no_clicks_gets_a_box(own_volume_pages: WebSite, monkeypatch: pytest.MonkeyPatch) -> None:
    box = own_volume_pages.state.app.volume_black_box()
    monkeypatch.setattr(box, "_capabilities", replace(box.capabilities, points=False))
    marked = (_picture(own_volume_pages, "image") == (255, 77, 109)).all(-1)
    rows, columns = np.nonzero(marked)
    assert marked[rows.min()].sum() == pytest.approx(columns.max() - columns.min() + 1, abs=2)  # Its upper side.


def test_the_click_lies_where_the_organ_was_annotated() -> None:
    organ, case = np.ones((3, 3, 4), bool), Case(Path("ct.nii.gz"), Path("label.nii.gz"), 1, "anna")
    assert _annotated_part(organ, case).all()
    part = _annotated_part(organ, replace(case, annotated_slices=frozenset({1, 3})))
    assert part.any((0, 1)).tolist() == [False, True, False, True]


def test_every_option_of_the_3d_trainer_is_explained(volume_pages: WebSite) -> None:
    config = volume_pages.state.app._trainers["volume"].config()
    assert set(config) == set(EXPLANATIONS["volume"])
    for option in list_options("volume", config, {}, {}):
        assert option.about.hint, option.name
        if option.name != "label":
            assert {value for value, _ in option.about.choices} == {value for value, _ in option.choices}, option.name
    text = volume_pages.browser("theo").get("/web/train").text
    assert "Adapt the 3D model" in text
    assert 'value="400"' in text


def test_a_training_of_the_3d_model_is_shown(own_volume_pages: WebSite) -> None:
    browser = own_volume_pages.browser("theo")
    stats = Stats.reset(_store(own_volume_pages).root / "train_stats.json", {"label": "spleen"})
    stats.report("spleen", 300, 1000, 0.5, black_box_images=120)
    stats.report("spleen", 1000, 1000, 0.7, black_box_images=377)
    stats.add("spleen", {"status": "published", "reason": "published: 3 patients. So."})
    stats.end()
    for path in ("/", "/web/train", "/web/training-status"):
        text = browser.get(path).text
        assert "3D model</strong>" in text, path
    text = browser.get("/web/train").text
    assert "<dt>Predictions</dt><dd>377</dd>" in text
    assert "Dice on training volumes, by predictions" in text
    assert "/web/adapters/organ?model=volume&amp;organ=spleen" in text


def test_a_site_without_a_3d_model_shows_none_of_it(pages: WebSite) -> None:
    browser = pages.browser("theo")
    for path in ("/", "/web/train", "/web/adapters"):
        assert "3D model" not in browser.get(path).text, path
    reply = browser.get("/web/adapters/organ", params=SPLEEN)
    assert reply.status_code == 404
    assert "Known ones: baps, organs." in reply.text
