from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from baps.server.request_context import Principal
from baps.server.web.people import consequences
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.client import ADDRESS, site_client
from tests.support.web_site import HTML, WebSite, send, web_site

TOKEN = re.compile(r"baps_[\w-]{43}")


def users_of(site: WebSite) -> Users:
    return Users(site.folder / "users.json")


def fields(reply: Response) -> dict[str, str]:
    """Return the hidden fields of the form of a page."""
    return {
        name: html.unescape(value)
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', reply.text)
    }


def ask(browser: TestClient, action: str, user: str) -> dict[str, str]:
    reply = browser.get("/web/people/confirm", params={"action": action, "user": user})
    assert reply.status_code == 200, reply.text
    return fields(reply)


def audit_lines(site: WebSite) -> list[dict[str, object]]:
    return [json.loads(line) for line in (site.folder / "adapters" / "audit.jsonl").read_text().splitlines()]


def test_a_user_is_added_and_the_token_is_shown_once(own_pages: WebSite, caplog: pytest.LogCaptureFixture) -> None:
    admin = own_pages.browser("root")
    reply = send(admin, "/web/people/add", name="mary", role="trainer", days="30")
    assert reply.status_code == 200
    assert reply.headers["cache-control"] == "no-store"
    (token,) = set(TOKEN.findall(reply.text))
    user = users_of(own_pages).find(token)
    assert user is not None
    assert (user.name, user.role, (user.expires - user.created).days if user.expires else None) == (
        "mary",
        Role.TRAINER,
        30,
    )
    assert token not in admin.get("/web/people").text
    for file in own_pages.folder.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), file
    assert token not in caplog.text
    line = next(one for one in audit_lines(own_pages) if one["what"] == "add a user")
    assert (line["user"], line["what"], line["about"], line["as_role"], line["status"]) == (
        "root",
        "add a user",
        "mary",
        "trainer",
        200,
    )


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"name": "anna"}, "There is a user anna already"),
        ({"name": "a b"}, "is not a valid user name"),
        ({"name": '"><script>alert(1)</script>'}, "is not a valid user name"),
        ({"name": ""}, "is not a valid user name"),
        ({"name": "new", "role": "king"}, "There is no such role"),
        ({"name": "new", "days": "-1"}, "whole number"),
        ({"name": "new", "days": "0"}, "after 1 to 36500 days"),
        ({"name": "new", "days": "²"}, "whole number"),
    ],
)
def test_a_user_that_cannot_be_added_is_a_sentence_beside_the_form(
    pages: WebSite, form: dict[str, str], sentence: str
) -> None:
    before = dict(users_of(pages).all())
    reply = send(pages.browser("root"), "/web/people/add", **{"role": "annotator", **form})
    assert reply.status_code == 400
    assert sentence in html.unescape(reply.text)
    assert "<script>alert" not in reply.text
    assert html.escape(form["name"], quote=False).split(";")[-1] in reply.text
    assert users_of(pages).all() == before


def test_a_new_token_replaces_the_old_one_and_ends_the_sessions(own_pages: WebSite) -> None:
    admin, anna = own_pages.browser("root"), own_pages.browser("anna")
    reply = send(admin, "/web/people/renew", **ask(admin, "renew", "anna"))
    (token,) = set(TOKEN.findall(reply.text))
    assert users_of(own_pages).find(token) == users_of(own_pages).all()["anna"]
    assert users_of(own_pages).find(own_pages.tokens["anna"]) is None
    assert anna.get("/").status_code == 303
    assert "anna" not in re.findall(r'<th scope="row">(\w+)', admin.get("/web/people").text.split("Signed in now")[1])


def test_a_role_holds_from_the_next_request_on(own_pages: WebSite) -> None:
    admin, anna = own_pages.browser("root"), own_pages.browser("anna")
    assert anna.get("/web/people").status_code == 403
    assert send(admin, "/web/people/role", **ask(admin, "role", "anna"), role="admin").status_code == 303
    assert anna.get("/web/people").status_code == 200
    line = next(one for one in audit_lines(own_pages) if one["what"] == "change a user's role")
    assert (line["about"], line["as_role"]) == ("anna", "admin")


def test_a_removed_user_is_gone_at_once(own_pages: WebSite) -> None:
    admin, anna = own_pages.browser("root"), own_pages.browser("anna")
    assert send(admin, "/web/people/remove", **ask(admin, "remove", "anna")).status_code == 303
    assert "anna" not in users_of(own_pages).all()
    assert anna.get("/").status_code == 303
    assert (
        own_pages.client.get("/info/", headers={"Authorization": f"Bearer {own_pages.tokens['anna']}"}).status_code
        == 401
    )


def test_the_second_of_two_admins_is_told_what_the_first_did(own_pages: WebSite) -> None:
    users_of(own_pages).change_role("thea", Role.ADMIN)
    first, second = own_pages.browser("root"), own_pages.browser("thea")
    forms = {action: ask(second, action, "anna") for action in ("renew", "role", "remove")}
    send(first, "/web/people/role", **ask(first, "role", "anna"), role="trainer")
    for action, form in forms.items():
        reply = send(second, f"/web/people/{action}", **form, **({"role": "annotator"} if action == "role" else {}))
        assert reply.status_code == 409
        assert "root made anna trainer at" in reply.text
        assert "anna is trainer" in reply.text
        assert not TOKEN.search(reply.text)
    assert users_of(own_pages).all()["anna"].role is Role.TRAINER
    send(first, "/web/people/remove", **ask(first, "remove", "anna"))
    reply = send(second, "/web/people/remove", **forms["remove"])
    assert (reply.status_code, "root removed anna at" in reply.text) == (409, True)


def test_a_change_by_a_command_is_noticed_too(own_pages: WebSite) -> None:
    admin = own_pages.browser("root")
    form = ask(admin, "remove", "anna")
    users_of(own_pages).renew("anna")
    reply = send(admin, "/web/people/remove", **form)
    assert (reply.status_code, "a command or another server changed the users" in reply.text) == (409, True)


def test_the_last_admin_and_oneself_are_not_removed_without_being_told(own_pages: WebSite) -> None:
    admin = own_pages.browser("root")
    page = admin.get("/web/people/confirm", params={"action": "remove", "user": "root"})
    assert "This is you. You are signed out at once" in page.text
    assert "No other user of this list with a valid token is an admin." in page.text
    form = fields(page)
    for told in ("", "self", "last-admin"):
        reply = send(admin, "/web/people/remove", **{**form, "told": told})
        assert (reply.status_code, "Nothing was changed." in reply.text) == (409, True)
    assert "root" in users_of(own_pages).all()
    assert send(admin, "/web/people/role", **{**form, "told": "self"}, role="trainer").status_code == 409
    assert send(admin, "/web/people/role", **{**form, "told": ""}, role="admin").status_code == 303
    assert send(admin, "/web/people/remove", **form).status_code == 303
    assert "root" not in users_of(own_pages).all()


def test_two_admins_who_remove_each_other_leave_one(own_pages: WebSite) -> None:
    """The second was told of nothing when the page was shown, and would leave no admin now."""
    users_of(own_pages).change_role("thea", Role.ADMIN)
    admin = own_pages.browser("root")
    form = ask(admin, "remove", "root")
    assert form["told"] == "self"
    users_of(own_pages).remove("thea")
    reply = send(admin, "/web/people/remove", **form)
    assert (reply.status_code, "No other user of this list" in reply.text) == (409, True)


def test_consequences_count_only_admins_whose_tokens_are_valid(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.json")
    users.add("root", Role.ADMIN)
    users.add("old", Role.ADMIN, 1)
    root, openid = Principal("root", Role.ADMIN, "token"), Principal("root", Role.ADMIN, "openid")
    assert list(consequences(users.all(), "root", "remove", root)) == ["self"]
    assert list(consequences(users.all(), "root", "remove", openid)) == []
    file = users.file.read_text()
    expires = json.loads(file)["users"]["old"]["expires"]
    users.file.write_text(file.replace(expires, "2020-01-01T00:00:00+00:00"))
    assert list(consequences(users.all(), "root", "role", root)) == ["self", "last-admin"]
    assert list(consequences(users.all(), "old", "remove", root)) == []
    assert list(consequences(users.all(), "root", "renew", root)) == ["self"]


def test_sessions_are_listed_and_ended(own_pages: WebSite) -> None:
    admin, anna = own_pages.browser("root"), own_pages.browser("anna")
    anna.get("/")
    text = admin.get("/web/people").text.split("Signed in now")[1]
    assert re.findall(r'<th scope="row">(\w+)', text) == ["root", "anna"]
    assert text.count("this browser") == 1
    ids = dict(re.findall(r'name="session" value="(\w+)">.*?the session of (\w+)', text))
    by_user = {user: session for session, user in ids.items()}
    assert send(admin, "/web/people/end-session", session=by_user["anna"]).status_code == 303
    assert anna.get("/").status_code == 303
    line = next(one for one in reversed(audit_lines(own_pages)) if one["what"] == "end a session")
    assert (line["user"], line["about"]) == ("root", "anna")
    again = send(admin, "/web/people/end-session", session=by_user["anna"])
    assert (again.status_code, "has ended already" in again.text) == (409, True)
    assert send(admin, "/web/people/end-session", session=by_user["root"]).status_code == 303
    assert admin.get("/web/people").status_code == 303


def test_the_id_of_a_session_is_not_its_cookie(own_pages: WebSite) -> None:
    admin = own_pages.browser("root")
    cookie = admin.cookies["baps"]
    text = admin.get("/web/people").text
    assert cookie not in text
    session = re.findall(r'name="session" value="(\w+)"', text)[0]
    other = TestClient(own_pages.client.app, ADDRESS, client=("127.0.0.1", 50000), follow_redirects=False)
    assert other.get("/web/people", headers={**HTML, "Cookie": f"baps={session}"}).status_code == 303


def test_a_site_without_a_login_says_how_to_add_users(tmp_path: Path) -> None:
    with site_client(tmp_path) as client:
        text = client.get("/web/people", headers=HTML).text
        assert "This server needs no login" in text
        assert 'name="days"' not in text
        reply = client.post("/web/people/add", data={"name": "x", "role": "admin"}, headers={**HTML, "Origin": ADDRESS})
        assert (reply.status_code, "baps users add" in reply.text) == (404, True)


def test_a_file_of_users_that_cannot_be_read_is_a_sentence_without_paths(tmp_path: Path) -> None:
    with web_site(tmp_path, trained=False) as site:
        page = site.browser("root")
        (tmp_path / "users.json").write_text("{")
        assert page.get("/web/people").status_code == 503


def test_unknown_users_and_actions_are_not_found(pages: WebSite) -> None:
    admin = pages.browser("root")
    for query in ({"action": "remove", "user": "<b>nobody</b>"}, {"action": "eat", "user": "anna"}, {}):
        reply = admin.get("/web/people/confirm", params=query)
        assert (reply.status_code, "<b>" in reply.text) == (404, False)
