from __future__ import annotations

import io
import json
import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from baps.evaluation.splits import patient_hash
from baps.site.roles import Role
from tests.support.client import ADDRESS, site_client
from tests.support.web_site import GAINS, WebSite, send

SPLEEN = {"model": "baps", "organ": "spleen"}
FIRST = {**SPLEEN, "version": "v0001"}


def _shown(browser_text: str) -> str:
    found = re.search(r'name="shown" value="([^"]*)"', browser_text)
    assert found
    return found[1]


def test_a_version_has_its_verdict_numbers_and_patients(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    text = unescape(pages.browser("theo").get("/web/adapters/version", params=FIRST).text)
    assert "published" in text
    assert "+.05" in text
    assert "ct_01" in text
    assert patient_hash("gone_0") in text  # Its image is gone.
    assert text.count("cross-fitted") == 0
    assert ">held back<" in text


def test_annotators_see_hashes_instead_of_names(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    browser = pages.browser("anna")
    for path in ("/web/adapters/version", "/web/adapters/pictures"):
        text = browser.get(path, params=FIRST).text
        assert "ct_01" not in text
        assert patient_hash("ct_01") in text
    assert "/web/adapters/confirm" not in browser.get("/web/adapters/organ", params=SPLEEN).text


def test_publish_roll_back_and_withdraw(own_pages: WebSite) -> None:
    browser, store = own_pages.browser("theo"), own_pages.store
    asked = browser.get("/web/adapters/confirm", params={**SPLEEN, "version": "v0002", "action": "publish"}).text
    assert "Put v0002 on trial for spleen?" in asked
    assert "for everyone who uses this server" in asked
    assert "not proven to be better" in asked
    reply = send(browser, "/web/adapters/publish", **SPLEEN, version="v0002", shown=_shown(asked))
    assert (reply.status_code, reply.headers["Location"]) == (303, "/web/adapters/organ?model=baps&organ=spleen")
    assert store.published("spleen") == "v0002"
    page = browser.get(reply.headers["Location"]).text
    assert "theo chose v0002 in place of v0001" in page
    assert "Roll back to v0001" in page
    asked = browser.get("/web/adapters/confirm", params={**SPLEEN, "action": "rollback"}).text
    assert "From the next request on, v0001 answers every click on spleen" in asked
    send(browser, "/web/adapters/rollback", **SPLEEN, shown=_shown(asked))
    assert store.published("spleen") == "v0001"
    asked = browser.get("/web/adapters/confirm", params={**SPLEEN, "action": "withdraw"}).text
    assert "the unadapted model answers every click on spleen" in asked
    send(browser, "/web/adapters/withdraw", **SPLEEN, shown=_shown(asked))
    assert store.published("spleen") is None
    lines = [json.loads(line) for line in (own_pages.folder / "adapters" / "audit.jsonl").read_text().splitlines()]
    done = [(one["user"], one["what"], one["adapter"]) for one in lines if "adapter" in one["what"]]
    assert done == [
        ("theo", "publish an adapter", "spleen/v0002"),
        ("theo", "roll back an adapter", "spleen/v0001"),
        ("theo", "withdraw an adapter", "spleen/none"),
    ]


def test_the_second_of_two_people_is_told_what_the_first_did(own_pages: WebSite) -> None:
    theo, thea = own_pages.browser("theo"), own_pages.browser("thea")
    query = {**SPLEEN, "version": "v0002", "action": "publish"}
    first, second = (_shown(one.get("/web/adapters/confirm", params=query).text) for one in (theo, thea))
    assert send(theo, "/web/adapters/publish", **SPLEEN, version="v0002", shown=first).status_code == 303
    reply = send(thea, "/web/adapters/withdraw", **SPLEEN, shown=second)
    assert reply.status_code == 409
    assert "theo chose v0002 in place of v0001" in reply.text
    assert "Nothing was changed." in reply.text
    assert own_pages.store.published("spleen") == "v0002"


def test_a_change_by_the_evidence_is_noticed_too(own_pages: WebSite) -> None:
    own_pages.store.withdraw("spleen")
    reply = send(own_pages.browser("theo"), "/web/adapters/publish", **SPLEEN, version="v0002", shown="v0001")
    assert (reply.status_code, own_pages.store.published("spleen")) == (409, None)
    assert "a training, the evidence or the command line changed it" in reply.text


@pytest.mark.parametrize("action", ["publish", "rollback", "withdraw"])
def test_changes_need_the_role_and_a_form_of_this_server(own_pages: WebSite, action: str) -> None:
    path, form = f"/web/adapters/{action}", {**SPLEEN, "version": "v0002", "shown": "v0001"}
    assert send(own_pages.browser("anna"), path, **form).status_code == 403
    browser = own_pages.browser("theo")
    assert browser.get(path, params=form).status_code in (404, 405)
    assert browser.post(path, data=form).status_code == 401
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert browser.post(path, data=form, headers=headers).status_code == 403
    assert own_pages.store.published("spleen") == "v0001"


def test_a_page_that_may_use_the_viewers_requests_may_not_press_buttons(tmp_path: Path) -> None:
    """Without users, the guard lets pages of allowed origins send requests; not those of forms."""
    with site_client(tmp_path, settings={"cors_origins": "https://viewer.hospital"}) as client:
        headers = {"Origin": "https://viewer.hospital"}
        assert client.get("/info/", headers=headers).status_code == 200
        for path in ("/web/adapters/withdraw", "/web/adapters/publish", "/web/train", "/web/train/stop"):
            reply = client.post(path, data={"model": "baps", "organ": "spleen"}, headers=headers)
            assert reply.status_code == 403, path
            assert "not sent by a page of this server" in reply.text
            reply = client.post(path, data={"model": "baps"}, headers={**headers, "Authorization": "Bearer any"})
            assert reply.status_code == 403, path


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/web/adapters/organ", {"model": "other"}),
        ("/web/adapters/version", {**SPLEEN, "version": "v0009"}),
        ("/web/adapters/version", {**SPLEEN, "version": "../v0001"}),
        ("/web/adapters/report", {**SPLEEN, "version": ""}),
        ("/web/adapters/confirm", {**SPLEEN, "action": "remove"}),
        ("/web/adapters/confirm", {**SPLEEN, "action": "publish", "version": "v0009"}),
        ("/web/adapters/confirm", {"model": "baps", "organ": "liver", "action": "rollback"}),
        ("/web/adapters/picture", {**FIRST, "patient": "0" * 16}),
        ("/web/adapters/picture", {**FIRST, "patient": patient_hash("ct_01"), "show": "secret"}),
        ("/static/site.css.map", {}),
        ("/static/access_policy.py", {}),
    ],
)
def test_what_does_not_exist_is_a_page_with_a_sentence(pages: WebSite, path: str, query: dict[str, str]) -> None:
    pages.state.counts.get(wait=30)
    reply = pages.browser("theo").get(path, params=query)
    assert reply.status_code == 404, reply.text
    if path.startswith("/web"):
        assert "<h1>That did not work</h1>" in reply.text


@pytest.mark.parametrize("organ", ["x" * 300, "a\nb", "\u202e"])
def test_names_that_no_organ_has_are_refused(pages: WebSite, organ: str) -> None:
    reply = pages.browser("theo").get("/web/adapters/organ", params={"model": "baps", "organ": organ})
    assert (reply.status_code, "The name of a label" in reply.text) == (400, True)


@pytest.mark.parametrize("version", ["v0001", "v0002"])
@pytest.mark.parametrize(
    "changes",
    [
        {"training_patients": None, "verdict": "better"},
        {"training_patients": 5, "notes": None, "parts": 3},
        {"curve": [["a", 0.5], [float("inf"), 0.5], [-1, 0.5], 7], "seconds": "long"},
        {"seconds": float("nan"), "black_box_images": None, "scores": [], "settings": []},
        {"verdict": None, "curve": None},
    ],
)
def test_a_record_that_a_person_edited_stops_no_page(
    own_pages: WebSite, version: str, changes: dict[str, object]
) -> None:
    file = own_pages.store.file("spleen", version).with_name("record.json")
    record = {**json.loads(file.read_text()), **changes}
    if record["verdict"] is None:  # As in a record of an earlier release.
        del record["verdict"]
    file.write_text(json.dumps(record))
    browser = own_pages.browser("theo")
    for path in ("/", "/web/adapters", "/web/adapters/organ", "/web/adapters/version", "/web/adapters/report"):
        reply = browser.get(path, params={**SPLEEN, "version": version})
        assert (reply.status_code, version in reply.text) == (200, True), path


@pytest.mark.parametrize("black_box", [None, "bundled", {"name": "bundled"}])
def test_a_record_that_names_no_model_is_damaged_and_the_other_version_is_shown(
    own_pages: WebSite, black_box: object
) -> None:
    file = own_pages.store.file("spleen", "v0001").with_name("record.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "black_box": black_box}))
    browser = own_pages.browser("theo")
    for path in ("/", "/web/adapters", "/web/adapters/organ"):
        text = browser.get(path, params=SPLEEN).text
        assert "damaged" in text, path
        assert "Restore it from your backup" in text, path
    assert browser.get("/web/adapters/version", params={**SPLEEN, "version": "v0002"}).status_code == 200
    assert own_pages.state.adapters.read("baps", "spleen").serves is None


def test_a_damaged_version_is_not_published_and_has_no_report(own_pages: WebSite) -> None:
    own_pages.store.file("spleen", "v0002").write_bytes(b"broken")
    browser, form = own_pages.browser("theo"), {**SPLEEN, "version": "v0002"}
    for reply in (
        browser.get("/web/adapters/confirm", params={**form, "action": "publish"}),
        browser.get("/web/adapters/report", params=form),
        send(browser, "/web/adapters/publish", **form, shown="v0001"),
    ):
        assert reply.status_code == 503
        assert "Restore it from your backup, or train again." in unescape(reply.text)
    assert own_pages.store.published("spleen") == "v0001"


def test_the_report_is_one_file_without_names(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    reply = pages.browser("theo").get("/web/adapters/report", params=FIRST)
    assert reply.status_code == 200
    assert reply.headers["Content-Disposition"] == 'attachment; filename="adapter-spleen-v0001.html"'
    assert reply.headers["Cache-Control"] == "no-store"
    text = reply.text
    assert not any(name in text for name in GAINS)
    assert all(patient_hash(name) in text for name in GAINS)
    assert not re.search(r"<script|<link|<img|\bsrc=|url\(|@import|https?://", text)
    assert "<svg" in text
    assert "default-src 'none'" in unescape(text)


def test_pictures_are_of_the_worst_the_median_and_the_best(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    text = pages.browser("theo").get("/web/adapters/pictures", params=FIRST).text
    titles = re.findall(r"(Worst|Median|Best) patient, gain (\S+)[^<]*<span class=\"muted\">(\w+)", text)
    assert titles == [("Worst", "+.05", "ct_01"), ("Median", "+.20", "ct_02"), ("Best", "+.30", "ct_03")]


def test_pictures_are_made_and_not_stored(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    before = {file for file in pages.folder.rglob("*") if file.is_file()}
    browser, pictures = pages.browser("theo"), {}
    for show in ("image", "unadapted", "adapted", "label"):
        query = {**FIRST, "patient": patient_hash("ct_01"), "show": show}
        reply = browser.get("/web/adapters/picture", params=query)
        assert reply.status_code == 200, reply.text
        assert (reply.headers["Content-Type"], reply.headers["Cache-Control"]) == ("image/png", "no-store")
        pictures[show] = Image.open(io.BytesIO(reply.content)).convert("RGB")
    assert {picture.size for picture in pictures.values()} == {(320, 320)}
    assert pictures["label"].tobytes() != pictures["image"].tobytes()
    # The adapter changes nothing, so both masks are the same; only their colours differ.
    orange, green = (pictures[name].getpixel((160, 160)) for name in ("unadapted", "adapted"))
    assert orange != green
    new = {file for file in pages.folder.rglob("*") if file.is_file()} - before
    assert {file.suffix for file in new} <= {".sqlite", ".lock", ".jsonl", ".json"}, new
    line = json.loads((pages.folder / "adapters" / "audit.jsonl").read_text().splitlines()[-1])
    assert line["what"] == "see a picture of an image"
    assert line["image"]
    assert "ct_01" not in line["image"]


def test_pages_load_nothing_from_elsewhere_and_nothing_inline(pages: WebSite) -> None:
    browser = pages.browser("root")
    for path in ("/", "/web/train", "/web/adapters", "/web/adapters/organ", "/web/adapters/version"):
        reply = browser.get(path, params=FIRST)
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "nonce" not in policy
        assert reply.headers["Cache-Control"] == "no-store"
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=\"/static/)", reply.text), path
        addresses = re.findall(r'(?:src|href|action|hx-get|sse-connect)="([^"]*)"', reply.text)
        assert addresses
        assert all(address.startswith(("/", "#")) and not address.startswith("//") for address in addresses), path
        for address in set(re.findall(r'"(/static/[^"]*)"', reply.text)):
            file = browser.get(address)
            assert (file.status_code, "immutable" in file.headers["Cache-Control"]) == (200, False)


def test_pages_work_below_a_path(tmp_path: Path) -> None:
    with site_client(tmp_path, root_path="/baps") as client:
        for path in ("/baps/", "/baps/web/train", "/baps/web/adapters"):
            text = client.get(path, headers={"Accept": "text/html"}).text
            for address in re.findall(r'(?:src|href|action|hx-get|sse-connect)="([^"#]*)"', text):
                assert address.startswith("/baps/"), (path, address)
        form = {"model": "none"}
        assert client.post("/baps/web/train", data=form, headers={"Origin": ADDRESS}).status_code == 400


def test_a_browser_that_has_not_signed_in_goes_to_the_login_page(pages: WebSite) -> None:
    for path in ("/", "/web/train", "/web/adapters/version?model=baps&organ=spleen&version=v0001"):
        reply = pages.client.get(path, headers={"Accept": "text/html"})
        assert reply.status_code == 303
        assert reply.headers["Location"].startswith("/login?next=%2F")
        assert pages.client.get(path).status_code == 401  # A program.


def test_a_page_of_its_own_requests_does_not_keep_a_session_alive(own_pages: WebSite) -> None:
    browser = own_pages.browser("anna")
    sessions = next(
        layer.kwargs["rules"].authenticator.sessions
        for layer in own_pages.client.app.user_middleware  # type: ignore[attr-defined]
        if "rules" in layer.kwargs
    )
    (session,) = sessions._sessions.values()
    session.last_used -= 3600
    before = session.last_used
    assert browser.get("/web/training-status").status_code == 200
    assert session.last_used == before
    assert browser.get("/web/train").status_code == 200
    assert session.last_used > before
    assert Role.ANNOTATOR in [session.principal.role]
