from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from baps.server.train.stats import Stats
from baps.server.web import train
from baps.server.web.train import format_event
from baps.server.web.train_options import EXPLANATIONS, list_options
from tests.support.client import ADDRESS, threaded_site
from tests.support.web_site import HTML, WebSite, send

Started = list[dict[str, Any]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Note what would be trained, instead of starting a process."""
    noted: Started = []

    def run(method: str, request: dict[str, str], params: dict[str, Any]) -> tuple[dict[str, str], None]:
        noted.append({**request, **params})
        return {"status": "SUBMITTED"}, None

    monkeypatch.setattr("baps.server.routes.train.AsyncTask.run", run)
    return noted


def test_every_option_of_the_trainers_is_explained(pages: WebSite) -> None:
    for name, trainer in pages.state.app._trainers.items():
        config = trainer.config()
        assert set(config) == set(EXPLANATIONS[name])
        for option in list_options(name, config, {}, {}):
            assert option.about.hint, option.name
            known = {value for value, _ in option.about.choices}
            assert known <= {value for value, _ in option.choices}, option.name


def test_the_form_offers_organs_with_their_patients(pages: WebSite) -> None:
    pages.state.counts.get(wait=30)
    text = pages.browser("theo").get("/web/train").text
    assert "spleen (3 labelled patients)" in text
    assert 'value="4000"' in text
    assert text.count("<form") == 3  # The two trainers, and to sign out.
    assert "<form" not in pages.browser("anna").get("/web/train").text.replace("/logout", "", 1).partition("<main")[2]


def test_a_training_starts_with_the_options_of_the_form(own_pages: WebSite, started: Started) -> None:
    browser = own_pages.browser("theo")
    reply = send(browser, "/web/train", model="baps", label="spleen", max_images="500", zoom="none", seed="3")
    assert (reply.status_code, reply.headers["Location"]) == (303, "/web/train")
    assert started == [{"model": "baps", "label": "spleen", "max_images": "500", "zoom": "none", "seed": "3"}]
    reply = send(browser, "/web/train", model="organs", label="liver", method="linear_probe", epochs="3")
    assert (reply.status_code, started[1]["model"]) == (303, "organs")


@pytest.mark.parametrize(
    ("form", "code", "sentence"),
    [
        ({"model": "none"}, 400, "There is no trainer"),
        ({"model": "baps", "max_images": "many"}, 400, "max_images must be of type int"),
        ({"model": "baps", "label": "kidney"}, 400, "There is no label"),
        ({"model": "baps", "device": "x", "path": "/etc"}, 400, "Unknown training options"),
        ({}, 400, "There is no trainer"),
    ],
)
def test_bad_options_are_explained_and_the_form_keeps_its_values(
    own_pages: WebSite, started: Started, form: dict[str, str], code: int, sentence: str
) -> None:
    reply = send(own_pages.browser("theo"), "/web/train", **form)
    assert reply.status_code == code
    assert sentence in reply.text.replace("&#39;", "'")
    assert 'role="alert"' in reply.text
    assert 'id="baps-max_images"' in reply.text
    if "max_images" in form:
        assert 'value="many"' in reply.text
    assert started == []


def test_the_second_of_two_trainings_is_refused(
    own_pages: WebSite, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baps.server.routes.train.processes", lambda _: {"1": object()})
    reply = send(own_pages.browser("thea"), "/web/train", model="baps", label="spleen")
    assert (reply.status_code, started) == (429, [])
    assert "A training is running already." in reply.text


def _report(site: WebSite, **values: Any) -> None:
    stats = Stats.reset(site.folder / "adapters" / "train_stats.json", {"label": "spleen", "seed": "3"})
    for images, dice in ((100, 0.4), (300, 0.6)):
        stats.report("spleen", images, 1000, dice, black_box_images=images)
    stats.values.update(values)
    stats._write()


def test_a_stopped_training_goes_on_with_the_same_options(own_pages: WebSite) -> None:
    _report(own_pages)
    text = own_pages.browser("theo").get("/web/train").text
    assert "Go on with the same options" in text
    assert '<input type="hidden" name="seed" value="3">' in text
    assert "<polyline" in text
    assert "Go on" not in own_pages.browser("anna").get("/web/train").text


def test_a_failed_training_says_why(own_pages: WebSite) -> None:
    _report(own_pages, error="There are no saved labels of spleen to train on.", total_time="3 s")
    for path in ("/", "/web/train", "/web/training-status"):
        assert "There are no saved labels of spleen to train on." in own_pages.browser("anna").get(path).text


Tasks = Callable[[str], list[dict[str, Any]]]


def test_progress_is_sent_as_events(own_pages: WebSite, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    task = {"status": "RUNNING", "start_ts": now, "request": {"model": "baps"}}
    monkeypatch.setattr("baps.server.web.trainings.tasks", lambda _: [task])
    monkeypatch.setattr("baps.server.web.trainings.processes", lambda _: {"1": object()})
    monkeypatch.setattr(train, "_STREAM_SECONDS", 0.2)
    monkeypatch.setattr(train, "_EVENT_SECONDS", 0.05)
    _report(own_pages, epoch=0)  # So the time left, which changes, is unknown.
    browser = own_pages.browser("anna")
    reply = browser.get("/web/train/events")
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    events = re.findall(r"event: (\w+)\nid: ([\w-]+)\n((?:data: .*\n)+)", reply.text)
    assert [name for name, *_ in events] == ["progress", "controls"]  # Once each, because nothing changed.
    assert "300" in events[0][2]
    assert "The training of spleen is running." in events[1][2]
    again = browser.get("/web/train/events", headers={"Last-Event-ID": events[1][1]})
    assert "event:" not in again.text


def test_lines_of_an_event() -> None:
    assert format_event("progress", "<p>a</p>\n\n<p>b</p>", "7") == (
        "event: progress\nid: 7\ndata: <p>a</p>\ndata: <p>b</p>\n\n"
    )


def test_stopping(own_pages: WebSite, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []
    monkeypatch.setattr("baps.server.web.train.stop_training", lambda: stopped.append(1))
    assert send(own_pages.browser("theo"), "/web/train/stop").status_code == 303
    assert stopped == [1]
    lines = (own_pages.folder / "adapters" / "audit.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["user"], last["what"], last["status"]) == ("theo", "stop the training", 303)


@pytest.mark.parametrize("path", ["/web/train", "/web/train/stop"])
def test_trainings_need_the_role_and_a_form_of_this_server(own_pages: WebSite, started: Started, path: str) -> None:
    form = {"model": "baps", "label": "spleen"}
    reply = send(own_pages.browser("anna"), path, **form)
    assert (reply.status_code, "trainer" in reply.text) == (403, True)
    browser = own_pages.browser("theo")
    assert browser.post(path, data=form).status_code == 401  # Without an origin, the cookie does not count.
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}):
        assert browser.post(path, data=form, headers=headers).status_code == 403
    assert own_pages.client.post(path, data=form, headers={"Origin": ADDRESS, **HTML}).status_code == 401
    assert started == []


def test_the_end_of_the_server_does_not_wait_for_open_pages(tmp_path: Path) -> None:
    with threaded_site(tmp_path, cases=0) as site:
        stream = requests.get(f"{site.address}/web/train/events", stream=True, timeout=60)
        lines = stream.iter_lines()
        assert next(lines) == b"retry: 1000"
    with pytest.raises(requests.RequestException):  # It was cut off, instead of ending after a minute.
        list(lines)
