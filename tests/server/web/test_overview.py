from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from baps.errors import BapsError
from baps.evaluation.splits import patient_hash
from baps.server.web.attention import adapter_warnings, finding_warnings, outbox_warnings
from baps.server.web.images import ImageCounter, ImageCounts, ImageName, OrganCount, OutboxCounts, image_index
from baps.server.web.served import served_organs, suggest
from baps.site.doctor import Finding, Status
from baps.site.roles import Role
from baps.site.settings import Settings
from baps.site.users import Users
from tests.support.client import site_client
from tests.support.web_site import GAINS, HTML, WebSite, add_version, send, web_site


def test_the_overview_says_what_serves_and_how_well(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    text = pages.browser("anna").get("/").text
    assert "spleen" in text
    assert re.search(r"v0001.*?published", text, re.DOTALL)
    assert ">.400<" in text
    assert "likely" in text
    assert "<svg" in text
    assert "not trained yet" in text  # The liver.
    assert "http://127.0.0.1:8000" in text
    assert "Requests that this server accepts" in text


def test_labels_are_counted_by_organ_and_patient(pages: WebSite) -> None:
    counts = pages.state.counts.get(wait=30).value
    assert counts is not None
    assert (counts.images, counts.labelled, counts.patients) == (3, 3, 3)
    assert {one.organ: (one.images, one.patients) for one in counts.organs} == {"spleen": (3, 3), "liver": (3, 3)}
    assert set(image_index(counts).values()) == {
        ImageName(f"ct_0{n}", organ) for n in (1, 2, 3) for organ in ("spleen", "liver")
    }


def test_images_of_one_patient_count_once(pages: WebSite, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\nct_01,p1\nct_02,p1\n")
    app = pages.state.app
    site = Settings(labels=app.site.labels, patients=table)
    assert ImageCounter(app.datastore, site).count().patients == 2


def test_a_pacs_that_does_not_respond_leaves_the_rest_of_the_page(tmp_path: Path) -> None:
    with web_site(tmp_path) as site:

        def fail() -> object:
            raise BapsError("The PACS does not respond. Try again in a minute.")

        site.state.counts._compute = fail  # type: ignore[assignment]
        reply = site.browser("anna").get("/")
        assert reply.status_code == 200
        assert "The PACS does not respond. Try again in a minute." in reply.text
        assert "v0001" in reply.text


def test_an_adapter_that_is_damaged_is_a_warning_with_a_remedy(own_pages: WebSite) -> None:
    own_pages.store.file("spleen", "v0001").write_bytes(b"broken")
    text = own_pages.browser("anna").get("/").text
    assert "Needs attention" in text
    assert "Restore it from your backup, or train again." in text.replace("\n", " ")


def test_labels_that_are_not_in_the_pacs_are_warnings_with_a_remedy() -> None:
    assert outbox_warnings(OutboxCounts(0, 0)) == []
    waiting, refused = outbox_warnings(OutboxCounts(2, 1))
    assert (waiting.failed, waiting.message) == (False, "2 labels wait on this server to be sent to the PACS.")
    assert "Nobody needs to submit again" in waiting.remedy
    assert (refused.failed, refused.message) == (True, "The PACS refused 1 label, kept on this server alone.")
    assert "submit again" in refused.remedy


def test_a_chosen_version_that_loses_dice_is_a_warning(own_pages: WebSite) -> None:
    own_pages.store.publish("spleen", "v0002")
    served, problems = served_organs(own_pages.state.adapters)
    assert problems == []
    warnings = adapter_warnings(one.adapters for one in served)
    assert [("loses" in one.message or "lose Dice" in one.message, bool(one.remedy)) for one in warnings] == [
        (True, True)
    ]


def test_findings_of_the_doctor_hide_paths_from_those_who_do_not_run_the_server() -> None:
    findings = {
        "disk": Finding(
            Status.WARNING, "0.5 GB at /srv/hospital/adapters", "Free some space in /srv/hospital/adapters."
        ),
        "memory, CPUs": Finding(Status.OK, "enough"),
    }
    shown, hidden = finding_warnings(findings, True), finding_warnings(findings, False)
    assert [one.what for one in shown] == ["Disk"]
    assert "/srv/hospital" in shown[0].message + shown[0].remedy
    assert "/srv" not in hidden[0].message + hidden[0].remedy


def _counts(**patients: int) -> ImageCounts:
    organs = tuple(
        OrganCount(organ, count, count, frozenset(patient_hash(f"ct_{n:02}") for n in range(1, count + 1)))
        for organ, count in patients.items()
    )
    return ImageCounts(9, 3, 3, organs, {})


@pytest.mark.parametrize(
    ("patients", "sentence", "trains"),
    [
        (0, "Label 2 more patients, so that a training can be judged.", False),
        (1, "Label 1 more patient, so that a training can be judged.", False),
        (2, "There are labels of 2 patients. Train it.", True),
    ],
)
def test_the_next_step_of_an_organ_without_an_adapter(
    pages: WebSite, patients: int, sentence: str, trains: bool
) -> None:
    served, _ = served_organs(pages.state.adapters)
    (suggestion,) = suggest(served, _counts(liver=patients))
    assert (suggestion.organ, suggestion.sentence, suggestion.trains) == ("liver", sentence, trains)


def test_new_labels_suggest_another_training(own_pages: WebSite) -> None:
    served, _ = served_organs(own_pages.state.adapters)
    assert [one.sentence for one in suggest(served, _counts(spleen=5))] == [
        "v0002 has not seen 2 labelled patients. Train again."
    ]
    assert suggest(served, _counts(spleen=3)) == []  # The newest version is rejected, and has seen all.
    add_version(own_pages.store, "spleen", {case: 0.1 + 0.05 * n for n, case in enumerate(GAINS)})
    served, _ = served_organs(own_pages.state.adapters)
    assert all("more patient" in one.sentence for one in suggest(served, _counts(spleen=3)))
    # It was trained on eight patients. The labels of five of these are gone, and two patients are new.
    assert [one.sentence for one in suggest(served, _counts(spleen=5))] == [
        "v0003 has not seen 2 labelled patients. Train again."
    ]
    assert suggest(served, None) == []


def test_a_new_site_has_a_page(tmp_path: Path) -> None:
    with site_client(tmp_path, cases=1) as client:
        for path in ("/", "/web/train", "/web/adapters"):
            reply = client.get(path, headers=HTML)
            assert reply.status_code == 200, reply.text
    text = client.get("/", headers=HTML).text
    assert "not trained yet" in text
    assert "This machine only, no login" in text


def test_an_organ_without_an_adapter_is_served_by_the_shared_one(tmp_path: Path) -> None:
    with web_site(tmp_path, trained=False) as site:
        version = add_version(site.store, "", GAINS)
        served, _ = served_organs(site.state.adapters)
        fallbacks = {one.adapters.organ: one.fallback for one in served}
        assert fallbacks["spleen"] == f"the adapter for clicks without an organ, {version}"
        assert fallbacks[""] == ""


def test_a_page_does_not_wait_for_what_is_slow(own_pages: WebSite) -> None:
    """A PACS and the checks of the site run in threads of their own, which end after the page was sent."""
    may_end, state = threading.Event(), own_pages.state
    for value in (state.counts, state.findings):
        value._compute = lambda: may_end.wait(60)  # type: ignore[assignment, return-value]
    try:
        text = own_pages.browser("anna").get("/").text
        assert not may_end.is_set()
    finally:
        may_end.set()
    assert "Counting. Load the page again in a moment." in text
    assert "are running" in text
    assert "v0001" in text


@pytest.mark.parametrize("role", list(Role))
def test_everybody_sees_the_tabs_of_their_role(pages: WebSite, role: Role) -> None:
    name = {Role.ANNOTATOR: "anna", Role.TRAINER: "theo", Role.ADMIN: "root"}[role]
    text = pages.browser(name).get("/").text
    assert f"Signed in as {name}" in text
    assert role.value in text
    for title in ("Overview", "Train", "Adapters"):
        assert f">{title}</a>" in text


def test_names_with_markup_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    users = Users(tmp_path / "users.json")
    token = users.add("anna", Role.ADMIN)
    settings = {"labels": {evil: 1, '"><img src=x onerror=alert(1)>': 2}, "users": str(users.file),
                "evidence_images_per_label": "0"}  # fmt: skip
    with site_client(tmp_path, cases=1, settings=settings) as client:
        add_version(client.app.state.web.app.store, evil, GAINS)  # type: ignore[attr-defined]
        headers = {**HTML, "Authorization": f"Bearer {token}"}
        query = {"model": "baps", "organ": evil, "version": "v0001"}
        for path in ("/", "/web/train", "/web/adapters", "/web/adapters/organ", "/web/adapters/version",
                     "/web/adapters/pictures", "/web/adapters/report"):  # fmt: skip
            reply = client.get(path, params=query, headers=headers)
            assert reply.status_code == 200, (path, reply.text)
            assert "<script>alert" not in reply.text, path
            assert "<img src=x" not in reply.text, path
            assert path == "/web/adapters/pictures" or "&lt;script&gt;alert(1)" in reply.text, path
        for action in ("publish", "rollback", "withdraw"):
            reply = client.get("/web/adapters/confirm", params={**query, "action": action}, headers=headers)
            assert "<script>alert" not in reply.text
        wrong = client.get("/web/adapters/organ", params={"model": evil}, headers=headers)
        assert (wrong.status_code, "<script>alert" in wrong.text) == (404, False)


def test_a_browser_gets_a_refusal_as_a_page_and_a_program_as_json(pages: WebSite) -> None:
    sentence = "To see the users you need the role admin; yours is annotator. Ask the operator of the server."
    anna = pages.browser("anna")
    page = anna.get("/web/people")
    assert (page.status_code, page.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert sentence in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    sent = send(anna, "/web/train", model="baps")
    assert (sent.status_code, "you need the role trainer" in sent.text, "<h1>" in sent.text) == (403, True, True)
    token = {"Authorization": f"Bearer {pages.tokens['anna']}"}
    program = pages.client.get("/web/people", headers=token)
    assert (program.status_code, program.json()) == (403, {"detail": sentence})


def test_a_refused_name_is_text_on_the_page(pages: WebSite) -> None:
    page = pages.browser("anna").get("/web/labels/image", params={"image": "../<script>alert(1)</script>"})
    assert page.status_code == 400
    assert "<script>alert" not in page.text
    assert "<h1>That did not work</h1>" in page.text


def test_the_icon_needs_no_login(pages: WebSite) -> None:
    assert "/favicon.ico" in pages.client.get("/login", headers=HTML).text
    icon = pages.client.get("/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/x-icon")
