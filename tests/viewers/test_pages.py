"""Open every page in Chromium, below a path of nginx and without one; nothing is loaded from another host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
from imagecodecs import jpeg2k_encode, jpegls_encode
from playwright.sync_api import Browser, ConsoleMessage, Page, Request
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from baps.demo.server import running_server
from baps.site.roles import Role
from baps.site.users import Users
from demo import orthanc
from tests.support import nginx
from tests.support.marks import starts
from tests.support.nginx import running_nginx
from tests.support.ohif import SCREENSHOTS, Ohif
from tests.support.pacs_site import Pacs
from tests.support.series import Series, inside, write_series

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class ProxiedPacs:
    """A server below /baps of nginx, with a PACS.

    Attributes:
        address: address of the server for a browser, without a slash at the end.
        token: token of anna.
        series: the series in the PACS.
    """

    address: str
    token: str
    series: Series


@dataclass
class WatchedPage:
    """A page of a browser, and the hosts of its requests.

    Attributes:
        page: page of Playwright.
        requested: addresses of all requests.
        failed: addresses whose reply had a status of 400 or more.
        blocked: messages of the browser about violations of a Content-Security-Policy.
    """

    page: Page
    requested: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.requested if url.startswith(("http", "ws"))}


@pytest.fixture(scope="module", params=[False, True], ids=["path left on", "path taken off"])
@starts("server", "pacs")
def below(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ProxiedPacs]:
    if orthanc.missing() or nginx.missing():
        pytest.skip(orthanc.missing() or nginx.missing())
    folder = tmp_path_factory.mktemp("below")
    series = write_series(folder / "dicom" / "axial", "axial")
    users = Users(folder / "users.json")
    token = users.add("anna", Role.ANNOTATOR)
    settings = {"labels": "spleen=2,liver=1", "adapters": str(folder / "adapters"), "users": str(users.file),
                "root_path": "/baps"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patched, orthanc.running_orthanc(folder, reachable=True) as pacs:
        orthanc.store(pacs, folder / "dicom")
        patched.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(folder / "cache"))
        with (
            running_server(f"{pacs}/dicom-web", folder / "server.log", settings) as (server, _),
            running_nginx(folder / "nginx", nginx.PATH, server, strips_path=request.param) as proxy,
        ):
            yield ProxiedPacs(f"{proxy.address}/baps", token, series)


@pytest.fixture
def watched(browser: Browser) -> Iterator[WatchedPage]:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, ignore_https_errors=True)
    context.set_default_timeout(120_000)
    result = WatchedPage(context.new_page())

    def seen(request: Request) -> None:
        result.requested.append(request.url)

    def answer_progress(message: ConsoleMessage) -> None:
        if re.search("Content Security Policy|EvalError", message.text):
            result.blocked.append(message.text)

    context.on("console", answer_progress)
    context.on("request", seen)
    context.on("response", lambda reply: result.failed.append(reply.url) if reply.status >= 400 else None)
    yield result
    context.close()


def test_ohif_works_below_a_path(watched: WatchedPage, below: ProxiedPacs, request: pytest.FixtureRequest) -> None:
    page = watched.page
    page.goto(f"{below.address}/", wait_until="networkidle")
    assert page.url.startswith(f"{below.address}/login?next=")
    _save_screenshot(page, "below-login")
    page.get_by_label("User").fill("anna")
    page.get_by_label("Token").fill(below.token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Signed in as anna").wait_for()
    assert page.get_by_text(below.address, exact=True).is_visible()  # The address for 3D Slicer.
    _save_screenshot(page, "below-start")
    page.get_by_role("link", name="Requests that this server accepts").click()
    page.get_by_text("POST /infer/{model}", exact=True).wait_for()
    _save_screenshot(page, "below-docs")
    page.get_by_role("link", name="Start page").click()
    page.get_by_role("link", name="Open OHIF").click()
    page.get_by_text(below.series.patient, exact=True).first.wait_for()
    assert page.url.startswith(f"{below.address}/ohif/")
    viewer = Ohif(page, below.address)
    viewer.open(below.series.study)
    address = page.locator("input[value^='http']").first
    assert address.input_value() == f"{below.address}/"
    address.locator("xpath=following::button[1]").click()
    page.get_by_text("Active Learning").wait_for()
    viewer.prompt_for("zero_shot", "spleen")
    position = viewer.scroll_to("axial", inside(below.series)[1])
    viewer.click(position)
    answer = viewer.run()
    assert (answer.status, len(answer.body) > 100) == (200, True)
    _save_screenshot(page, "below-ohif")
    page.goto(f"{below.address}/login", wait_until="networkidle")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.url == f"{below.address}/login"
    assert watched.hosts() == {urlsplit(below.address).netloc}
    assert all(urlsplit(url).path.startswith("/baps/") for url in watched.requested if url.startswith("http"))
    assert not watched.blocked
    # The panel checks whether a training runs, and gets 404 if none does.
    assert not [url for url in watched.failed if not url.endswith("/train/?check_if_running=true")]


def test_signed_out_user_is_redirected_to_the_login_page(watched: WatchedPage, below: ProxiedPacs) -> None:
    page = watched.page
    page.goto(f"{below.address}/login?next=/baps/ohif/")
    page.get_by_label("User").fill("anna")
    page.get_by_label("Token").fill(below.token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text(below.series.patient, exact=True).first.wait_for()
    page.context.clear_cookies()
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.get_by_label("Token").wait_for()
    assert page.url.startswith(f"{below.address}/login?next=%2Fbaps%2Fohif%2F")


@pytest.mark.parametrize("path", ["/", "/docs", "/login", "/ohif/"])
def test_no_page_loads_from_another_host(watched: WatchedPage, pacs: Pacs, path: str) -> None:
    watched.page.goto(f"{pacs.server}{path}", wait_until="networkidle")
    watched.page.wait_for_function("() => document.body.innerText.length > 100")
    watched.page.wait_for_load_state("networkidle")
    assert watched.hosts() == {urlsplit(pacs.server).netloc}
    assert not watched.failed
    assert not watched.blocked


@pytest.mark.parametrize("kind", [JPEG2000Lossless, JPEGLSLossless])
def test_ohif_decodes_compressed_images(watched: WatchedPage, pacs: Pacs, tmp_path: Path, kind: str) -> None:
    """The decoders run in workers, which have their own policy."""
    series = write_series(tmp_path / "dicom", "axial", patient=f"packed-{kind}")
    brightest = _compress(tmp_path / "dicom", kind)
    orthanc.store(pacs.orthanc, tmp_path / "dicom")
    Ohif(watched.page, pacs.server).open(series.study)
    shown = watched.page.wait_for_function(
        """() => {
          const found = [...cornerstone.cache._imageCache.values()].filter(({image}) => image && image.getPixelData);
          return found.length > 5 && found.map(({image}) => Math.max(...image.getPixelData()));
        }"""
    ).json_value()
    assert set(shown) <= brightest, (shown, brightest)
    assert not watched.blocked


def test_page_of_another_origin_cannot_frame_or_load_pages(watched: WatchedPage, pacs: Pacs) -> None:
    page, uid = watched.page, pacs.series["axial"].uid
    page.goto(f"{pacs.orthanc}/app/explorer.html")
    answered = []
    page.on("response", lambda reply: answered.append(reply.url) if reply.status < 400 else None)
    result = page.evaluate(
        """async addresses => {
          const tried = (kind, name, address) => new Promise(done => {
            const part = document.createElement(kind);
            part.onload = () => done(kind === 'iframe' ? 'a frame' : 'loaded');
            part.onerror = () => done('refused');
            part[name] = address;
            document.body.append(part);
          });
          const found = [];
          for (const address of addresses) {
            for (const [kind, name] of [['iframe', 'src'], ['img', 'src'], ['script', 'src'], ['object', 'data']]) {
              found.push(await tried(kind, name, address));
            }
          }
          return found;
        }""",
        [f"{pacs.server}/ohif/", f"{pacs.server}/datastore/image?image={uid}", f"{pacs.server}/login"],
    )
    assert "loaded" not in result
    assert not [url for url in answered if url.startswith(pacs.server)]
    assert not [
        frame.url for frame in page.frames[1:] if frame.url.startswith("http")
    ]  # Only the browser's own error page.


def test_link_of_another_origin_opens_pages(watched: WatchedPage, pacs: Pacs) -> None:
    page = watched.page
    page.goto(f"{pacs.orthanc}/app/explorer.html")
    page.evaluate("address => { location.href = address }", f"{pacs.server}/ohif/")
    page.get_by_text(pacs.series["axial"].patient, exact=True).first.wait_for()


def test_pages_work_without_scripts(browser: Browser, pacs: Pacs) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{pacs.server}/")
    assert page.get_by_text(pacs.server, exact=True).is_visible()
    page.get_by_role("link", name="Requests that this server accepts").click()
    assert page.get_by_text("PUT /datastore/label", exact=True).is_visible()
    context.close()


def _compress(folder: Path, kind: str) -> set[int]:
    """Compress the images of a folder without loss; return the rescaled maximum of each."""
    brightest = set()
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        pixels = (image.pixel_array.astype(np.int32) + 2000).astype(
            np.uint16
        )  # Unsigned values, because codecs differ for signed ones.
        image.RescaleIntercept = float(image.RescaleIntercept) - 2000
        brightest.add(int(pixels.max() + image.RescaleIntercept))
        packed = jpegls_encode(pixels) if kind == JPEGLSLossless else jpeg2k_encode(pixels, level=0, codecformat="J2K")
        image.PixelData, image.PixelRepresentation = encapsulate([packed]), 0
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = kind
        image.save_as(file)
    return brightest


def _save_screenshot(page: Page, name: str) -> Path:
    """Save a screenshot."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=file)
    return file
