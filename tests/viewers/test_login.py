"""Sign in to OHIF in Chromium: with a token of this server, and at a real OpenID provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import oidc_provider_mock
import pytest
from playwright.sync_api import Browser, Page

from baps.demo.server import running_server
from baps.site.roles import Role
from baps.site.users import Users
from demo import orthanc
from tests.support.marks import starts
from tests.support.ohif import Ohif
from tests.support.pacs_site import Pacs
from tests.support.series import write_series

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    known = [oidc_provider_mock.User(sub="rita", claims={"roles": ["radiologist"]})]
    with oidc_provider_mock.run_server_in_thread(user_claims=known) as provider:
        yield f"http://localhost:{provider.server_port}"


@pytest.fixture(scope="module")
def token(closed_folder: Path) -> str:
    return Users(closed_folder / "users.json").add("anna", Role.ANNOTATOR)


@pytest.fixture(scope="module")
def closed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("closed")


@pytest.fixture(scope="module")
@starts("server", "pacs")
def hospital(closed_folder: Path, token: str, issuer: str) -> Iterator[Pacs]:
    """Run Orthanc with one series, and a server with the user anna and the provider's rita."""
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    series = {"axial": write_series(closed_folder / "dicom" / "axial", "axial")}
    openid = closed_folder / "openid.json"
    ours = {"client_id": "baps", "client_secret": "hush"}
    openid.write_text(json.dumps({"issuer": issuer, **ours, "roles": {"radiologist": "annotator"}}))
    openid.chmod(0o600)
    settings = {"labels": "spleen=2,liver=1", "adapters": str(closed_folder / "adapters"),
                "users": str(closed_folder / "users.json"), "openid": str(openid)}  # fmt: skip
    with pytest.MonkeyPatch.context() as patched, orthanc.running_orthanc(closed_folder, reachable=True) as address:
        orthanc.store(address, closed_folder / "dicom")
        patched.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(closed_folder / "cache"))
        log = closed_folder / "server.log"
        with running_server(f"{address}/dicom-web", log, settings) as (server, _):
            yield Pacs(server, address, series, log, closed_folder / "cache")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(120_000)
    yield context.new_page()
    context.close()


def _can_click(page: Page, hospital: Pacs) -> None:
    """Check in OHIF that the study is listed and opens, and that a model answers."""
    viewer = Ohif(page, hospital.server)
    series = hospital.series["axial"]
    viewer.open(series.study)
    viewer.connect()
    answered = page.evaluate(
        """async image => (await fetch(`/infer/zero_shot?image=${image}&output=image`, {
          method: 'POST', body: new URLSearchParams({params: '{"foreground": [[39, 60, 12]]}'}),
        })).status""",
        series.uid,
    )
    assert answered == 200


def test_sign_in_with_a_token(page: Page, hospital: Pacs, token: str) -> None:
    page.goto(f"{hospital.server}/ohif/")
    assert "/login?next=" in page.url
    page.get_by_label("User").fill("anna")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("User or token is wrong").wait_for()
    page.get_by_label("User").fill("anna")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text(hospital.series["axial"].patient, exact=True).first.wait_for()
    assert "baps" in {cookie.get("name") for cookie in page.context.cookies()}
    assert "baps" not in page.evaluate("document.cookie")  # Scripts cannot read the cookie.
    _can_click(page, hospital)
    page.goto(f"{hospital.server}/login")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    page.goto(f"{hospital.server}/ohif/")
    page.get_by_label("Token").wait_for()


def test_sign_in_at_the_provider_without_scripts(browser: Browser, hospital: Pacs) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{hospital.server}/login?next=/info/")
    page.get_by_role("link", name="Sign in with the hospital's login").click()
    page.get_by_role("button", name="rita").click()
    page.wait_for_url("**/info/")
    assert "spleen" in page.content()
    context.close()


def test_sign_in_at_the_provider(page: Page, hospital: Pacs) -> None:
    page.goto(f"{hospital.server}/ohif/")
    page.get_by_role("link", name="Sign in with the hospital's login").click()
    page.get_by_role("button", name="rita").click()
    page.get_by_text(hospital.series["axial"].patient, exact=True).first.wait_for()
    _can_click(page, hospital)


def test_page_of_another_origin_cannot_use_the_session(page: Page, hospital: Pacs, token: str, issuer: str) -> None:
    """Another port of the same machine is the same site: the browser sends the cookie, and the server ignores it."""
    page.goto(f"{hospital.server}/login")
    page.get_by_label("User").fill("anna")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/ohif/**")
    page.goto(f"{issuer.replace('localhost', '127.0.0.1')}/")
    result = page.evaluate(
        """async server => {
          const tried = async (path, how) => {
            try { return (await fetch(server + path, how)).status } catch { return 0 }
          };
          return [await tried('/info/', {credentials: 'include'}),
                  await tried('/logout', {method: 'POST', credentials: 'include', mode: 'no-cors'})];
        }""",
        hospital.server,
    )
    assert result == [0, 0]
    page.goto(f"{hospital.server}/info/")
    assert "spleen" in page.content()
