"""Use the site's page in Chromium: see what serves, watch a training to its verdict, publish, roll back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize

from baps.demo.server import running_server
from baps.registry.store import AdapterStore
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.marks import starts
from tests.support.ohif import SCREENSHOTS
from tests.support.web_site import CASES, GAINS, add_version, write_studies

pytestmark = pytest.mark.slow

_SIZES: dict[str, ViewportSize] = {
    "desktop": {"width": 1280, "height": 800},
    "tablet": {"width": 820, "height": 1180},
}


@dataclass(frozen=True)
class Served:
    """A server on three labelled volumes, with an adapter of the spleen.

    Attributes:
        address: Its address.
        tokens: Tokens of ``anna``, an annotator, and ``theo``, a trainer.
        store: The store of its adapters.
    """

    address: str
    tokens: dict[str, str]
    store: AdapterStore


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
    tokens = {"anna": users.add("anna", Role.ANNOTATOR), "theo": users.add("theo", Role.TRAINER)}
    write_studies(folder / "studies")
    store = AdapterStore(folder / "adapters")
    add_version(store, "spleen", GAINS)
    settings = {"labels": "spleen=2,liver=1", "adapters": str(store.root), "users": str(users.file),
                "evidence_images_per_label": "0"}  # fmt: skip
    with running_server(folder / "studies", folder / "server.log", settings) as (address, _):
        yield Served(address, tokens, store)


@pytest.fixture(params=list(_SIZES))
def watched(browser: Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[Watched]:
    scheme = "dark" if request.param == "tablet" else "light"
    context = browser.new_context(viewport=_SIZES[request.param], color_scheme=scheme)
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
    watched.complaints.clear()  # The login page has no icon, because nobody has signed in.
    return page


def _check(watched: Watched, served: Served, name: str) -> None:
    """Check that nothing is loaded from elsewhere or blocked, and that the page does not scroll sideways."""
    page = watched.page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(SCREENSHOTS) / f"page-{name}-{page.viewport_size['width']}.png", full_page=True)  # type: ignore[index]
    assert {urlsplit(url).netloc for url in watched.requested} == {urlsplit(served.address).netloc}
    assert watched.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


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


@pytest.mark.parametrize("watched", ["desktop"], indirect=True)  # A training takes a minute or more.
def test_a_trainer_watches_a_training_to_its_verdict_and_chooses_what_serves(watched: Watched, served: Served) -> None:
    before = served.store.versions("liver")
    page = _sign_in(watched, served, "theo")
    form = page.locator("form", has_text="Adapt clicks")
    form.get_by_label("Organ").select_option("liver")
    form.get_by_label("Images to send").fill("400")
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
