"""Tests that the accepted advisories of deploy/advisories.ini cannot be exploited here."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import diskcache
import girder_client
import monailabel
import numpy as np
import psutil
import pytest
import requests

from baps.server.access_policy import find_policy
from baps.site.server_command import serving_command
from tests.support.paths import ROOT
from tests.support.patient_names import SiteWithPatientNames

APP, HOST = ROOT / "apps" / "baps_app", Path(monailabel.__file__).parent


class _UnpicklingProbe:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)


def _pickle_files(mark: Path) -> dict[str, bytes]:
    """Build files, by name, that create ``mark`` when they are unpickled."""
    array, arrays = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([_UnpicklingProbe(mark)], dtype=object), allow_pickle=True)
    np.savez(
        arrays,
        img=np.array([_UnpicklingProbe(mark)], dtype=object),
        seg=np.array([_UnpicklingProbe(mark)], dtype=object),
    )
    plain = pickle.dumps(_UnpicklingProbe(mark))
    return {
        "a.npy": array.getvalue(),
        "a.npz": arrays.getvalue(),
        "a.pkl": plain,
        "a.pth": plain,
        "a.joblib": plain,
        "a.nii.gz": plain,
        "a.nrrd": array.getvalue(),
    }


def _own_modules() -> list[Path]:
    results = [*APP.rglob("*.py"), *(ROOT / "tools" / "pretraining").rglob("*.py")]
    return [path for path in results if "__pycache__" not in path.parts]


def _calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in _own_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path, node


def test_probes_create_a_file_when_unpickled(tmp_path: Path) -> None:
    for name, content in _pickle_files(tmp_path / "sprung").items():
        if name not in ("a.npy", "a.npz", "a.nrrd"):
            pickle.loads(content)  # noqa: S301 (what the others must not do)
            (tmp_path / "sprung").unlink()
            continue
        result = np.load(io.BytesIO(content), allow_pickle=True)
        if name == "a.npz":
            result["img"]
        (tmp_path / "sprung").unlink()


@pytest.mark.slow
def test_uploads_are_never_unpickled(site_with_names: SiteWithPatientNames, tmp_path: Path) -> None:
    mark, address = tmp_path / "sprung", site_with_names.site.address
    for name, content in _pickle_files(mark).items():
        for method, path in (
            ("PUT", "/datastore/image?image=trap"),
            ("PUT", "/datastore/label?image=ct_01&tag=final"),
        ):
            reply = requests.request(method, address + path, files={"file": (name, content)}, timeout=60)
            assert 400 <= reply.status_code < 500, (name, path, reply.text)
        opened = requests.put(f"{address}/session/", files={"files": (name, content)}, timeout=60)
        if opened.ok:
            params = {"params": json.dumps({"foreground": [[1, 1, 1]]})}
            session = opened.json()["session_id"]
            reply = requests.post(f"{address}/infer/baps?session_id={session}", data=params, timeout=60)
            assert not reply.ok, name
    assert not mark.exists()


@pytest.mark.slow
def test_server_listens_on_one_port_only(site_with_names: SiteWithPatientNames) -> None:
    processes = [site_with_names.site.process, *site_with_names.site.process.children(recursive=True)]
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", urlsplit(site_with_names.site.address).port)]


@pytest.mark.parametrize(
    "flawed", ["qrscp", "storescp", "auto3dseg", "algo_from_pickle", "monai.apps.nnunet", "nnunetv2runner"]
)
def test_flawed_function_is_used_nowhere(flawed: str) -> None:
    """Neither by this project nor by MONAI Label."""
    files = [*_own_modules(), *HOST.rglob("*.py")]
    assert len(files) > 150
    assert not [path for path in files if flawed in path.read_text().lower()]


def test_pynetdicom_is_never_called() -> None:
    naming = [path for path in [*_own_modules(), *HOST.rglob("*.py")] if "pynetdicom" in path.read_text()]
    assert naming == [HOST / "datastore" / "utils" / "dicom.py"]
    calling = [
        path for path in [*_own_modules(), *HOST.rglob("*.py")] if re.search(r"\b(get|store)_scu\b", path.read_text())
    ]
    assert calling == naming


def test_routes_with_monais_readers_are_not_served() -> None:
    """MONAI Label's scoring would read labels with them; it is not served, nor is inference on all images."""
    assert not [path for path in _own_modules() if re.search(r"LoadImage|NumpyReader|ImageReader", path.read_text())]
    for path in ("/scoring/dice", "/scoring/sum", "/batch/infer/baps", "/model/baps"):
        assert all(find_policy(method, path) is None for method in ("GET", "POST", "PUT"))


def test_no_pickle_cache_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a cache was opened")

    monkeypatch.setattr(diskcache.Cache, "__init__", refuse)
    girder_client.GirderClient(apiUrl="http://127.0.0.1:1/api/v1")
    with pytest.raises(AssertionError, match="a cache was opened"):
        girder_client.GirderClient(apiUrl="http://127.0.0.1:1/api/v1", cacheSettings={"directory": "x"})
    assert not [path for path in [*_own_modules(), *HOST.rglob("*.py")] if "cacheSettings" in path.read_text()]


def test_tracking_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_TRACKING_ENABLED", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    environment = serving_command("/studies", "127.0.0.1", 8000, {})[1]
    assert environment["MONAI_LABEL_TRACKING_ENABLED"] == "false"
    assert (environment["MLFLOW_DISABLE_TELEMETRY"], environment["DO_NOT_TRACK"]) == ("true", "true")
    assert not [path for path in _own_modules() if "mlflow" in path.read_text()]


def test_only_tensors_are_read_from_torch_files() -> None:
    loads = list(_calls("torch.load"))
    assert len(loads) >= 3
    for path, call in loads:
        arguments = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert arguments.get("weights_only") == "True", path
    unsafe_calls = re.compile(r"torch\.(jit|export|package|hub)\b|weights_only=False")
    assert not [path for path in _own_modules() if unsafe_calls.search(path.read_text())]


def test_own_code_never_unpickles() -> None:
    unpickling = {"pickle", "cPickle", "joblib", "cloudpickle", "dill", "shelve", "marshal", "pandas"}
    for path in _own_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & unpickling, path
        assert "allow_pickle=True" not in path.read_text(), path
