"""The server as its users meet it: through the client of 3D Slicer's module, and over plain HTTP."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from PIL import Image

from baps.annotations.history import LabelHistory
from baps.imaging.metrics import dice
from tests.support.client import threaded_site
from tests.support.paths import ROOT
from tests.support.sites import Site, sample_labels, site, spleen_click


def infer(server: Site, case: str, **request: object) -> tuple[np.ndarray, dict[str, object]]:
    """Click as Slicer does; the mask and the reply's words."""
    point = spleen_click(case)
    requested = {"label": "spleen", "foreground": [point], "background": [], "slice": point[2], **request}
    file, content = server.client.infer("baps", case, requested)
    voxels, _ = nrrd.read(file)
    return voxels, content


def post(server: Site, path: str, **kwargs: object) -> requests.Response:
    return requests.post(f"{server.address}{path}", timeout=60, **kwargs)  # type: ignore[arg-type]


def test_info_has_what_slicer_reads(server: Site) -> None:
    info = server.client.info()
    assert info["labels"] == ["spleen", "liver"]
    for name in ("baps", "zero_shot"):
        model = info["models"][name]
        assert (model["type"], model["dimension"]) == ("deepgrow", 2)
        assert not model["labels"]  # else Slicer would run it without a click at every Next Sample
    assert {"random", "first"} <= set(info["strategies"])
    assert "baps" in info["trainers"]
    assert "baps" in info["train_stats"]


@pytest.mark.parametrize("strategy", ["random", "first"])
def test_next_sample_offers_an_image_of_the_datastore(server: Site, strategy: str) -> None:
    sample = server.client.next_sample(strategy, {})
    assert (server.studies / f"{sample['id']}.nii.gz").is_file()


def test_a_click_gives_a_mask_in_the_frame_of_the_image(server: Site) -> None:
    point = spleen_click("ct_01")
    file, reply = server.client.infer("zero_shot", "ct_01", {"label": "spleen", "foreground": [point]})
    voxels, header = nrrd.read(file)
    image = nibabel.load(server.studies / "ct_01.nii.gz")
    assert voxels.shape == image.shape
    assert voxels.dtype == np.uint8
    assert set(np.unique(voxels)) == {0, 1}
    assert voxels[tuple(point)] == 1
    assert voxels.any((0, 1)).nonzero()[0].tolist() == [point[2]]
    assert dice(voxels[..., point[2]] > 0, sample_labels("ct_01")[..., point[2]] == 2) > 0.3
    lps = np.diag([-1, -1, 1.0]) @ image.affine[:3]
    assert np.allclose(header["space directions"].T, lps[:, :3], atol=1e-5)
    assert np.allclose(header["space origin"], lps[:, 3], atol=1e-4)
    assert reply["window"]["source"] == "ct"  # type: ignore[index]


def test_the_same_click_again_gives_the_same_mask_without_encoding_again(server: Site) -> None:
    first, _ = infer(server, "ct_02")
    again, reply = infer(server, "ct_02")
    assert np.array_equal(first, again)
    assert reply["encoding_cached"] is True


def test_a_client_may_share_the_temporary_folder_of_the_server(server: Site) -> None:
    client = MONAILabelClient(server.address)  # saves to /tmp, under the name that the server sends
    for _ in range(5):
        file, _ = client.infer("baps", "ct_01", {"foreground": [spleen_click("ct_01")]})
        time.sleep(0.1)
        assert nrrd.read(file)[0].any()
        Path(file).unlink()


def test_ohif_gets_a_raw_nrrd_in_the_images_voxel_order(server: Site) -> None:
    point = spleen_click("ct_03")
    params = {"foreground": [point], "background": [], "result_extension": ".nrrd", "result_compress": False}
    answer = post(server, "/infer/baps?image=ct_03&output=image", data={"params": json.dumps(params)})
    assert answer.status_code == 200
    header, _, data = answer.content.partition(b"\n\n")
    assert b"encoding: raw" in header
    voxels = np.frombuffer(data, np.uint8).reshape(sample_labels("ct_03").shape, order="F")
    assert voxels[tuple(point)] == 1


def test_server_timing(server: Site) -> None:
    point = spleen_click("ct_04")
    params = json.dumps({"foreground": [point], "result_compress": False})
    begun = time.perf_counter()
    reply = post(server, "/infer/zero_shot?image=ct_04&output=image", data={"params": params})
    waited = 1000 * (time.perf_counter() - begun)
    content = dict(part.strip().split(";dur=") for part in reply.headers["Server-Timing"].split(","))
    assert 0 < float(content["model"]) <= float(content["total"]) <= waited


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("accepted", ["gzip, deflate", "identity"])
def test_raw_voxels_are_compressed_if_the_client_accepts_gzip(server: Site, raw: bool, accepted: str) -> None:
    """And are the same voxels for whoever does not."""
    params = {"foreground": [spleen_click("ct_04")], "result_compress": not raw, "reply_packed": not raw}
    address, headers = "/infer/zero_shot?image=ct_04&output=image", {"Accept-Encoding": accepted}
    reply = post(server, address, data={"params": json.dumps(params)}, headers=headers, stream=True)
    packed = raw and "gzip" in accepted
    assert reply.headers.get("Content-Encoding") == ("gzip" if packed else None)
    plain = post(server, address, data={"params": json.dumps({**params, "result_compress": False})})
    if raw:
        header, voxels = reply.content.split(b"\n\n", 1)
        assert voxels == plain.content.split(b"\n\n", 1)[1]  # The header has the time in it.
        assert b"encoding: raw" in header
        assert (int(reply.headers["Content-Length"]) < len(reply.content) / 10) == packed
    else:
        assert b"encoding: gzip" in reply.content[:400]


def test_info_is_answered_while_inferences_run(server: Site) -> None:
    stop = threading.Event()
    served = []

    def click() -> None:
        client = MONAILabelClient(server.address, tmpdir=str(server.log.parent))
        while not stop.is_set():
            client.infer("zero_shot", "ct_01", {"label": "spleen", "foreground": [spleen_click("ct_01")]})
            served.append(1)

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert requests.get(f"{server.address}/info/", timeout=30).ok
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(served) >= 4


@pytest.mark.parametrize(
    ("path", "params", "status", "message"),
    [
        ("/infer/nothing?image=ct_01", {"foreground": [[1, 2, 3]]}, 404, "Known ones: baps, zero_shot"),
        ("/infer/baps?image=nobody", {"foreground": [[1, 2, 3]]}, 404, "no image 'nobody'"),
        ("/infer/baps", {"foreground": [[1, 2, 3]]}, 400, "names no image"),
        ("/infer/baps?image=ct_01", {}, 400, "no click and no box"),
        ("/infer/baps?image=ct_01", {"foreground": [[500, 2, 3]]}, 400, "outside the volume"),
        ("/infer/baps?image=ct_01", {"foreground": "x"}, 400, "foreground"),
        ("/infer/baps?image=..%2Fct_01", {"foreground": [[1, 2, 3]]}, 400, "no slashes"),
        ("/infer/baps?image=/etc/passwd", {"foreground": [[1, 2, 3]]}, 400, "no slashes"),
        ("/infer/baps?session_id=abc", {"foreground": [[1, 2, 3]]}, 404, "no session"),
    ],
)
def test_an_invalid_click_is_a_client_error(
    server: Site, path: str, params: dict[str, object], status: int, message: str
) -> None:
    answer = post(server, path, data={"params": json.dumps(params)})
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text


def test_params_must_be_json(server: Site) -> None:
    answer = post(server, "/infer/baps?image=ct_01", data={"params": "{broken"})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["detail"]


_POINT = {"foreground": [[1, 2, 3]]}
_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("POST", "/train/baps", {"data": '{"seed": NaN', "headers": _JSON}, 422),
        ("POST", "/train/baps", {"data": "[NaN]", "headers": _JSON}, 422),
        ("POST", "/train/baps", {"data": '["\\ud800"]', "headers": _JSON}, 422),
        ("POST", "/train/baps", {"data": '{"label": "\\ud800"}', "headers": _JSON}, 400),
        ("POST", "/auth/token", {"files": {"username": ("a", b"a"), "password": ("b", b"b")}}, 422),
        ("POST", "/infer/baps?image=ct_01", {"data": {"params": '{"foreground": [[NaN, 1, 1]]}'}}, 400),
        ("POST", "/infer/baps", {"files": {"file": ("a.\0.nii.gz", b"x")}, "data": _POINT}, 400),
        ("PUT", "/datastore/label?image=ct_01", {"files": {"label": ("a.nrrd", b"x")}, "data": {"params": "[]"}}, 400),
        ("GET", "/session/nobody?image=true", {}, 404),
        ("HEAD", "/datastore/image?image=ct_01&check_sum=CRC:12", {}, 400),
        ("HEAD", "/datastore/image?image=ct_01", {}, 200),
        ("GET", "/datastore/dataset", {}, 404),
        ("GET", "/ohif/assets", {}, 200),
        ("GET", "/ohif/%00", {}, 200),
        ("GET", "/static/ohif/%00", {}, 404),
        ("GET", "/datastore/label/info?label=%ff&tag=%00", {}, 400),
    ],
)
def test_odd_requests_are_answered_or_refused(
    server: Site, method: str, path: str, sent: dict[str, object], status: int
) -> None:
    answer = requests.request(method, f"{server.address}{path}", timeout=60, **sent)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    if status >= 400 and method != "HEAD":
        assert isinstance(answer.json()["detail"], str)


def test_several_files_of_a_session_are_not_an_image(server: Site) -> None:
    files = [("files", (name, b"x")) for name in ("a.dcm", "b.dcm")]
    opened = requests.put(f"{server.address}/session/", files=files, timeout=30).json()["session_id"]
    try:
        assert requests.get(f"{server.address}/session/{opened}", timeout=30).ok
        answer = requests.get(f"{server.address}/session/{opened}?image=true", timeout=30)
        assert (answer.status_code, "several files" in answer.text) == (400, True)
    finally:
        requests.delete(f"{server.address}/session/{opened}", timeout=30)


def test_params_of_an_image_do_not_break_next_sample(own_server: Site) -> None:
    source = own_server.studies / "ct_01.nii.gz"
    for reply, status in (({"strategy": 5}, 200), ({"author": float("nan")}, 400)):
        sent = {"files": {"file": (source.name, source.read_bytes())}, "data": {"params": json.dumps(reply)}}
        answer = requests.put(f"{own_server.address}/datastore/image?image=new{status}", timeout=60, **sent)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text
    for who in (5, float("nan"), "\ud800", {"a": []}):
        answer = post(own_server, "/activelearning/first", data=json.dumps({"client_id": who}), headers=_JSON)
        assert answer.status_code == 200, answer.text
    for image in [path.name.removesuffix(".nii.gz") for path in own_server.studies.glob("*.nii.gz")]:
        assert requests.get(f"{own_server.address}/datastore/image/info?image={image}", timeout=30).ok


def test_params_cannot_name_another_image(server: Site) -> None:
    point = spleen_click("ct_01")
    sent = {"foreground": [point], "image": "/etc/passwd", "model": "zero_shot"}
    assert post(server, "/infer/baps?image=ct_01", data={"params": json.dumps(sent)}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/datastore/image?image=../x", 400),
        ("PUT", "/datastore/label?image=ct_01&tag=a%0Ab", 400),
        ("PUT", "/datastore/label?image=ct_01&tag=../../x", 400),
        ("DELETE", "/datastore/image?id=ct_01", 403),
        ("DELETE", "/datastore/label?id=ct_01&tag=final", 403),
        ("PUT", "/datastore/image/info?image=ct_01", 403),
        ("PUT", "/datastore/image?image=x", 400),
        ("POST", "/infer/wsi/baps?image=ct_01", 403),
        ("POST", "/batch/infer/baps", 403),
        ("POST", "/reload", 403),
        ("GET", "/logs/", 403),
        ("PUT", "/session/?uncompress=true", 400),
        ("PUT", "/model/baps", 403),
        ("GET", "/proxy/dicom/wado/..%2fsystem", 400),
        ("GET", "/proxy/dicom/wado/%2e%2e/system", 400),
    ],
)
def test_nothing_outside_the_datastore_is_reached(server: Site, method: str, path: str, status: int) -> None:
    files = {"file": ("x.nii.gz", b"x"), "label": ("x.nii.gz", b"x")}
    before = _lasting_files(server.studies.parent)
    session = requests.Session()
    sent = requests.Request(method, server.address + path, files=files if method == "PUT" else None).prepare()
    sent.url = server.address + path  # requests would tidy the dots away
    assert session.send(sent, timeout=30).status_code == status
    assert _lasting_files(server.studies.parent) == before


def _lasting_files(folder: Path) -> list[Path]:
    """List all files but hidden ones, such as the audit file's next head, which come and go."""
    return sorted(path for path in folder.rglob("*") if not path.name.startswith("."))


def test_params_cannot_set_the_output_path(server: Site) -> None:
    sent = {"foreground": [spleen_click("ct_01")], "image_id": "../../evil", "label_tag": "../../evil"}
    assert post(server, "/infer/baps?image=ct_01", data={"params": json.dumps(sent)}).status_code == 200
    assert not list(server.studies.parent.parent.rglob("evil*"))
    assert server.client.info()["datastore"]["completed"] == 0


def test_an_image_is_added_but_never_replaced(own_server: Site, tmp_path: Path) -> None:
    source = str(own_server.studies / "ct_01.nii.gz")
    before = Path(source).read_bytes()
    with pytest.raises(MONAILabelClientException) as caught:
        own_server.client.upload_image(source, "ct_02")
    assert "already" in caught.value.msg
    junk = tmp_path / "junk.nii.gz"
    junk.write_bytes(b"junk")
    with pytest.raises(MONAILabelClientException) as caught:
        own_server.client.upload_image(str(junk), "new")
    assert "cannot be read" in caught.value.msg
    own_server.client.upload_image(source, "new")
    assert (own_server.studies / "new.nii.gz").read_bytes() == before


@pytest.mark.parametrize("options", [{"bundle_path": "/tmp"}, {"max_image": 5}, {"max_images": "many"}])  # noqa: S108
def test_unknown_training_options_are_refused(server: Site, options: dict[str, object]) -> None:
    answer = post(server, "/train/baps", json=options)
    assert (answer.status_code, next(iter(options)) in answer.json()["detail"]) == (400, True)


def test_pages_of_other_origins_are_refused(server: Site) -> None:
    answer = requests.get(f"{server.address}/info/", headers={"Origin": "http://elsewhere.example"}, timeout=30)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_training_needs_labels_and_a_known_trainer(server: Site) -> None:
    nothing = post(server, "/train/baps", json={})
    assert (nothing.status_code, "no saved labels" in nothing.json()["detail"]) == (400, True)
    unknown = post(server, "/train/nothing", json={})
    assert (unknown.status_code, "Known ones: baps" in unknown.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: np.zeros_like(v), "empty"),
        (lambda v: v[:64], "does not have the geometry of its image"),
        (lambda v: None, "cannot be read"),
    ],
)
def test_unusable_labels_are_not_saved(server: Site, tmp_path: Path, make: object, message: str) -> None:
    image = nibabel.load(server.studies / "ct_04.nii.gz")
    voxels = make(sample_labels("ct_04"))  # type: ignore[operator]
    path = tmp_path / "label.nii.gz"
    if voxels is None:
        path.write_bytes(b"this is no NIfTI file")
    else:
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    with pytest.raises(MONAILabelClientException) as caught:
        server.client.save_label("ct_04", str(path), "final", {"label_info": [{"name": "spleen", "idx": 2}]})
    assert "Status: 400" in caught.value.msg
    assert message in caught.value.msg
    assert server.client.info()["datastore"]["completed"] == 0


@pytest.mark.slow
def test_save_train_and_click_again(own_server: Site) -> None:
    server, client = own_server, own_server.client
    before, text = infer(server, "ct_06")
    assert text["adapter"] is None
    for number in range(1, 6):
        case = f"ct_{number:02d}"
        labels = server.studies.parent / f"{case}.nii.gz"
        image = nibabel.load(server.studies / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((sample_labels(case) == 2).astype(np.uint8), image.affine), labels)
        client.save_label(case, str(labels), "final", {"label_info": [{"name": "spleen", "idx": 1}]})
    assert client.info()["datastore"]["completed"] == 5

    bad = post(server, "/train/baps", json={"optimiser": "magic"})
    assert (bad.status_code, "prompt_space" in bad.json()["detail"]) == (400, True)

    client.train_start("baps", {"max_images": 1500, "label": "spleen"})
    assert post(server, "/train/baps", json={}).status_code == 429
    seen = set()
    while client.train_status(check_if_running=True) or not seen:
        time.sleep(0.5)
        stats = client.info()["train_stats"]["baps"]
        seen.add(stats.get("epoch", 0))
        infer(server, "ct_06")  # Clicks are answered meanwhile.
    stats = client.info()["train_stats"]["baps"]
    assert client.train_status()["status"] == "DONE"
    assert stats["total_time"]
    assert 0 < stats["best_metric"] <= 1
    result = stats["adapters"]["spleen"]
    assert result["status"] == "published", result["reason"]
    assert result["black_box_images"] <= 1500
    record = json.loads((server.adapters / "label-spleen" / "v0001" / "record.json").read_text())
    assert "ct_0" not in json.dumps(record)  # patients appear as hashes

    after, text = infer(server, "ct_06")
    assert text["adapter"] == "spleen/v0001"
    assert not np.array_equal(before, after)

    # A second version of a label replaces the first, which is kept.
    client.save_label("ct_01", str(server.studies.parent / "ct_01.nii.gz"), "final", {})
    replaced, _ = LabelHistory(server.studies).versions("ct_01", "final")
    assert replaced.info["label_info"] == [{"name": "spleen", "idx": 1}]


def test_dicom_series_and_pictures_are_served_and_broken_ones_refused(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    with threaded_site(tmp_path, cases=1, extra=lambda: _series_and_pictures(studies)) as server:
        assert server.client.info()["datastore"]["total"] == 4
        request = {"foreground": [spleen_click("ct_01")]}
        for case, point in (("series", spleen_click("ct_01")), ("photo", [20, 12, 0])):
            file, reply = server.client.infer("baps", case, {"foreground": [point]})
            voxels, _ = nrrd.read(file)
            assert voxels[tuple(point)] == 1
        assert reply["window"]["source"] == "colour"  # type: ignore[index]
        answer = post(server, "/infer/baps?image=cut_off", data={"params": json.dumps(request)})
        assert (answer.status_code, "004.dcm cannot be read" in answer.json()["detail"]) == (400, True)
        downloaded = requests.get(f"{server.address}/datastore/image?image=series", timeout=60)
        assert downloaded.content[:2] == b"\x1f\x8b"  # NIfTI, gzipped, as for the series of a PACS
        assert server.client.info()["datastore"]["total"] == 4


def _series_and_pictures(studies: Path) -> None:
    series = sorted((ROOT / "sample-data" / "dicom" / "ct_01").iterdir())
    for name in ("series", "cut_off"):
        shutil.copytree(series[0].parent, studies / name)
    broken = studies / "cut_off" / "004.dcm"
    broken.write_bytes(broken.read_bytes()[:-500])
    photo = np.full((30, 40, 3), (180, 140, 120), np.uint8)
    photo[8:18, 14:28] = (60, 30, 30)
    Image.fromarray(photo).save(studies / "photo.png")


@pytest.mark.slow
def test_the_stock_server_runs_the_app_and_warns(tmp_path: Path) -> None:
    running = site(tmp_path, stock=True, cases=1)
    server = next(running)
    try:
        voxels, _ = infer(server, "ct_01")
        assert voxels.any()
        assert "does not check the paths" in server.log.read_text()
    finally:
        running.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "sent", "message"),
    [
        ("/infer/baps?image=ct_01", {"data": {"params": "[" * 100_000}}, "not valid JSON"),
        ("/infer/scribbles?image=ct_01", {"files": {"label": ("a.bin", b"x")}}, "one of the suffixes"),
        ("/infer/scribbles?image=ct_01", {"files": {"label": ("a." + "x" * 300, b"x")}}, "one of the suffixes"),
        ("/infer/baps?image=ct_01&output=dicom_seg", {"data": {"params": '{"label_info": []}'}}, "save_as"),
        ("/infer/baps", {"files": {"file": ("a." + "x" * 300 + ".nii.gz", b"x")}}, "200 printable bytes"),
        ("/train/baps", {"json": {"baps": [1]}}, "must be a JSON object, not list"),
        ("/proxy/dicom/qido/studies", {}, "no PACS"),
    ],
)
def test_odd_requests_get_a_message(server: Site, path: str, sent: dict[str, object], message: str) -> None:
    reply = post(server, path, **sent)
    assert reply.status_code in (400, 404)
    assert message in reply.json()["detail"]


@pytest.mark.parametrize("name", ["..", ".", "a/..", "..\\x", "x" * 300 + ".nii.gz", "meta.info"])
def test_names_of_session_files_are_checked(server: Site, name: str) -> None:
    files = [("files", ("a.nii.gz", b"x")), ("files", (name, b"x"))]
    reply = requests.put(f"{server.address}/session/", files=files, timeout=60)
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("The ")


def test_open_read_and_close_a_session(server: Site) -> None:
    reply = server.client.create_session(str(server.studies / "ct_01.nii.gz"))
    session = reply["session_id"]
    params = json.dumps({"foreground": [spleen_click("ct_01")]})
    assert post(server, f"/infer/baps?session_id={session}", data={"params": params}).ok
    assert requests.delete(f"{server.address}/session/{session}", timeout=60).ok
    assert post(server, f"/infer/baps?session_id={session}", data={"params": params}).status_code == 404
