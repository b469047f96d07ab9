from __future__ import annotations

import errno
import html
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from baps.annotations.history import LabelHistory
from baps.server.web.background import Computed
from baps.server.web.label_table import LabelState, list_labels
from baps.server.web.readers import Readers
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.labelled_site import LIVER, SPLEEN, corrected, label_of, save, taken_away
from tests.support.sites import SAMPLES
from tests.support.web_site import WebSite, send, web_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebSite]:
    """Labels by anna and boris; nothing here changes them."""
    with web_site(tmp_path_factory.mktemp("labels"), trained=False) as made:
        fill(made)
        yield made


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[WebSite]:
    with web_site(tmp_path, trained=False) as made:
        fill(made)
        yield made


def fill(site: WebSite) -> None:
    """Save two versions of ct_01, a draft of ct_02, and a mask of a model for ct_03; ct_04 has no label."""
    for case in ("ct_01", "ct_02", "ct_03"):
        (site.folder / "studies" / "labels" / "final" / f"{case}.nii.gz").unlink()
    file = shutil.copy(SAMPLES / "images" / "ct_04.nii.gz", site.folder / "studies")
    os.utime(file, (time.time() - 60,) * 2)
    site.tokens["boris"] = Users(site.folder / "users.json").add("boris", Role.ANNOTATOR)  # type: ignore[index]
    save(site, "anna", "ct_01", label_of("ct_01"))
    save(site, "boris", "ct_01", corrected("ct_01"))
    save(site, "anna", "ct_02", label_of("ct_02"), "draft")
    save(site, "anna", "ct_03", label_of("ct_03"), model="bundled")
    datastore = site.state.app.datastore()
    datastore._reconcile_datastore()  # type: ignore[attr-defined]
    site.state.labels.expire()


def history_of(site: WebSite) -> LabelHistory:
    return LabelHistory(site.folder / "studies")


def text_of(fragment: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", fragment)).split())


def rows(text: str) -> list[str]:
    """Return the text of each label of the table."""
    return [text_of(body) for body in re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)]


def fields(text: str) -> dict[str, str]:
    return {n: html.unescape(v) for n, v in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text)}


def listed(site: WebSite, **query: str) -> list[str]:
    site.state.labels.get(wait=30)
    browser = site.browser("anna")
    browser.get("/web/labels", params=query)
    site.state.numbers.wait(60)
    return rows(browser.get("/web/labels/rows", params=query).text)


def test_the_table_says_who_drew_what_how_large_and_in_which_state(site: WebSite) -> None:
    found = listed(site)
    assert [row.split()[:2] for row in found] == [["ct_01", "confirmed"], ["ct_02", "draft"], ["ct_03", "not"]]
    liver, spleen = (
        re.search(r"liver (\w+) (\d+) ([\d.,]+)", found[0]),
        re.search(r"spleen (\w+) (\d+) ([\d.,]+)", found[0]),
    )
    assert liver
    assert spleen
    label = corrected("ct_01")
    voxel = np.abs(np.linalg.det(_affine("ct_01")[:3, :3])) / 1000
    for match, value, author in ((liver, LIVER, "anna"), (spleen, SPLEEN, "boris")):
        assert match[1] == author
        assert int(match[2]) == int((label == value).any((0, 1)).sum())
        assert float(match[3].replace(",", "")) == pytest.approx(float((label == value).sum() * voxel), rel=0.01)


def _affine(case: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(nibabel.load(SAMPLES / "images" / f"{case}.nii.gz").affine)


@pytest.mark.parametrize(
    ("query", "images"),
    [
        ({"q": "BORIS"}, ["ct_01"]),
        ({"q": "anna ct_02"}, ["ct_02"]),
        ({"q": "spleen anna"}, ["ct_01", "ct_02", "ct_03"]),
        ({"state": "draft"}, ["ct_02"]),
        ({"state": "not confirmed"}, ["ct_03"]),
        ({"state": "no label"}, ["ct_04"]),
        ({"state": "disputed"}, []),
        ({"state": "<script>"}, []),
        ({"sort": "newest", "page": "99"}, ["ct_01", "ct_02", "ct_03"]),
        ({"page": "²"}, ["ct_01", "ct_02", "ct_03"]),
    ],
)
def test_labels_are_searched_and_filtered(site: WebSite, query: dict[str, str], images: list[str]) -> None:
    assert sorted(row.split()[0] for row in listed(site, **query) if row.startswith("ct_")) == images


def test_numbers_are_those_of_the_names_that_a_label_has_now(own_site: WebSite) -> None:
    """The voxels stay the same, and so does the file."""
    save(own_site, "anna", "ct_02", label_of("ct_02"))
    own_site.state.labels.expire()
    (before,) = listed(own_site, q="ct_02 anna", state="confirmed")
    names = [{"name": "kidney", "idx": 2}, {"name": "liver", "idx": 1}]
    save(own_site, "boris", "ct_02", label_of("ct_02"), label_info=names)
    own_site.state.labels.expire()
    (after,) = listed(own_site, q="ct_02 boris", state="disputed")  # The spleen of anna is gone.
    assert "spleen anna 11 138" in before
    assert "kidney boris 11 138" in after
    assert "spleen – 11" not in after


def test_a_version_that_the_disk_denies_is_a_sentence_and_other_people_are_compared(
    own_site: WebSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(own_site, "anna", "ct_02", label_of("ct_02"))
    save(own_site, "boris", "ct_02", corrected("ct_02"))
    newest, original = history_of(own_site).version_names("ct_01", "final")[-1], LabelHistory.version

    def denied(self: LabelHistory, image: str, tag: str, name: str) -> object:
        if image == "ct_01":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, image, tag, name)

    monkeypatch.setattr(LabelHistory, "version", denied)
    query = {"image": "ct_01", "version": newest}
    reply = own_site.browser("anna").get("/web/labels/differences", params=query)
    assert (reply.status_code, "cannot be read (Permission denied)" in reply.text) == (503, True)
    pairs = Readers(own_site.state.app).compare().pairs
    assert {pair.image: pair.dice is not None for pair in pairs} == {"ct_01": False, "ct_02": True}


def test_a_search_for_thousands_of_words_is_refused(site: WebSite) -> None:
    """With 10 000 labels it would occupy the interpreter for seconds."""
    for path in ("/web/labels", "/web/labels/rows"):
        reply = site.browser("anna").get(path, params={"q": "a " * 4000})
        assert reply.status_code == 400
        assert "Search for at most 200 characters." in reply.text


def test_a_page_of_thousands_of_labels_reads_none_but_its_own(site: WebSite, monkeypatch: pytest.MonkeyPatch) -> None:
    table = site.state.labels.get(wait=30).value
    assert table is not None
    (first,) = [row for row in table.rows if row.image == "ct_01"]
    many = replace(table, rows=tuple(replace(first, image=f"im_{n:05}") for n in range(10_000)))
    read: list[str] = []
    monkeypatch.setattr(site.state.numbers, "_read", lambda _, row: read.append(row.image) or {})
    monkeypatch.setattr(site.state.labels, "get", lambda **_: Computed(many))
    monkeypatch.setattr(site.state.numbers, "_by_content", type(site.state.numbers._by_content)())
    browser = site.browser("anna")
    text = browser.get("/web/labels", params={"page": "150"}).text
    assert "Page 150 of 200" in text
    assert [row.split()[0] for row in rows(text)] == [f"im_{n:05}" for n in range(7450, 7500)]
    site.state.numbers.wait(60)
    assert sorted(read) == [f"im_{n:05}" for n in range(7450, 7500)]
    assert "im_09999" in browser.get("/web/labels", params={"q": "im_09999"}).text


def test_a_label_that_cannot_be_used_is_shown_with_the_reason(own_site: WebSite) -> None:
    folder = own_site.folder / "studies" / "labels" / "final"
    (folder / "ct_04.nii.gz").write_bytes(b"no label")
    os.utime(folder / "ct_04.nii.gz", (time.time() - 60,) * 2)
    datastore = own_site.state.app.datastore()
    datastore._reconcile_datastore()  # type: ignore[attr-defined]
    datastore.read_final_labels()  # type: ignore[attr-defined]
    own_site.state.labels.expire()
    (row,) = listed(own_site, state="refused")
    assert row.startswith("ct_04 refused")
    assert "ct_04.nii.gz" in row


def test_versions_are_listed_with_their_people(site: WebSite) -> None:
    text = site.browser("theo").get("/web/labels/image?image=ct_01").text
    body = rows(text)[0]
    assert "2 versions" in text
    assert re.search(r"serves.*liver by anna.*spleen by boris.*Difference.*spleen by anna.*Restore", body)
    assert "Restore" not in site.browser("anna").get("/web/labels/image?image=ct_01").text
    image = nibabel.load(SAMPLES / "images" / "ct_01.nii.gz")
    millilitres = (corrected("ct_01") == SPLEEN).sum() * np.prod(image.header.get_zooms()) / 1000
    (shown,) = re.findall(r"spleen by boris, \d+ slices, ([\d.]+) ml", body)
    assert float(shown) == pytest.approx(millilitres, rel=0.01)
    assert len(re.findall(" ml", body)) == 2  # Of the spleen and the liver that are served, not of earlier versions.


def test_the_difference_is_measured_and_drawn(site: WebSite) -> None:
    browser = site.browser("anna")
    page = browser.get("/web/labels/image?image=ct_01").text
    address = html.unescape(re.findall(r'hx-get="([^"]+differences[^"]+)"', page)[0])
    text = browser.get(address).text
    spleen, less = label_of("ct_01") == SPLEEN, corrected("ct_01") == SPLEEN
    expected = 2 * (spleen & less).sum() / (spleen.sum() + less.sum())
    assert re.search(rf"spleen.*?{expected:.3f}".replace("0.", r"\."), text_of(text))
    assert "liver" not in text_of(text)
    changed = sorted(np.flatnonzero((spleen != less).any((0, 1))).tolist())
    assert [int(k) - 1 for k in re.findall(r"<h3>Slice (\d+) of", text)] == changed
    pictures = {}
    for source in re.findall(r'<img src="([^"]+)"', text):
        reply = browser.get(html.unescape(source))
        assert reply.status_code == 200
        assert reply.headers["cache-control"] == "no-store"
        pictures[source.rpartition("=")[2]] = np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB")).astype(
            int
        )
    red = (pictures["difference"][..., 0] - pictures["difference"][..., 1]) > 60
    assert red.mean() > 0.01  # What was removed.
    green = (pictures["after"][..., 1] - pictures["after"][..., 0]) > 60
    assert not green.any()  # The later version marks nothing there.


def test_two_versions_that_mark_the_same_differ_in_nothing(site: WebSite) -> None:
    newest = history_of(site).version_names("ct_01", "final")[-1]
    query = {"image": "ct_01", "version": newest, "against": newest}
    assert "mark the same voxels" in site.browser("anna").get("/web/labels/differences", params=query).text


def test_pictures_are_never_on_disk(own_site: WebSite) -> None:
    before = {file for file in own_site.folder.rglob("*") if file.is_file()}
    browser = own_site.browser("anna")
    newest = history_of(own_site).version_names("ct_01", "final")
    query = {"image": "ct_01", "version": newest[1], "against": newest[0], "show": "difference"}
    text = browser.get("/web/labels/differences", params=query).text
    index = re.findall(r"index=(\d+)", text)[0]
    assert browser.get("/web/labels/picture", params={**query, "index": index}).content.startswith(b"\x89PNG")
    assert {file for file in own_site.folder.rglob("*") if file.is_file()} <= before | set(
        own_site.folder.glob("adapters/**/*")
    )
    assert not list(own_site.folder.rglob("*.png"))


def test_an_earlier_version_is_restored_after_a_confirmation(own_site: WebSite) -> None:
    browser, history = own_site.browser("theo"), history_of(own_site)
    first, second = history.version_names("ct_01", "final")
    page = browser.get("/web/labels/confirm", params={"action": "restore", "image": "ct_01", "version": first}).text
    assert "is kept. You can restore it in the same way." in page
    reply = send(browser, "/web/labels/restore", **fields(page))
    assert (reply.status_code, reply.headers["location"]) == (303, "/web/labels/image?image=ct_01")
    versions = history.versions("ct_01", "final")
    assert [one.name for one in versions[:2]] == [first, second]
    assert (versions[2].sha256, versions[2].info["restored"], versions[2].info["restored_by"]) == (
        versions[0].sha256,
        first,
        "theo",
    )
    text = browser.get("/web/labels/image?image=ct_01").text
    assert f"theo restored the version of {first}" in text
    assert f"restored from {first} by theo" in text
    assert "spleen anna" in listed(own_site)[0]
    lines = [json.loads(line) for line in (own_site.folder / "adapters" / "audit.jsonl").read_text().splitlines()]
    (line,) = [one for one in lines if one["what"] == "restore a label"]
    assert (line["user"], line["version"], line["tag"]) == ("theo", first, "final")
    assert line["image"] == own_site.state.audit.hashed("ct_01")


def test_the_second_of_two_who_restore_is_told_what_the_first_did(own_site: WebSite) -> None:
    history = history_of(own_site)
    first = history.version_names("ct_01", "final")[0]
    query = {"action": "restore", "image": "ct_01", "version": first}
    forms = {
        name: fields(own_site.browser(name).get("/web/labels/confirm", params=query).text) for name in ("theo", "thea")
    }
    assert send(own_site.browser("theo"), "/web/labels/restore", **forms["theo"]).status_code == 303
    reply = send(own_site.browser("thea"), "/web/labels/restore", **forms["thea"])
    assert reply.status_code == 409
    assert f"theo restored the version of {first} at" in html.unescape(reply.text)
    assert len(history.version_names("ct_01", "final")) == 3
    save(own_site, "anna", "ct_01", label_of("ct_01"))
    form = {**forms["theo"], "shown": history.version_names("ct_01", "final")[2]}
    reply = send(own_site.browser("theo"), "/web/labels/restore", **form)
    assert (reply.status_code, "anna saved another version at" in reply.text) == (409, True)


def test_of_restores_at_the_same_time_one_succeeds(own_site: WebSite) -> None:
    history, results = history_of(own_site), []
    first, newest = history.version_names("ct_01", "final")
    form = {"image": "ct_01", "tag": "final", "version": first, "shown": newest}
    browsers = [own_site.browser(name) for name in ("theo", "thea", "root")]

    def restore(number: int) -> None:
        results.append(send(browsers[number], "/web/labels/restore", **form).status_code)

    threads = [threading.Thread(target=restore, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [303, 409, 409]
    assert len(history.version_names("ct_01", "final")) == 3


def test_a_disputed_organ_is_confirmed_by_a_trainer(own_site: WebSite) -> None:
    save(own_site, "anna", "ct_02", label_of("ct_02"))
    save(own_site, "boris", "ct_02", taken_away("ct_02"))
    own_site.state.labels.expire()
    assert listed(own_site, state="disputed")[0].startswith("ct_02 disputed")
    browser, history = own_site.browser("theo"), history_of(own_site)
    page = browser.get("/web/labels/image?image=ct_02").text
    assert "spleen is disputed: trainings use the version by anna" in html.unescape(page)
    assert "Confirm spleen" not in own_site.browser("anna").get("/web/labels/image?image=ct_02").text
    query = {"action": "confirm", "image": "ct_02", "organ": "spleen"}
    form = fields(browser.get("/web/labels/confirm", params=query).text)
    assert send(browser, "/web/labels/confirm", **{**form, "shown": "x"}).status_code == 409
    assert send(browser, "/web/labels/confirm", **form).status_code == 303
    info = history.versions("ct_02", "final")[-1].info
    assert (info["disputed"], info["confirmed_by"]) == ({}, {"spleen": "theo"})
    assert send(browser, "/web/labels/confirm", **form).status_code == 409
    assert browser.get("/web/labels/confirm", params=query).status_code == 404
    assert listed(own_site, state="disputed")[0].startswith("Nothing matches")


def test_readers_are_compared_on_what_both_annotated(site: WebSite) -> None:
    table = site.state.readers.get(wait=60).value
    assert table is not None
    (pair,) = table.pairs
    assert (pair.image, pair.organ, pair.first, pair.second) == ("ct_01", "spleen", "anna", "boris")
    assert pair.dice == pytest.approx(1.0)  # On the slices that boris annotated, both drew the same.
    assert pair.slices == int((corrected("ct_01") == SPLEEN).any((0, 1)).sum())
    assert (table.remaining, table.skipped) == (0, 0)
    text = text_of(site.browser("anna").get("/web/labels/readers").text)
    assert f"spleen anna and boris 1 {pair.slices} 1.000 1.000 ct_01" in text
    assert f"spleen anna boris {pair.slices} 1.000" in text_of(
        site.browser("anna").get("/web/labels/image?image=ct_01").text
    )


def test_next_sample_says_its_order_and_why(site: WebSite) -> None:
    site.state.next_samples.get(wait=30)
    browser = site.browser("anna")
    assert (
        browser.post("/activelearning/random", json={}, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200
    )
    site.state.next_samples.expire()
    site.state.next_samples.get(wait=30)
    text = text_of(browser.get("/web/labels/next").text)
    assert "number 1 by name" in text
    assert "never offered; chance" in text
    assert "last offered a moment ago; chance below 1 %" in text
    assert "0 of 3 images are compared so far" in text


def test_unknown_images_versions_and_actions_are_not_found(site: WebSite) -> None:
    browser = site.browser("theo")
    for path, query in (
        ("image", {"image": "nobody"}),
        ("image", {}),
        ("image", {"image": "ct_01", "version": "20200101T000000.000000Z"}),
        ("differences", {"image": "ct_01", "version": "20200101T000000.000000Z"}),
        ("picture", {"image": "ct_01", "version": "x"}),
        ("confirm", {"image": "ct_01", "action": "eat"}),
        ("confirm", {"image": "ct_01", "action": "confirm", "organ": "spleen"}),
    ):
        assert browser.get(f"/web/labels/{path}", params=query).status_code in (400, 404), (path, query)
    for path, form in (
        (
            "restore",
            {"image": "ct_01", "version": "../../x", "shown": history_of(site).version_names("ct_01", "final")[-1]},
        ),
        ("restore", {"image": "nobody", "version": "x"}),
        ("confirm", {"image": "ct_01"}),
    ):
        assert send(browser, f"/web/labels/{path}", **form).status_code in (400, 404), (path, form)


def test_a_page_on_a_folder_of_read_only_studies_refuses_to_restore(
    own_site: WebSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baps.server.datastores.read_only import ReadOnlyStudies

    datastore = own_site.state.app.datastore()
    monkeypatch.setattr(datastore, "check_writable", ReadOnlyStudies.check_writable.__get__(datastore))
    first, newest = history_of(own_site).version_names("ct_01", "final")
    reply = send(own_site.browser("theo"), "/web/labels/restore", image="ct_01", version=first, shown=newest)
    assert (reply.status_code, "cannot be written to" in reply.text) == (507, True)


def test_the_states_of_a_folder_are_counted(site: WebSite) -> None:
    table = list_labels(site.state.app.datastore(), lambda image: f"patient of {image}")
    assert {state: count for state, count in table.counts.items() if count} == {
        LabelState.CONFIRMED: 1,
        LabelState.DRAFT: 1,
        LabelState.UNCONFIRMED: 1,
        LabelState.MISSING: 1,
    }
    assert table.rows[0].patient == "patient of ct_01"
