from __future__ import annotations

import html
import re
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from baps.server.web.audit import ACTIONS
from baps.server.web.plots import plot_weeks
from baps.site.audit_search import Week
from tests.support.web_site import WebSite, send, web_site


def rows(text: str) -> list[list[str]]:
    """Return the text of the cells of each line."""
    body = text.split("Lines, newest first")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [
        [
            " ".join(html.unescape(re.sub(r"<[^>]+>", "", cell)).split())
            for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.S)
        ]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)
    ]


@pytest.fixture
def site(own_pages: WebSite) -> WebSite:
    anna = own_pages.browser("anna")
    assert anna.get("/datastore/image?image=ct_01").status_code == 200
    assert anna.get("/datastore/image?image=ct_02").status_code == 200
    own_pages.browser("theo")
    return own_pages


def test_lines_are_shown_newest_first_without_names_of_images(site: WebSite) -> None:
    text = site.browser("root").get("/web/people/audit").text
    lines = rows(text)
    assert [(line[1], line[2], line[5]) for line in lines] == [
        ("root admin", "sign in", "303"),
        ("theo trainer", "sign in", "303"),
        ("anna annotator", "fetch an image or a label", "200"),
        ("anna annotator", "fetch an image or a label", "200"),
        ("anna annotator", "sign in", "303"),
    ]
    assert "ct_01" not in text.split("Lines, newest first")[1]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"user": "anna", "action": "fetch an image or a label"}, 2),
        ({"image_name": "ct_01"}, 1),
        ({"image_name": "../ct_01"}, 0),
        ({"action": "fetch an image or a label", "day": f"{date.today()}"}, 2),
        ({"day": f"{date.today() - timedelta(days=3)}"}, 0),
        ({"user": '"><script>alert(1)</script>'}, 0),
    ],
)
def test_lines_are_filtered(site: WebSite, query: dict[str, str], count: int) -> None:
    reply = site.browser("root").get("/web/people/audit", params=query)
    assert reply.status_code == 200
    assert "<script>alert" not in reply.text
    lines = [line for line in rows(reply.text) if len(line) > 1]
    assert len(lines) == count
    if count == 1:
        assert lines[0][3] == "ct_01"


def test_pages_of_lines_follow_each_other(site: WebSite) -> None:
    audit, admin = site.state.audit, site.browser("root")
    for n in range(120):
        audit.add({"user": "anna", "what": "segment", "status": 200, "count": n})
    text, counts = admin.get("/web/people/audit?action=segment").text, []
    while True:
        counts += [int(line[6].removeprefix("count ")) for line in rows(text)]
        older = re.search(r'href="(/web/people/audit\?[^"]+)">Older lines', text)
        if not older:
            break
        text = admin.get(html.unescape(older[1])).text
    assert counts == list(range(119, -1, -1))
    assert "Newest lines" in text


@pytest.mark.parametrize(
    "query", [{"day": "yesterday"}, {"day": "0001-01-01"}, {"day": "9999-12-31"}, {"start": "../x"}]
)
def test_a_filter_that_cannot_be_used_is_a_sentence(pages: WebSite, query: dict[str, str]) -> None:
    reply = pages.browser("root").get("/web/people/audit", params=query)
    assert (reply.status_code, 'role="alert"' in reply.text) == (400, True)


def test_the_state_of_the_chain_is_that_of_audit_verify(own_pages: WebSite) -> None:
    admin, state = own_pages.browser("root"), own_pages.state
    check = state.audit_check.get(wait=30).value
    assert check is not None
    text = admin.get("/web/people/audit").text
    assert f"Intact: {check.chained} line" in text
    assert check.last.chain in text
    file = own_pages.folder / "adapters" / "audit.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"user": "root"', b'"user": "toor"', 1))
    state.audit_check.expire()
    state.audit_check.get(wait=30)
    while (thread := state.audit_check._thread) is not None:
        thread.join(30)
    text = admin.get("/web/people/audit").text
    assert "The chain is broken." in text
    assert "was changed." in text


def test_reading_the_audit_file_has_a_line(own_pages: WebSite) -> None:
    admin = own_pages.browser("root")
    admin.get("/web/people/audit?image_name=ct_01")
    (line,) = [one for one in rows(admin.get("/web/people/audit?image_name=ct_01").text) if len(one) > 1]
    assert line[1:3] == ["root admin", "read who did what"]


def test_usage_is_shown_by_week(tmp_path: Path) -> None:
    with web_site(tmp_path, trained=False) as site:
        site.state.audit.add({"user": "anna", "what": "segment", "status": 200})
        site.state.audit.add({"user": "anna", "what": "save a label", "status": 200})
        assert site.state.usage.get(wait=30).value
        text = site.browser("root").get("/web/people/usage").text
    assert text.count('<svg class="plot"') == 3
    today = datetime.now().date()
    monday = today - timedelta(days=today.weekday())
    first = re.search(rf'<th scope="row" class="nowrap">{monday}</th>(.*?)</tr>', text, re.S)
    assert first
    assert re.findall(r">(\d+)<", first[1]) == ["1", "1", "0", "1"]


def test_bars_are_as_high_as_their_numbers() -> None:
    weeks = [Week(date(2026, 11, 2 + 7 * n), {"clicks": count}, 1) for n, count in enumerate((0, 30, 60))]
    plot = plot_weeks(weeks, "clicks")
    heights = [height for _, _, _, height, _ in plot.bars]
    assert heights[0] == 0
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.2)
    assert [tick.text for tick in plot.axes.y_ticks] == ["0", "50", "100"]
    assert all(top + height == pytest.approx(plot.axes.bottom, abs=0.1) for _, top, _, height, _ in plot.bars)
    assert plot_weeks([], "clicks").bars == ()


def test_actions_to_choose_from_are_those_of_the_policy_and_of_commands() -> None:
    assert {"segment", "sign in", "restore a label", "add a user", "import a label"} <= set(ACTIONS)


def test_only_admins_read_it(pages: WebSite) -> None:
    for name in ("anna", "theo"):
        browser = pages.browser(name)
        for path in ("/web/people", "/web/people/audit", "/web/people/usage", "/web/people/confirm"):
            assert browser.get(path).status_code == 403
        assert "/web/people" not in browser.get("/").text
        assert send(browser, "/web/people/add", name="x", role="admin").status_code == 403
