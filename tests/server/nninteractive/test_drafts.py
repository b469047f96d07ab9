"""From a click in nnInteractive's client to the saved label of the right image."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
from numpy.typing import NDArray

from baps.annotations.drafts import Draft, DraftStore
from baps.server import access_policy
from baps.server.nninteractive import kept_drafts
from baps.site.roles import Role
from baps.site.users import Users
from tests.support.client import threaded_site
from tests.support.sites import SAMPLES, Site, sample_labels, spleen_click
from tests.support.sites import site as process_site

SPLEEN, LIVER = 2, 1


def by_nibabel(case: str) -> tuple[NDArray[Any], list[int]]:
    """Return the voxels (I, J, K) and a click."""
    return np.asarray(nibabel.load(SAMPLES / "images" / f"{case}.nii.gz").dataobj), spleen_click(case)


def by_itk(case: str) -> tuple[NDArray[Any], list[int]]:
    """Return the voxels (K, J, I) and a click, as 3D Slicer has them."""
    return sitk.GetArrayFromImage(sitk.ReadImage(SAMPLES / "images" / f"{case}.nii.gz")), spleen_click(case)[::-1]


def by_a_viewer_that_reorients(case: str) -> tuple[NDArray[Any], list[int]]:
    """Return the voxels (K, J, I) in another orientation, and a click; as a viewer shows them."""
    voxels, (k, j, i) = by_itk(case)
    return voxels[::-1, :, ::-1].astype(np.float32), [voxels.shape[0] - 1 - k, j, voxels.shape[2] - 1 - i]


READERS = [by_nibabel, by_itk, by_a_viewer_that_reorients]


@contextmanager
def drawing(site: Site, read: Callable[[str], tuple[NDArray[Any], list[int]]] = by_itk, case: str = "ct_01",
            label: str = "spleen", token: str | None = None) -> Iterator[tuple[Any, NDArray[np.uint8]]]:  # fmt: skip
    """Click on an organ, and yield the client and its mask. Leaving the context closes the viewer."""
    address = f"{site.address}/nninteractive{f'/{label}' if label else ''}"
    with closing(nnInteractiveRemoteInferenceSession(address, api_key=token)) as session:
        voxels, click = read(case)
        session.set_image(np.ascontiguousarray(voxels)[None], {"spacing": [1.0, 1.0, 1.0]})
        mask = np.zeros(voxels.shape, np.uint8)
        session.set_target_buffer(mask)
        session.add_point_interaction(click, True)
        assert mask.any()
        yield session, mask


def store_of(site: Site) -> DraftStore:
    return DraftStore(site.adapters / "drafts", 100, 1 << 28)


def drafts_of(site: Site) -> list[Draft]:
    return [draft for draft in store_of(site).all() if isinstance(draft, Draft)]


def post(site: Site, action: str, token: str | None = None, **form: str) -> httpx.Response:
    headers = {"Origin": site.address} | ({"Authorization": f"Bearer {token}"} if token else {})
    return httpx.post(f"{site.address}/web/labels/draft/{action}", data=form, headers=headers, timeout=60)


def saved_label(site: Site, image: str) -> NDArray[Any]:
    """Read the label with SimpleITK, (K, J, I)."""
    (file,) = (site.studies / "labels" / "final").glob(f"{image}.*")
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


def line_of(site: Site, what: str, draft: str, status: int | None = None) -> dict[str, Any]:
    """Return the line of the audit file about a draft. A request gets its line after the reply is sent."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        audit = [json.loads(line) for line in (site.adapters / "audit.jsonl").read_text().splitlines()]
        for line in audit:
            if (line["what"], line.get("draft"), line.get("status")) == (what, draft, status):
                return line
        time.sleep(0.05)
    raise AssertionError(f"There is no line {what!r} with the status {status}.")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two images, and no users."""
    with threaded_site(tmp_path_factory.mktemp("drafts"), cases=2) as running:
        yield running


@pytest.fixture(autouse=True)
def no_drafts(request: pytest.FixtureRequest) -> None:
    if "site" in request.fixturenames:
        store = store_of(request.getfixturevalue("site"))
        for draft in store.all():
            store.discard(draft.name)


@pytest.mark.parametrize("read", READERS, ids=lambda one: one.__name__)
def test_the_mask_arrives_in_the_label_of_the_right_image(
    site: Site, read: Callable[[str], tuple[NDArray[Any], list[int]]]
) -> None:
    case = "ct_02"
    with drawing(site, read, case) as (_, mask):
        pass
    (draft,) = drafts_of(site)
    assert (draft.label, draft.user, draft.voxels) == ("spleen", "", (mask > 0).sum())
    reply = post(site, "confirm", draft=draft.name)
    assert (reply.status_code, reply.headers.get("location")) == (303, f"/web/labels/image?image={case}"), reply.text
    label = saved_label(site, case)
    expected = mask > 0
    if read is by_nibabel:
        expected = expected.transpose(2, 1, 0)
    elif read is by_a_viewer_that_reorients:
        expected = expected[::-1, :, ::-1]
    assert np.array_equal(label == SPLEEN, expected)
    assert label.transpose(2, 1, 0)[tuple(spleen_click(case))] == SPLEEN
    file = nibabel.load(next((site.studies / "labels" / "final").glob("ct_02.nii*")))
    assert np.allclose(file.affine, nibabel.load(SAMPLES / "images" / "ct_02.nii.gz").affine, atol=1e-4)
    assert not list((site.studies / "labels" / "final").glob("ct_01.*"))
    assert drafts_of(site) == []


def test_other_organs_of_the_label_stay_and_the_whole_organ_is_replaced(tmp_path: Path) -> None:
    with threaded_site(tmp_path, cases=1) as own:
        earlier = sample_labels("ct_01").copy()
        earlier[earlier > SPLEEN] = 0
        image = nibabel.load(SAMPLES / "images" / "ct_01.nii.gz")
        nibabel.save(nibabel.Nifti1Image(earlier, image.affine), tmp_path / "label.nii.gz")
        names = [{"name": "spleen", "idx": SPLEEN}, {"name": "liver", "idx": LIVER}]
        own.client.save_label("ct_01", str(tmp_path / "label.nii.gz"), params={"label_info": names, "author": "otto"})
        with drawing(own) as (session, mask):
            session.add_initial_seg_interaction(np.zeros_like(mask))
            drawn = np.zeros_like(mask)
            drawn[20:22, 5:9, 5:9] = 1
            session.add_initial_seg_interaction(drawn)
        (draft,) = drafts_of(own)
        assert post(own, "confirm", draft=draft.name, image="ct_01").status_code == 303
        label = saved_label(own, "ct_01").transpose(2, 1, 0)
        assert np.array_equal(label == LIVER, earlier == LIVER)
        assert np.array_equal(label == SPLEEN, (drawn > 0).transpose(2, 1, 0))
        versions = list((own.studies / "labels-history" / "final" / "ct_01").glob("2*"))
        assert len(versions) == 2
        info = own.client.datastore()["objects"]["ct_01"]["labels"]["final"]["info"]
        assert info["authors"]["liver"] == "otto"
        assert (info["model"], info["confirmed"]) == ("nninteractive", True)


def test_who_drew_confirmed_and_deleted_is_in_the_audit_file(site: Site) -> None:
    for _ in range(2):
        with drawing(site):
            pass
    first, second = drafts_of(site)
    assert post(site, "confirm", draft=first.name).status_code == 303
    assert post(site, "delete", draft=second.name).status_code == 303
    for draft in (first, second):
        assert line_of(site, "keep a draft", draft.name)["by"] == "server"
    confirmed = line_of(site, "confirm a draft", first.name, 303)
    assert (confirmed["organs"], len(confirmed["image"])) == (["spleen"], 32)
    line_of(site, "delete a draft", second.name, 303)
    assert "ct_01" not in (site.adapters / "audit.jsonl").read_text()


def test_nothing_is_kept_without_a_label_or_a_mask(site: Site) -> None:
    with drawing(site, label=""):
        pass
    with drawing(site) as (session, _):
        session.reset_interactions()
    with drawing(site) as (session, _):
        session.undo()
    assert drafts_of(site) == []


def test_a_site_can_keep_none(tmp_path: Path) -> None:
    with threaded_site(tmp_path, cases=1, settings={"nninteractive_drafts": "0"}) as running:
        with drawing(running):
            pass
        assert drafts_of(running) == []
        assert not (running.adapters / "drafts").exists()


def test_the_last_mask_is_kept_when_the_viewer_sends_another_image(site: Site) -> None:
    with drawing(site) as (session, mask):
        assert drafts_of(site) == []  # Not at each prompt.
        voxels, _ = by_itk("ct_02")
        session.set_image(voxels[None], {})
        (draft,) = drafts_of(site)
        assert np.array_equal(store_of(site).mask(draft.name), mask > 0)
    assert len(drafts_of(site)) == 1


def test_it_is_kept_when_the_session_times_out_and_when_the_server_stops(tmp_path: Path) -> None:
    settings = {"nninteractive_liveness_seconds": "2", "nninteractive_idle_seconds": "2"}
    with threaded_site(tmp_path, cases=1, settings=settings) as running, drawing(running):
        deadline = time.monotonic() + 30
        while not drafts_of(running) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(drafts_of(running)) == 1
    with threaded_site(tmp_path, cases=1) as running:
        session = nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive/liver")
        voxels, click = by_itk("ct_01")
        session.set_image(voxels[None], {})
        session.set_target_buffer(np.zeros(voxels.shape, np.uint8))
        session.add_point_interaction(click, True)
    assert [draft.label for draft in drafts_of(running)] == ["liver", "spleen"]
    with threaded_site(tmp_path, cases=1) as running:
        assert post(running, "confirm", draft=drafts_of(running)[0].name).status_code == 303
        assert (saved_label(running, "ct_01") == LIVER).any()


def test_roles_and_the_drafts_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = Users(tmp_path / "users.json")
    tokens = {name: users.add(name, Role.ANNOTATOR) for name in ("anna", "otto")} | {
        "theo": users.add("theo", Role.TRAINER)
    }
    with threaded_site(tmp_path, cases=1, settings={"users": str(users.file)}) as running:
        with drawing(running, token=tokens["anna"]):
            pass
        (draft,) = drafts_of(running)
        assert draft.user == "anna"
        for action in ("confirm", "delete"):
            reply = post(running, action, tokens["otto"], draft=draft.name)
            assert (reply.status_code, "There is no draft" in reply.text) == (409, True)
        assert post(running, "confirm", tokens["theo"], draft=draft.name).status_code == 303
        line = line_of(running, "confirm a draft", draft.name, 303)
        assert (line["user"], line["drawn_by"]) == ("theo", "anna")
        index = json.loads((running.studies / "datastore_v2.json").read_text())
        assert index["objects"]["ct_01"]["labels"]["final"]["info"]["authors"] == {"spleen": "anna"}

        def find_policy(*request: str) -> access_policy.RoutePolicy | None:
            policy = access_policy.find_policy(*request)
            return replace(policy, role=Role.TRAINER) if policy and policy.action == "save a label" else policy

        monkeypatch.setattr(kept_drafts, "find_policy", find_policy)
        for name in ("anna", "theo"):
            with drawing(running, token=tokens[name]):
                pass
        assert [draft.user for draft in drafts_of(running)] == ["theo"]


def test_a_draft_whose_image_is_not_certain_is_refused(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    half = np.random.default_rng(0).integers(0, 200, (20, 24, 10)).astype(np.int16)

    def add() -> None:
        studies = tmp_path / "studies"
        shutil.copy(studies / "ct_01.nii.gz", studies / "copy.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.concatenate([half, half[::-1]]), affine), studies / "symmetric.nii.gz")

    with threaded_site(tmp_path, cases=2, extra=add) as running:
        with closing(nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive/spleen")) as session:
            mirrored, other = np.concatenate([half, half[::-1]]), half.repeat(2, axis=0)
            for voxels in (mirrored, other):
                session.set_image(voxels[None], {})
                session.set_target_buffer(np.zeros(voxels.shape, np.uint8))
                drawn = np.zeros(voxels.shape, np.uint8)
                drawn[3, 4, 5] = 1
                session.add_initial_seg_interaction(drawn)
        with drawing(running):
            pass
        copied, unknown, symmetric = drafts_of(running)
        for draft, image, sentence in (
            (copied, "", "Several images have the voxels that this draft was drawn on: copy, ct_01."),
            (copied, "ct_02", "does not have the voxels"),
            (copied, "../ct_01", "is not a valid name"),
            (unknown, "", "No image on this server has the voxels"),
            (unknown, "symmetric", "does not have the voxels"),
            (symmetric, "", "is the same in several orientations"),
            (symmetric, "symmetric", "is the same in several orientations"),
        ):
            reply = post(running, "confirm", draft=draft.name, image=image)
            assert (reply.status_code, sentence in reply.json()["detail"]) == (400, True), reply.text
        assert post(running, "confirm", draft=copied.name, image="ct_09").status_code == 404
        assert len(drafts_of(running)) == 3
        assert not list((running.studies / "labels").rglob("*.nii*"))
        assert post(running, "confirm", draft=copied.name, image="copy").status_code == 303
        assert (saved_label(running, "copy") == SPLEEN).any()
        reply = post(running, "confirm", draft=copied.name, image="copy")
        assert (reply.status_code, "It was confirmed or deleted" in reply.json()["detail"]) == (409, True)


def test_two_confirmations_at_once_save_one_label(site: Site) -> None:
    with drawing(site, case="ct_01"):
        pass
    (draft,) = drafts_of(site)
    with store_of(site).claim(draft.name):
        reply = post(site, "confirm", draft=draft.name)
        assert (reply.status_code, "Somebody else is confirming" in reply.json()["detail"]) == (409, True)
    assert post(site, "confirm", draft=draft.name).status_code == 303
    assert post(site, "confirm", draft=draft.name).status_code == 409


def test_forms_of_other_origins_change_nothing(site: Site) -> None:
    with drawing(site):
        pass
    (draft,) = drafts_of(site)
    for action in ("confirm", "delete"):
        reply = httpx.post(
            f"{site.address}/web/labels/draft/{action}", data={"draft": draft.name}, headers={"Origin": "http://evil"}
        )
        assert reply.status_code == 403
    assert drafts_of(site) == [draft]


def test_the_stored_draft_holds_neither_the_image_nor_its_name(site: Site) -> None:
    with drawing(site, by_nibabel):
        pass
    (draft,) = drafts_of(site)
    (file,) = (site.adapters / "drafts").glob("*.npz")
    assert re.fullmatch(r"[\dT]{18}-[0-9a-f]{6}\.npz", file.name)
    with np.load(file) as content:
        assert set(content.files) == {"record", "mask"}
        assert b"ct_0" not in content["record"].tobytes()
    assert file.stat().st_size < np.prod(draft.shape) / 8


@pytest.mark.slow
@pytest.mark.server
def test_the_server_of_baps_serve_keeps_the_mask_when_it_is_stopped(tmp_path: Path) -> None:
    with contextmanager(process_site)(tmp_path, cases=1) as running:
        session = nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive/spleen")
        voxels, click = by_itk("ct_01")
        session.set_image(voxels[None], {})
        mask = np.zeros(voxels.shape, np.uint8)
        session.set_target_buffer(mask)
        session.add_point_interaction(click, True)
        running.process.terminate()
        running.process.wait(60)
        (draft,) = drafts_of(running)
        assert np.array_equal(store_of(running).mask(draft.name), mask > 0)
        assert "Traceback" not in running.log.read_text()
        modes = {
            path.stat().st_mode & 0o077 for path in [running.adapters / "drafts", *running.adapters.glob("drafts/*")]
        }
        assert modes == {0}
