"""What can keep a site from working, checked before somebody stumbles over it. One function a check.

A check answers with a finding. One that raises has failed: a ``BapsError`` says in its sentence what to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from baps.errors import BapsError, MissingExtraError
from baps.site.app_folder import PACKAGES
from baps.site.pacs_credentials import ACCOUNT, read_pacs_credentials
from baps.site.pacs_studies import PacsStudies, Worklist, read_pacs_studies
from baps.site.server_command import check_listening, check_port, check_studies, is_pacs, server_environment

if TYPE_CHECKING:
    from baps.site.settings import Settings

_LEAST_DISK = 1 << 30
_LEAST_MEMORY = 3 << 30
"""Of the server and a training process, beside the cache."""

_TIMEOUT = (5, 15)
"""Seconds to reach a PACS, and to wait for what it says."""

_SERIES = 100
"""That the PACS is asked for, to see what it holds."""

_FOLDERS = 1000
"""That are searched for series that are not served."""

_OWN = "Let the user of the server read and write there (chown, chmod)."


class Status(str, Enum):
    """How grave a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Finding:
    """What a check says.

    Attributes:
        status: how grave it is.
        found: what was seen.
        remedy: what to do, or "" where nothing is to be done or ``found`` says it.
    """

    status: Status
    found: str
    remedy: str = ""


def examine(
    given: Mapping[str, str], studies: str = "", host: str = "127.0.0.1", port: int = 8000
) -> dict[str, Finding]:
    """Make all checks, in some 10 seconds; nothing is changed.

    Args:
        given: settings, as ``read_settings`` takes them.
        studies: folder or DICOMweb address; "" leaves its checks out.
        host: address that the server would listen on.
        port: likewise.

    Returns:
        Findings by the name of the check.
    """
    checks: dict[str, Callable[[], Finding]] = {"torch, torchvision": torch_pair}
    if find_spec("monailabel") is None:
        checks["MONAI Label"] = partial(without_server, bool(studies))
    else:
        checks |= {
            "Python": partial(python_version, sys.version_info[:2]),
            "pydicom": partial(package, "pydicom", 3),
            "numpy": partial(package, "numpy", 2),
            "MONAI Label": host_framework,
            "dcmqi": partial(dcmqi, studies),
            "port": partial(port_free, host, port),
        }
    if studies and not is_pacs(studies):
        checks["studies"] = partial(folder, studies)
    findings = {name: _made(check) for name, check in checks.items()}
    try:  # The settings name the model, whose module imports torch.
        from baps.site.settings import read_settings

        site = read_settings(given)
    except Exception as error:  # as in _made
        return {**findings, "settings": _failure(error)}
    findings["settings"] = Finding(Status.OK, ", ".join(f"{name}={value}" for name, value in site.labels.items()))
    written = [site.adapters, *_written(studies), Path(tempfile.gettempdir())]
    later: dict[str, Callable[[], Finding]] = {
        **({"PACS": partial(pacs, studies, site.pacs_credentials, site.worklist)} if is_pacs(studies) else {}),
        "users": partial(access, site, host),
        "memory, CPUs": partial(memory, site.cache_mb),
        "device": partial(device, site.device),
        "model": partial(model, site),
        "adapters": partial(adapters, site.adapters),
        "disk": partial(disk, written),
    }
    return findings | {name: _made(check) for name, check in later.items()}


def _made(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # The other checks must still be made, whatever this one met.
        return _failure(error)


def _failure(error: Exception) -> Finding:
    if isinstance(error, BapsError):
        return Finding(Status.FAILED, str(error))
    return Finding(Status.FAILED, f"{type(error).__name__}: {error}", "Mend what is named, or report it as a fault.")


def python_version(version: tuple[int, int]) -> Finding:
    """Whether there are packages for this Python, (major, minor)."""
    found = ".".join(map(str, version))
    if (3, 10) <= version <= (3, 12):
        return Finding(Status.OK, found)
    return Finding(Status.FAILED, found, "Install Python 3.10, 3.11 or 3.12, then make clean and make serve again.")


def torch_pair() -> Finding:
    """Whether torch and torchvision were built for each other."""
    try:
        torch, torchvision = import_module("torch"), import_module("torchvision")
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        return Finding(
            Status.FAILED,
            f"They do not work together: {error}",
            "Install both from one index: pip install --force-reinstall -c constraints.txt torch torchvision",
        )
    return Finding(Status.OK, f"{torch.__version__}, {torchvision.__version__}")


def without_server(wanted: bool) -> Finding:
    """What an installation without the extra ``server`` lacks, which is a fault where a server is wanted."""
    status = Status.FAILED if wanted else Status.WARNING
    found = "not installed: this machine has the commands and the Python API, but no server"
    return Finding(status, found, "To serve: pip install 'baps-monailabel[server]'")


def package(name: str, below: int) -> Finding:
    """Whether a package is there, of a major version below a number."""
    remedy = f"pip install -c constraints.txt '{name}<{below}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(Status.FAILED, "not installed", remedy)
    if int(version.partition(".")[0]) >= below:
        return Finding(Status.FAILED, f"{version}, which MONAI Label cannot work with", remedy)
    return Finding(Status.OK, version)


def host_framework() -> Finding:
    """Whether MONAI Label imports, in a process of its own."""
    command = [sys.executable, "-c", "import monailabel.interfaces.app"]
    done = subprocess.run(  # noqa: S603 (a fixed command)
        command, env=server_environment(), cwd=PACKAGES, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(Status.FAILED, f"It does not import: {last}", "pip install -c constraints.txt -e .")
    return Finding(Status.OK, metadata.version("monailabel"))


def dcmqi(studies: str) -> Finding:
    """Whether dcmqi's program is there, which writes DICOM SEG for a PACS."""
    program = shutil.which("itkimage2segimage", path=server_environment()["PATH"])
    if program:
        return Finding(Status.OK, program)
    # Without it the server tries to download it when it starts on a PACS.
    status = Status.FAILED if is_pacs(studies) else Status.WARNING
    return Finding(status, "itkimage2segimage is not on the PATH", "pip install -c constraints.txt dcmqi")


def port_free(host: str, port: int) -> Finding:
    """Whether the server could listen there."""
    check_port(host, port)
    return Finding(Status.OK, f"{port} of {host} is free")


def access(site: Settings, host: str) -> Finding:
    """Whether the server would be closed, to all but those who are known or to all but this machine."""
    from baps.site.openid_settings import read_openid
    from baps.site.settings import check_access
    from baps.site.users import Users

    check_access(site)
    check_listening(host, site.closed)
    if not site.closed:
        return Finding(Status.OK, "this machine only, without a login: nobody is named")
    let_in = []
    if site.users is not None:
        known = [user for user in Users(site.users).all().values() if not user.expired]
        let_in.append(f"{len(known)} users of {site.users}")
        if not known and site.openid is None:
            remedy = f"baps users add NAME --role annotator --file {site.users}"
            return Finding(Status.WARNING, f"closed to everybody: nobody in {site.users} has a token", remedy)
    if site.openid is not None:
        let_in.append(f"those whom {read_openid(site.openid).issuer} gives a role")
    return Finding(Status.OK, f"closed to all but {' and '.join(let_in)}")


def memory(cache_mb: int) -> Finding:
    """Whether the memory suffices for the server, a training and the cache (MB)."""
    import psutil

    available, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    found = f"{_gigabytes(available)} of {_gigabytes(total)} available, {os.cpu_count()} CPUs"
    needed = _LEAST_MEMORY + (cache_mb << 20)
    if available >= needed:
        return Finding(Status.OK, found)
    remedy = f"Server, training and cache want {_gigabytes(needed)}: lower --cache-mb ({cache_mb}) or close programs."
    return Finding(Status.WARNING, found, remedy)


def device(name: str) -> Finding:
    """What the model will run on; a GPU is needed only where one was asked for."""
    import torch

    usable = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if usable else []
    found = f"{name}; GPUs: {', '.join(gpus) or 'none that torch can use'}"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        return Finding(Status.FAILED, found, "Give --device auto, cpu, cuda, cuda:1 and so on.")
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= len(gpus):
        return Finding(
            Status.FAILED, found, "Install the GPU's driver (nvidia-smi must list it), or give --device auto."
        )
    return Finding(Status.OK, found)


def model(site: Settings) -> Finding:
    """Whether the model is there and the right one, and answers a prompt on a black image."""
    import numpy as np

    from baps.blackbox import load_black_box
    from baps.prompts import Prompt

    begun = time.perf_counter()
    black_box = load_black_box(site.black_box, site.weights, site.weights_sha256, site.device, site.remote_model)
    loaded = time.perf_counter()
    able = black_box.capabilities
    middle = able.input_size / 2
    prompt = Prompt(((middle, middle),)) if able.clicks else Prompt(box=(0, 0, middle, middle))
    black_box.segment(np.zeros((1, able.input_size, able.input_size, 3), np.uint8), [prompt])
    answered = time.perf_counter()
    return Finding(
        Status.OK,
        f"{able.name}, SHA-256 {able.weights_sha256[:12]}..., loaded in {loaded - begun:.1f} s, first answer in "
        f"{answered - loaded:.2f} s",
    )


def adapters(root: Path) -> Finding:
    """Whether adapters can be kept; the folder is made with the first one."""
    there = _nearest(root)
    if not there.is_dir():
        return Finding(Status.FAILED, f"{there} is no folder", "Give another folder with --adapters.")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return Finding(Status.FAILED, f"{there} cannot be written to", f"{_OWN} Or give another one with --adapters.")
    return Finding(Status.OK, str(root) if root.exists() else f"{root}, which the first training makes")


def disk(places: list[Path]) -> Finding:
    """Whether there is room where the server writes."""
    free = {_nearest(place): shutil.disk_usage(_nearest(place)).free for place in places}
    found = ", ".join(f"{_gigabytes(size)} at {place}" for place, size in free.items())
    if min(free.values()) < _LEAST_DISK:
        return Finding(Status.WARNING, found, f"Make room: less than {_gigabytes(_LEAST_DISK)} is free.")
    return Finding(Status.OK, found)


def folder(studies: str) -> Finding:
    """Whether the folder of studies can be used, and what lies in it."""
    from baps.annotations.label_files import unused_labels
    from baps.io import images_folder

    check_studies(studies)
    root = Path(studies)
    if not os.access(root, os.R_OK | os.X_OK):
        return Finding(Status.FAILED, f"{root} cannot be read", _OWN)
    kinds = _kinds_of_images(root)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no images"
    warnings = []
    if deeper := _series_too_deep(root):
        found += f"; {deeper} DICOM series in folders of folders, which are not served"
        warnings.append(
            f"Lay the folder of each series directly into {images_folder(root)}, or serve them from a PACS."
        )
    elif not kinds:
        warnings.append("Put NIfTI or NRRD volumes into it, or into a folder images in it.")
    for said in unused_labels(root):
        found_labels, _, remedy = said.partition("; they are not used. ")
        found += f"; {found_labels}, and are not used"
        warnings.append(remedy)
    if not os.access(root, os.W_OK):
        found += "; the folder cannot be written to: clicks are answered, labels and images are not saved"
        warnings.append(f"To save labels: {_OWN} Mount it with leave to write.")
    return Finding(Status.WARNING if warnings else Status.OK, found, " ".join(warnings))


def pacs(studies: str, login_file: Path | None = None, worklist: Path | None = None) -> Finding:
    """Whether the PACS answers as DICOMweb, and what the first series are that the query finds."""
    try:
        import requests
    except ImportError as error:
        raise MissingExtraError("The check of a PACS", "server") from error

    check_studies(studies, worklist)
    served = read_pacs_studies(studies)
    prefix = os.environ.get("MONAI_LABEL_QIDO_PREFIX", "").strip("/")
    root = "/".join(part for part in (served.address, prefix) if part)
    login = read_pacs_credentials(login_file)
    try:
        answer = requests.get(
            f"{root}/series",
            params={"limit": str(_SERIES), **served.filters},
            headers={"Accept": "application/dicom+json"},
            auth=login.account,
            verify=str(login.ca) if login.ca else True,
            timeout=_TIMEOUT,
        )
    except requests.exceptions.SSLError as error:
        remedy = "Name a file with the certificate of the PACS's authority: ca in the file BAPS_PACS_CREDENTIALS."
        return Finding(Status.FAILED, f"TLS error: {_innermost(error)}", remedy)
    except requests.exceptions.RequestException as error:
        remedy = "Check the address, that the PACS runs, the firewall and the proxy (NO_PROXY)."
        return Finding(Status.FAILED, f"not reachable: {_innermost(error)}", remedy)
    listed = f"; the worklist has {len(Worklist(worklist).studies())} studies" if worklist else ""
    return _answered(answer.status_code, answer.headers.get("Content-Type", ""), answer.content, served, listed)


def _answered(code: int, kind: str, content: bytes, served: PacsStudies, listed: str) -> Finding:
    """What the answer of a PACS to the search for series means."""
    root = "Give the root of its DICOMweb service; Orthanc's ends in /dicom-web."
    if code in (401, 403):
        remedy = f"Name an account that may read, in the file BAPS_PACS_CREDENTIALS or in {' and '.join(ACCOUNT)}."
        return Finding(Status.FAILED, f"refused ({code})", remedy)
    if code == 404:
        return Finding(Status.FAILED, "not the root of a DICOMweb service (404)", root)
    try:
        series = json.loads({200: content, 204: b"[]"}[code])  # 204 says that nothing was found
        modalities = Counter(str(one.get("00080060", {}).get("Value", ["none"])[0]) for one in series)
        others = sum(not served.matches(one) for one in series)
    except (ValueError, TypeError, AttributeError, LookupError):
        return Finding(
            Status.FAILED, f"no DICOMweb answer ({code}, {kind or 'of no type'})", f"{root} Else see the PACS's log."
        )
    if not modalities:
        remedy = "Send images to the PACS" + (", or check the query in STUDIES." if served.filters else ".")
        return Finding(Status.WARNING, f"reachable, without series{listed}", remedy)
    shown = ", ".join(f"{count} {name}" for name, count in modalities.most_common())
    found = f"{len(modalities)} modalities in the first {modalities.total()} series: {shown}{listed}"
    if others:
        remedy = f"It searches without {' or '.join(served.filters)}: use other attributes, or a worklist."
        return Finding(Status.WARNING, f"{found}; {others} do not match STUDIES and are not served", remedy)
    return Finding(Status.OK, found)


def _innermost(error: Exception) -> str:
    """The cause that libraries have wrapped."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return _innermost(inner) if isinstance(inner, Exception) else str(error)


def _kinds_of_images(studies: Path) -> Counter[str]:
    """How many images of which kind the server would find."""
    from baps.io import file_stem, images_folder, list_images

    found = list_images(images_folder(studies))
    return Counter(path.name[len(file_stem(path)) :].lower() or "DICOM series" for path in found)


def _series_too_deep(studies: Path) -> int:
    """How many DICOM series lie in folders of folders, where the server does not look; among the first folders."""
    from baps.io import images_folder, is_dicom_folder, list_images

    images = images_folder(studies)
    served = {path.name for path in list_images(images)}
    below = (Path(place) for place, _, _ in islice(os.walk(images), _FOLDERS))
    ways = {place: place.relative_to(images).parts for place in below}
    return sum(
        len(parts) > 1
        and parts[0] not in served
        and not any(part.startswith(".") for part in parts)
        and is_dicom_folder(place)
        for place, parts in ways.items()
    )


def _written(studies: str) -> list[Path]:
    """Where the server writes labels; or what it fetches from the PACS, or makes of studies that stay as they are."""
    if is_pacs(studies) or (studies and not os.access(studies, os.W_OK)):
        named = (os.environ.get(f"MONAI_LABEL_{kind}_CACHE_PATH") for kind in ("DICOMWEB", "DATASTORE"))
        return [Path(next(filter(None, named), Path.home() / ".cache" / "monailabel"))]
    return [Path(studies)] if studies else []


def _nearest(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB"
