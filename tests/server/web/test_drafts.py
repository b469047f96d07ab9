from __future__ import annotations

import html
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from numpy.typing import NDArray
from PIL import Image

from baps.annotations.drafts import DraftStore
from baps.imaging.fingerprint import Fingerprint
from baps.server.web import drafts as module
from tests.support.sites import SAMPLES, sample_labels
from tests.support.web_site import WebSite, send, web_site

SPLEEN = 2


@pytest.fixture
def site(tmp_path: Path) -> Iterator[WebSite]:
    with web_site(tmp_path, trained=False) as made:
        yield made


def store_of(site: WebSite) -> DraftStore:
    return DraftStore(site.folder / "adapters" / "drafts", 100, 1 << 28)


def image_of(case: str) -> NDArray[np.int16]:
    return np.asarray(nibabel.load(SAMPLES / "images" / f"{case}.nii.gz").dataobj)


def draw(site: WebSite, user: str, case: str = "ct_01", voxels: NDArray[np.int16] | None = None) -> str:
    """Keep a draft of the spleen as 3D Slicer draws it, without its lowest slice."""
    time.sleep(0.002)
    sent = (image_of(case) if voxels is None else voxels).transpose(2, 1, 0)
    mask = (sample_labels(case) == SPLEEN).transpose(2, 1, 0).copy()
    mask[np.flatnonzero(mask.any((1, 2)))[0]] = False
    return store_of(site).add("spleen", user, Fingerprint.of(sent), mask, (2.0, 1.0, 1.0))[0]


def page(browser: TestClient, path: str, **query: str) -> str:
    reply = browser.get(path, params=query or None)
    assert reply.status_code == 200, reply.text
    assert "style=" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    return reply.text


def text_of(fragment: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", fragment)).split())


def fields(text: str) -> list[dict[str, str]]:
    """Return the hidden fields of each form."""
    forms = re.findall(r"<form.*?</form>", text, re.DOTALL)
    return [
        {n: html.unescape(v) for n, v in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form)}
        for form in forms
    ]


def label_of(site: WebSite, case: str) -> NDArray[np.uint8]:
    (file,) = (site.folder / "studies" / "labels" / "final").glob(f"{case}.*")
    return np.asarray(nibabel.load(file).dataobj)


def sentence(reply: Response) -> str:
    return text_of(reply.text)


def test_annotators_see_their_own_drafts_and_trainers_all(site: WebSite) -> None:
    names = {user: draw(site, user) for user in ("anna", "theo")}
    assert "1 draft" not in page(site.browser("root"), "/web/labels")
    mine = page(site.browser("anna"), "/web/labels/drafts")
    assert (names["anna"] in mine, names["theo"] in mine) == (True, False)
    everybody = page(site.browser("thea"), "/web/labels/drafts")
    assert all(name in everybody for name in names.values())
    mask = store_of(site).get(names["anna"])
    assert f"spleen anna {mask.voxels:,} {mask.voxels * 2 / 1000:.1f}" in text_of(mine)
    for path in ("draft", "draft/match", "draft/picture"):
        reply = site.browser("anna").get(f"/web/labels/{path}", params={"draft": names["theo"], "image": "ct_01"})
        assert (reply.status_code, "There is no draft" in reply.text) == (404, True)


def test_the_page_finds_the_image_shows_the_mask_and_confirms_it(site: WebSite) -> None:
    name, browser = draw(site, "anna", "ct_02"), site.browser("anna")
    text = page(browser, "/web/labels/draft", draft=name)
    (part,) = re.findall(r'hx-get="([^"]+)"', text)
    text = page(browser, html.unescape(part))
    assert "It was drawn on ct_02 : all voxels are equal." in text_of(text)
    pictures = [html.unescape(address) for address in re.findall(r'<img src="([^"]+)"', text)]
    assert pictures
    for address in pictures:
        reply = browser.get(address)
        assert reply.headers["cache-control"] == "no-store"
        picture = np.asarray(Image.open(io.BytesIO(reply.content))).astype(int)
        assert ((picture[..., 1] - picture[..., 0]) > 100).sum() > 50  # The outline is green.
    (form,) = fields(text)
    before = label_of(site, "ct_02")
    reply = send(browser, "/web/labels/draft/confirm", **form)
    assert (reply.status_code, reply.headers["location"]) == (303, "/web/labels/image?image=ct_02")
    label, drawn = label_of(site, "ct_02"), sample_labels("ct_02") == SPLEEN
    drawn[:, :, np.flatnonzero(drawn.any((0, 1)))[0]] = False
    assert np.array_equal(label == SPLEEN, drawn)
    assert np.array_equal(label == 1, before == 1)
    after = text_of(page(browser, reply.headers["location"]))
    assert "anna confirmed a draft (Saved as spleen)" in after
    assert "made by nninteractive" in after
    reply = send(browser, "/web/labels/draft/confirm", **form)
    assert (reply.status_code, "It was confirmed or deleted" in sentence(reply)) == (409, True)


def test_the_audit_file_says_who_looked_confirmed_and_deleted(site: WebSite) -> None:
    kept, gone, browser = draw(site, "anna"), draw(site, "anna"), site.browser("theo")
    page(browser, "/web/labels/draft/match", draft=kept)
    assert send(browser, "/web/labels/draft/confirm", draft=kept, image="ct_01").status_code == 303
    assert send(browser, "/web/labels/draft/delete", draft=gone).status_code == 303
    assert send(browser, "/web/labels/draft/delete", draft=gone).status_code == 409
    lines = [json.loads(line) for line in (site.folder / "adapters" / "audit.jsonl").read_text().splitlines()]
    image = site.state.audit.hashed("ct_01")
    assert ("see the labels", image) in {(line["what"], line["image"]) for line in lines}
    (confirmed,) = [line for line in lines if line["what"] == "confirm a draft"]
    assert (confirmed["user"], confirmed["image"], confirmed["draft"], confirmed["drawn_by"], confirmed["status"]) == (
        "theo", image, kept, "anna", 303
    )  # fmt: skip
    deleted = [(line["user"], line["draft"], line["status"]) for line in lines if line["what"] == "delete a draft"]
    assert deleted == [("theo", gone, 303), ("theo", gone, 409)]


def test_several_equal_images_are_offered_and_none_is_chosen(site: WebSite) -> None:
    studies = site.folder / "studies"
    shutil.copy2(studies / "ct_01.nii.gz", studies / "ct_01 again.nii.gz")
    site.state.app.datastore()._reconcile_datastore()  # type: ignore[attr-defined]
    name, browser = draw(site, "anna"), site.browser("anna")
    text = page(browser, "/web/labels/draft/match", draft=name)
    assert "Several images have these voxels" in text
    assert fields(text) == []
    addresses = [html.unescape(one) for one in re.findall(r'<a class="image" href="([^"]+)"', text)]
    assert len(addresses) == 2
    assert any('value="ct_01 again"' in page(browser, address) for address in addresses)
    reply = send(browser, "/web/labels/draft/confirm", draft=name)
    assert (reply.status_code, "Several images" in sentence(reply)) == (400, True)


def test_the_page_says_why_an_image_is_not_that_of_the_draft(site: WebSite) -> None:
    changed = image_of("ct_01").copy()
    changed[0, 0, 0] += 1
    name, browser = draw(site, "anna", voxels=changed), site.browser("anna")
    text = page(browser, "/web/labels/draft/match", draft=name)
    assert "No image on this server has the voxels" in text
    assert "<img" not in text
    assert fields(text) == []
    assert "does not have the voxels" in page(browser, "/web/labels/draft/match", draft=name, image="ct_01")
    assert "no image &#39;heart&#39;" in page(browser, "/web/labels/draft/match", draft=name, image="heart")
    for path in ("..%2Fct_01", "a/b"):
        assert browser.get(f"/web/labels/draft/picture?draft={name}&image={path}").status_code == 400
    reply = browser.get("/web/labels/draft/picture", params={"draft": name, "image": "ct_01"})
    assert (reply.status_code, "does not have the voxels" in sentence(reply)) == (400, True)


def test_a_search_that_takes_long_goes_on_by_itself(site: WebSite, monkeypatch: pytest.MonkeyPatch) -> None:
    name, browser = draw(site, "anna"), site.browser("anna")
    monkeypatch.setattr(module, "_SEARCH_SECONDS", 0.0)
    text = page(browser, "/web/labels/draft/match", draft=name)
    assert "are being compared" in text
    (part,) = re.findall(r'hx-get="([^"]+)"', text)
    monkeypatch.undo()
    assert "It was drawn on" in page(browser, part)


def test_a_damaged_draft_is_a_sentence_that_trainers_can_delete(site: WebSite) -> None:
    damaged, good = draw(site, "anna"), draw(site, "anna")
    (site.folder / "adapters" / "drafts" / f"{damaged}.npz").write_bytes(b"nothing")
    mine = page(site.browser("anna"), "/web/labels/drafts")
    assert (good in mine, damaged in mine) == (True, False)
    browser = site.browser("theo")
    text = page(browser, "/web/labels/drafts")
    assert (good in text, f"The draft {damaged} is damaged" in text) == (True, True)
    assert browser.get("/web/labels/draft", params={"draft": damaged}).status_code == 503
    assert send(site.browser("anna"), "/web/labels/draft/delete", draft=damaged).status_code == 409
    assert send(browser, "/web/labels/draft/delete", draft=damaged).status_code == 303
    assert [draft.name for draft in store_of(site).all()] == [good]


def test_a_label_that_the_site_no_longer_has_is_refused_and_the_draft_stays(site: WebSite) -> None:
    voxels = image_of("ct_01")
    name, _ = store_of(site).add("heart", "anna", Fingerprint.of(voxels), sample_labels("ct_01") == SPLEEN)
    reply = send(site.browser("anna"), "/web/labels/draft/confirm", draft=name, image="ct_01")
    assert (reply.status_code, "There is no label 'heart'" in html.unescape(reply.text)) == (400, True)
    assert [draft.name for draft in store_of(site).all()] == [name]
