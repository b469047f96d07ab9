"""Use the site's page in Chromium, by role and at two sizes: see what serves, train, publish, restore, add people."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize

from baps.annotations.drafts import DraftStore
from baps.demo.server import running_server
from baps.imaging.fingerprint import Fingerprint
from baps.registry.store import AdapterStore
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.labelled_site import SPLEEN, corrected
from tests.support.marks import starts
from tests.support.ohif import SCREENSHOTS
from tests.support.sites import SAMPLES, sample_labels
from tests.support.web_site import CASES, GAINS, add_version, write_studies

pytestmark = pytest.mark.slow

_SIZES: dict[str, ViewportSize] = {
    "desktop": {"width": 1280, "height": 800},
    "tablet": {"width": 820, "height": 1180},
}

_ORGAN = "model=baps&organ=spleen"
_PAGES = {
    "anna": {
        "/": "Overview",
        "/web/train": "Train",
        "/web/adapters": "Adapters",
        f"/web/adapters/organ?{_ORGAN}": "spleen",
        f"/web/adapters/version?{_ORGAN}&version=v0001": "spleen v0001",
        "/web/labels": "Labels",
        "/web/labels/image?image=ct_01": "ct_01",
        "/web/labels/readers": "Readers",
        "/web/labels/next": "Next Sample",
        "/web/labels/drafts": "Drafts",
    },
    "theo": {
        "/web/train": "Train",
        f"/web/adapters/organ?{_ORGAN}": "spleen",
        f"/web/adapters/version?{_ORGAN}&version=v0001": "spleen v0001",
        f"/web/adapters/confirm?action=withdraw&{_ORGAN}": "Withdraw",
        "/web/labels/image?image=ct_01": "ct_01",
    },
    "root": {
        "/": "Overview",
        "/web/labels/image?image=ct_01": "ct_01",
        "/web/people": "People",
        "/web/people/audit": "Audit file",
        "/web/people/usage": "Usage",
        "/web/people/confirm?action=role&user=anna": "anna",
        "/web/people/confirm?action=renew&user=anna": "anna",
        "/web/people/confirm?action=remove&user=anna": "anna",
    },
}
"""Headings of pages by path, of an annotator and then what differs for a trainer and for an admin."""


@dataclass(frozen=True)
class Served:
    """A server on three labelled volumes, with an adapter of the spleen.

    Attributes:
        address: Its address.
        tokens: Tokens of ``anna``, an annotator, ``theo``, a trainer, and ``root``, an admin.
        store: The store of its adapters.
        studies: Folder of its images and labels.
    """

    address: str
    tokens: dict[str, str]
    store: AdapterStore
    studies: Path

    def sign_in(self, context: BrowserContext, name: str) -> None:
        """Sign in to a browser without its login page."""
        form = {"username": name, "password": self.tokens[name]}
        assert context.request.post(f"{self.address}/login", form=form, headers={"Origin": self.address}).ok

    def save_label(self, image: str, label: NDArray[np.uint8]) -> None:
        """Save a label as a viewer of ``anna`` does, (I, J, K)."""
        affine = nibabel.load(SAMPLES / "images" / f"{image}.nii.gz").affine
        reply = requests.put(
            f"{self.address}/datastore/label",
            params={"image": image, "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": "spleen", "idx": 2}, {"name": "liver", "idx": 1}]})},
            files={"label": ("label.nii.gz", gzip.compress(nibabel.Nifti1Image(label, affine).to_bytes()))},
            headers={"Authorization": f"Bearer {self.tokens['anna']}"},
            timeout=60,
        )
        assert reply.status_code == 200, reply.text

    def draw(self, image: str) -> DraftStore:
        """Keep a draft of the spleen on an image, as 3D Slicer's nnInteractive of ``anna`` leaves it."""
        file = nibabel.load(SAMPLES / "images" / f"{image}.nii.gz")
        voxels, spacing = np.asarray(file.dataobj).transpose(2, 1, 0), file.header.get_zooms()[::-1]
        mask = (sample_labels(image) == SPLEEN).transpose(2, 1, 0)
        drafts = DraftStore(self.store.root / "drafts", 100, 1 << 28)
        drafts.add("spleen", "anna", Fingerprint.of(voxels), mask, tuple(map(float, spacing)))
        return drafts

    def label_on_disk(self, image: str) -> NDArray[np.uint8]:
        """Read the label that is served, (I, J, K)."""
        return np.asarray(nibabel.load(self.studies / "labels" / "final" / f"{image}.nii.gz").dataobj).astype(np.uint8)


@dataclass
class Watched:
    """A page, and what the browser complained of.

    Attributes:
        page: Page of Playwright.
        requested: Addresses of all requests.
        complaints: Errors and violations of the Content-Security-Policy in the console.
    """

    page: Page
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
@starts("server")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    users = Users(folder / "users.json")
    roles = {"anna": Role.ANNOTATOR, "theo": Role.TRAINER, "root": Role.ADMIN}
    tokens = {name: users.add(name, role) for name, role in roles.items()}
    write_studies(folder / "studies")
    store = AdapterStore(folder / "adapters")
    add_version(store, "spleen", GAINS)
    settings = {"labels": "spleen=2,liver=1", "adapters": str(store.root), "users": str(users.file),
                "evidence_images_per_label": "0"}  # fmt: skip
    with running_server(folder / "studies", folder / "server.log", settings) as (address, _):
        site = Served(address, tokens, store, folder / "studies")
        site.save_label("ct_01", corrected("ct_01"))
        yield site


@pytest.fixture(params=list(_SIZES))
def watched(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Watched]:
    with _watch(browser, _SIZES[request.param], "dark" if request.param == "tablet" else "light") as result:
        yield result


@contextmanager
def _watch(browser: Browser, size: ViewportSize, scheme: Literal["light", "dark"]) -> Iterator[Watched]:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(120_000)
    result = Watched(context.new_page())
    context.on("request", lambda sent: result.requested.append(sent.url))

    def complain(line: ConsoleMessage) -> None:
        # The script for live progress notes when a stream ends, before the browser opens the next one.
        if line.type in ("error", "warning") and line.text != "[object Event]":
            result.complaints.append(line.text)

    context.on("console", complain)
    yield result
    context.close()


def _sign_in(watched: Watched, served: Served, name: str) -> Page:
    page = watched.page
    page.goto(f"{served.address}/web/train")
    page.get_by_label("User").fill(name)
    page.get_by_label("Token").fill(served.tokens[name])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Train", exact=True).wait_for()
    return page


def _check(watched: Watched, served: Served, name: str) -> None:
    """Check that nothing is loaded from elsewhere or blocked, and that the page does not scroll sideways."""
    page = watched.page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(SCREENSHOTS) / f"page-{name}-{page.viewport_size['width']}.png", full_page=True)  # type: ignore[index]
    assert {urlsplit(url).netloc for url in watched.requested} == {urlsplit(served.address).netloc}
    assert watched.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("name", list(_PAGES))
def test_each_page_of_a_role(watched: Watched, served: Served, name: str) -> None:
    served.sign_in(watched.page.context, name)
    for path, heading in _PAGES[name].items():
        watched.page.goto(f"{served.address}{path}", wait_until="load")
        assert heading in watched.page.get_by_role("heading", level=1).inner_text()
        tabs = watched.page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link").all_inner_texts()
        assert tabs == ["Overview", "Train", "Adapters", "Labels", *(["People"] if name == "root" else [])]
        _check(watched, served, f"{name}{''.join(one if one.isalnum() else '-' for one in path.partition('?')[0])}")


def test_a_draft_is_looked_at_and_confirmed(watched: Watched, served: Served) -> None:
    drafts = served.draw("ct_03")
    page = watched.page
    served.sign_in(page.context, "anna")
    page.goto(f"{served.address}/web/labels/drafts")
    page.get_by_role("link", name="Look and confirm").first.click()
    page.get_by_text("all voxels are equal").wait_for()
    page.get_by_role("img", name="The draft").first.scroll_into_view_if_needed()
    _check(watched, served, "draft")
    assert _barriers(page) == []
    page.get_by_role("button", name="Confirm").click()
    page.get_by_text("anna confirmed a draft").wait_for()
    assert np.array_equal(served.label_on_disk("ct_03") == SPLEEN, sample_labels("ct_03") == SPLEEN)
    assert drafts.all() == []


def test_what_a_role_does_not_allow_is_a_page_with_a_sentence(watched: Watched, served: Served) -> None:
    served.sign_in(watched.page.context, "anna")
    watched.page.goto(f"{served.address}/web/people")
    watched.page.get_by_role("alert").get_by_text("you need the role admin; yours is annotator").wait_for()
    assert all("403" in line for line in watched.complaints)
    watched.complaints.clear()
    _check(watched, served, "refused")
    watched.page.get_by_role("link", name="Overview").last.click()
    watched.page.get_by_role("heading", name="Overview").wait_for()


@pytest.mark.parametrize(("scheme", "size"), [("light", "tablet"), ("dark", "desktop")])
def test_axe_finds_no_serious_barrier(
    browser: Browser, served: Served, scheme: Literal["light", "dark"], size: str
) -> None:
    context = browser.new_context(viewport=_SIZES[size], color_scheme=scheme, bypass_csp=True)  # For axe's script.
    page, paths = context.new_page(), {path for pages in _PAGES.values() for path in pages}
    page.goto(f"{served.address}/login")
    found = {"/login": _barriers(page)}
    served.sign_in(context, "anna")
    for path in ("/web/train", "/web/people"):  # As an annotator; the second is refused.
        page.goto(f"{served.address}{path}")
        found[f"anna {path}"] = _barriers(page)
    served.sign_in(context, "root")
    for path in sorted(paths):
        page.goto(f"{served.address}{path}")
        if "version=" in path:
            page.locator(".pictures img").first.wait_for()
        found[path] = _barriers(page)
    assert {path: barriers for path, barriers in found.items() if barriers} == {}
    page.evaluate("document.querySelector('main').append(document.createElement('input'))")
    assert _barriers(page) == ["label: #main > input"]  # Axe finds barriers here.
    context.close()


def _barriers(page: Page) -> list[str]:
    """Return what axe-core calls a serious or critical barrier on a page."""
    return [
        f"{found['id']}: {' '.join(map(str, node['target']))}"
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


def test_an_annotator_sees_what_serves_and_for_whom_it_is_better(watched: Watched, served: Served) -> None:
    page = _sign_in(watched, served, "anna")
    page.get_by_role("link", name="Overview").click()
    row = page.get_by_role("row", name="spleen").first
    assert "v0001" in row.inner_text()
    page.get_by_text("With confirmed labels").wait_for()
    _check(watched, served, "overview")
    row.get_by_role("link", name="spleen").click()
    page.get_by_role("link", name="v0001").first.click()
    assert page.get_by_role("link", name="Put on trial").count() == 0
    images = page.locator(".pictures img")
    images.first.wait_for()
    for image in images.all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.querySelectorAll('.pictures img')].every(one => one.naturalWidth > 100)")
    assert images.count() == 12  # Image, two masks and label of three patients.
    _check(watched, served, "version")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save a report").click()
    report = download.value.path().read_text()
    assert "Report of adapter spleen v0001" in report
    assert not any(case in report for case in CASES)


def test_the_page_works_with_the_keyboard(watched: Watched, served: Served) -> None:
    page = _sign_in(watched, served, "anna")
    _check(watched, served, "train-annotator")
    page.goto(f"{served.address}/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(f"{served.address}/")
    for _ in range(4):  # The link to the content, the name of the site, Overview, Train.
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Train", exact=True).wait_for()


def test_a_trainer_watches_a_training_to_its_verdict_and_chooses_what_serves(watched: Watched, served: Served) -> None:
    before = served.store.versions("liver")
    page = _sign_in(watched, served, "theo")
    form = page.locator("form", has_text="Adapt clicks")
    form.get_by_label("Organ").select_option("liver")
    form.get_by_label("Images to send").fill("150")
    form.get_by_text("More options").click()
    form.get_by_label("Seed").fill(str(len(before)))  # Otherwise the same training would not be repeated.
    form.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Stop the training").wait_for()
    page.get_by_text("Time left").wait_for()
    page.get_by_text("No training is running.").wait_for(timeout=600_000)
    page.get_by_role("link", name="liver").first.wait_for()
    assert page.locator("svg.plot polyline").count() > 0
    _check(watched, served, "train")
    version = served.store.versions("liver")[-1]
    assert version not in before
    page.get_by_role("link", name="liver").first.click()
    page.get_by_role("link", name=version, exact=True).first.click()
    page.get_by_role("heading", name=f"liver {version}").wait_for()
    if served.store.published("liver") != version:
        page.get_by_role("link", name="Put on trial").or_(page.get_by_role("link", name="Publish")).first.click()
        page.locator("main").get_by_role("button").click()
        page.get_by_text("What serves now").wait_for()
    else:
        page.goto(f"{served.address}/web/adapters/organ?model=baps&organ=liver")
    assert served.store.published("liver") == version
    organ_page = page.url
    page.goto(f"{served.address}/")
    assert version in page.get_by_role("row", name="liver").first.inner_text()
    _check(watched, served, "overview-trained")
    page.goto(organ_page)
    page.get_by_role("link", name="Roll back").click()
    page.get_by_text("for everyone who uses this server").wait_for()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("theo chose").wait_for()
    assert served.store.published("liver") != version


def test_a_page_that_is_out_of_date_changes_nothing(watched: Watched, served: Served) -> None:
    page = _sign_in(watched, served, "theo")
    other = page.context.new_page()
    confirm = f"{served.address}/web/adapters/confirm?action=withdraw&model=baps&organ=spleen"
    if served.store.published("spleen") is None:
        served.store.publish("spleen", "v0001")
    for tab in (page, other):
        tab.goto(confirm)
    _check(watched, served, "confirm")
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_text("What serves now").wait_for()
    _check(watched, served, "organ")
    other.get_by_role("button", name="Withdraw").click()
    other.get_by_role("alert").get_by_text("theo chose the unadapted model in place of v0001").wait_for()
    served.store.publish("spleen", "v0001")


def test_a_trainer_restores_a_label(watched: Watched, served: Served) -> None:
    original, changed = sample_labels("ct_01"), corrected("ct_01")
    if not np.array_equal(served.label_on_disk("ct_01"), changed):  # Restored at the other size.
        served.save_label("ct_01", changed)
    np.testing.assert_array_equal(served.label_on_disk("ct_01"), changed)
    page = _sign_in(watched, served, "theo")
    page.get_by_role("link", name="Labels").click()
    page.get_by_role("searchbox").fill("ct_01")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="ct_01").first.click()
    page.get_by_role("link", name="Difference").first.click()
    picture = page.locator(".pictures img").first
    picture.wait_for()
    picture.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.pictures img').naturalWidth > 100")
    _check(watched, served, "label")
    page.get_by_role("link", name="Restore").last.click()
    page.get_by_text("From now on, 3D Slicer and OHIF get the label of").wait_for()
    _check(watched, served, "restore")
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("theo restored").wait_for()
    np.testing.assert_array_equal(served.label_on_disk("ct_01"), original)
    assert (served.label_on_disk("ct_01") == SPLEEN).sum() > (changed == SPLEEN).sum()
    _check(watched, served, "restored")


def test_an_admin_adds_a_user_and_removes_the_user(watched: Watched, served: Served, browser: Browser) -> None:
    page, new = watched.page, f"mary-{watched.page.viewport_size['width']}"  # type: ignore[index]
    served.sign_in(page.context, "root")
    page.goto(f"{served.address}/web/people")

    def add(name: str) -> None:
        form = page.locator("form", has_text="Add and show the token")
        form.get_by_label("Name").fill(name)
        form.get_by_label("Role").select_option("trainer")
        form.get_by_role("button").click()

    add("anna")
    page.get_by_role("alert").get_by_text("There is a user anna already").wait_for()
    assert all("400" in line for line in watched.complaints)
    watched.complaints.clear()
    add(new)
    token = page.locator("code.token").inner_text()
    page.get_by_role("link", name="Done").click()
    page.get_by_role("row", name=new).first.wait_for()
    assert token not in page.content()
    _check(watched, served, "people")
    with _watch(browser, _SIZES["desktop"], "light") as other:
        user = _sign_in(other, Served(served.address, {new: token}, served.store, served.studies), new)
        user.get_by_role("button", name="Start").first.wait_for()
        page.get_by_role("link", name=f"Remove of {new}").click()
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("heading", name="People").wait_for()
        user.goto(f"{served.address}/")
        user.get_by_label("User").fill(new)
        user.get_by_label("Token").fill(token)
        user.get_by_role("button", name="Sign in").click()
        user.get_by_role("alert").get_by_text("User or token is wrong").wait_for()
