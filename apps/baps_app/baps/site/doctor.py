"""Find problems of a site before users do. One function per check.

A check returns a finding. A check that raises has failed; the sentence of a ``BapsError`` says what to do.
"""

from __future__ import annotations

import json
import os
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

from baps.errors import BapsError, InputError, MissingExtraError
from baps.site.app_folder import PACKAGES
from baps.site.pacs_credentials import ACCOUNT, read_pacs_credentials
from baps.site.pacs_studies import PacsStudies, Worklist, read_pacs_studies
from baps.site.server_command import check_listening, check_port, check_studies, is_pacs, server_environment
from baps.utils.url_host import url_host

if TYPE_CHECKING:
    from baps.site.settings import Settings

_MIN_DISK = 1 << 30
_MIN_MEMORY = 3 << 30
"""Bytes that the server and a training process need beside the cache."""

_TIMEOUT = (5, 15)
"""Seconds to connect to a PACS, and to wait for its response."""

_SERIES = 100
"""Number of series to request from the PACS, to see what it holds."""

_FOLDERS = 1000
"""Number of folders to search for images that are not served."""

_OWN = "Give the user of the server read and write permission there (chown, chmod)."


class Status(str, Enum):
    """Severity of a finding.

    Attributes:
        OK: Nothing is to be done.
        WARNING: The server works, but something is missing or unused.
        FAILED: The server would not work.
    """

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        status: Its severity.
        message: The result of the check.
        remedy: What to do, or "" if there is nothing to do or ``message`` contains it.
    """

    status: Status
    message: str
    remedy: str = ""


def examine(
    given: Mapping[str, str], studies: str = "", host: str = "127.0.0.1", port: int = 8000
) -> dict[str, Finding]:
    """Run all checks, in about 10 seconds. Nothing is changed.

    Args:
        given: Settings, as ``read_settings`` takes them.
        studies: Folder or DICOMweb address; "" skips its checks.
        host: Address that the server would listen on.
        port: Port that the server would listen on.

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
            "MONAI Label": monai_label,
            "dcmqi": partial(dcmqi, studies),
            "port": partial(port_free, host, port),
        }
    if studies and not is_pacs(studies):
        checks["studies"] = partial(folder, studies)
    findings = {name: _run(check) for name, check in checks.items()}
    try:
        from baps.site.settings import read_settings

        site = read_settings(given)
    except Exception as error:  # As in _run.
        return {**findings, "settings": _failure(error)}
    findings["settings"] = Finding(Status.OK, ", ".join(f"{name}={value}" for name, value in site.labels.items()))
    places = [site.adapters, *_written_places(studies), Path(tempfile.gettempdir())]
    with_settings: dict[str, Callable[[], Finding]] = {
        **({"PACS": partial(pacs, studies, site.pacs_credentials, site.worklist)} if is_pacs(studies) else {}),
        "users": partial(access, site, host),
        "memory, CPUs": partial(memory, site.cache_mb),
        "device": partial(device, site.device),
        "model": partial(model, site),
        **({"3D model": partial(volume_model, site)} if site.volume_black_box else {}),
        **({"organ model": partial(organ_model, site)} if site.organ_model != "bundled" else {}),
        "adapters": partial(adapters, site.adapters),
        "disk": partial(disk, places),
    }
    return findings | {name: _run(check) for name, check in with_settings.items()}


def examine_server(site: Settings, studies: str) -> dict[str, Finding]:
    """Run the checks that make sense while the server runs and serves its model. Nothing is changed.

    Args:
        site: Settings of the server.
        studies: Folder or DICOMweb address.

    Returns:
        Findings by the name of the check.
    """
    places = [site.adapters, *_written_places(studies), Path(tempfile.gettempdir())]
    checks: dict[str, Callable[[], Finding]] = {
        **(
            {"PACS": partial(pacs, studies, site.pacs_credentials, site.worklist), "dcmqi": partial(dcmqi, studies)}
            if is_pacs(studies)
            else {"studies": partial(folder, studies)}
        ),
        "users": partial(access, site, "127.0.0.1"),  # The start has checked the address that it listens on.
        "memory, CPUs": partial(memory, 0),  # The cache is part of what is used already.
        "adapters": partial(adapters, site.adapters),
        "disk": partial(disk, places),
    }
    return {name: _run(check) for name, check in checks.items()}


def _run(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # The other checks must run whatever happened in this one.
        return _failure(error)


def _failure(error: Exception) -> Finding:
    if isinstance(error, BapsError):
        return Finding(Status.FAILED, str(error))
    return Finding(Status.FAILED, f"{type(error).__name__}: {error}", "Fix what the message names, or report a bug.")


def python_version(version: tuple[int, int]) -> Finding:
    """Check that the server's packages support this Python.

    Args:
        version: Major and minor version.

    Returns:
        The finding.
    """
    message = ".".join(map(str, version))
    if (3, 10) <= version <= (3, 12):
        return Finding(Status.OK, message)
    return Finding(Status.FAILED, message, "Install Python 3.10, 3.11 or 3.12, then make clean and make serve again.")


def torch_pair() -> Finding:
    """Check that torch and torchvision were built for each other.

    Returns:
        The finding.
    """
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


def without_server(needed: bool) -> Finding:
    """Report what an installation without the extra ``server`` lacks.

    Args:
        needed: Whether a server is needed; the finding is a failure then.

    Returns:
        The finding.
    """
    status = Status.FAILED if needed else Status.WARNING
    message = "not installed: this machine has the commands and the Python API, but no server"
    return Finding(status, message, "To serve: pip install 'baps-monailabel[server]'")


def package(name: str, below: int) -> Finding:
    """Check that a package is installed in a version that MONAI Label supports.

    Args:
        name: Name of the package.
        below: Major version that is too new.

    Returns:
        The finding.
    """
    remedy = f"pip install -c constraints.txt '{name}<{below}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(Status.FAILED, "not installed", remedy)
    if int(version.partition(".")[0]) >= below:
        return Finding(Status.FAILED, f"{version}, which MONAI Label cannot work with", remedy)
    return Finding(Status.OK, version)


def monai_label() -> Finding:
    """Check that MONAI Label can be imported, in a process of its own.

    Returns:
        The finding.
    """
    command = [sys.executable, "-c", "import monailabel.interfaces.app"]
    done = subprocess.run(  # noqa: S603 (a fixed command)
        command, env=server_environment(), cwd=PACKAGES, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(Status.FAILED, f"It does not import: {last}", "pip install -c constraints.txt -e .")
    return Finding(Status.OK, metadata.version("monailabel"))


def dcmqi(studies: str) -> Finding:
    """Check that the program of dcmqi is installed, which writes DICOM SEG for a PACS.

    Args:
        studies: Folder or DICOMweb address; without a PACS a missing program is only a warning.

    Returns:
        The finding.
    """
    program = shutil.which("itkimage2segimage", path=server_environment()["PATH"])
    if program:
        return Finding(Status.OK, program)
    # Without it the server tries to download it when it starts on a PACS.
    status = Status.FAILED if is_pacs(studies) else Status.WARNING
    return Finding(status, "itkimage2segimage is not on the PATH", "pip install -c constraints.txt dcmqi")


def port_free(host: str, port: int) -> Finding:
    """Check that the server can listen on an address.

    Args:
        host: The address.
        port: The port.

    Returns:
        The finding.

    Raises:
        InputError: If the port is in use or needs more rights, or the host is not this machine.
    """
    check_port(host, port)
    return Finding(Status.OK, f"{port} of {url_host(host)} is free")


def access(site: Settings, host: str) -> Finding:
    """Check who could use the server: its users, or anyone on this machine.

    Args:
        site: The settings of the site.
        host: Address that the server would listen on.

    Returns:
        The finding.

    Raises:
        InputError: If the users or the OpenID provider cannot be read, or if other machines could use the server
            without signing in.
    """
    from baps.site.openid_settings import read_openid
    from baps.site.settings import check_access
    from baps.site.users import Users

    check_access(site)
    check_listening(host, site.requires_login)
    if not site.requires_login:
        return Finding(Status.OK, "open to this machine only, without a login: no users are set")
    allowed = []
    if site.users is not None:
        known = [user for user in Users(site.users).all().values() if not user.expired]
        allowed.append(f"{len(known)} users of {site.users}")
        if not known and site.openid is None:
            remedy = f"baps users add NAME --role annotator --file {site.users}"
            return Finding(Status.WARNING, f"closed to everyone: no user in {site.users} has a valid token", remedy)
    if site.openid is not None:
        allowed.append(f"users to whom {read_openid(site.openid).issuer} gives a role")
    return Finding(Status.OK, f"open only to {' and '.join(allowed)}")


def memory(cache_mb: int) -> Finding:
    """Check that the memory suffices for the server, a training and the cache.

    Args:
        cache_mb: Size of the cache in MB.

    Returns:
        The finding.
    """
    import psutil

    available, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    message = f"{_gigabytes(available)} of {_gigabytes(total)} available, {os.cpu_count()} CPUs"
    needed = _MIN_MEMORY + (cache_mb << 20)
    if available >= needed:
        return Finding(Status.OK, message)
    remedy = f"Server, training and cache need {_gigabytes(needed)}: lower --cache-mb ({cache_mb}) or close programs."
    return Finding(Status.WARNING, message, remedy)


def device(name: str) -> Finding:
    """Check the device that the model will run on. A GPU is needed only if the setting names one.

    Args:
        name: The setting ``device``.

    Returns:
        The finding.
    """
    import torch

    from baps.blackbox.device import device_names

    usable = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if usable else []
    message = f"{name}; GPUs: {', '.join(gpus) or 'none that torch can use'}"
    try:
        names = device_names(name)
    except InputError:
        return Finding(
            Status.FAILED, message, "Give --device auto, cpu, cuda, cuda:1 and so on, or several: cuda:0,cuda:1."
        )
    if any(one.startswith("cuda") and int(one.partition(":")[2] or 0) >= len(gpus) for one in names):
        return Finding(
            Status.FAILED, message, "Install the GPU's driver (nvidia-smi must list it), or give --device auto."
        )
    return Finding(Status.OK, message)


def model(site: Settings) -> Finding:
    """Check that the model loads, is the expected one, and returns a mask for a prompt on a black image.

    Args:
        site: The settings of the site.

    Returns:
        The finding.

    Raises:
        InputError: If the model or its weights cannot be used.
        BapsError: If a remote model cannot be reached.
    """
    import numpy as np

    from baps.blackbox import load_black_box
    from baps.blackbox.weights import KNOWN_SHA256
    from baps.prompts import Prompt

    begun = time.perf_counter()
    black_box = load_black_box(site.black_box, site.weights, site.weights_sha256, site.device, site.remote_model)
    loaded = time.perf_counter()
    capabilities = black_box.capabilities
    middle = capabilities.input_size / 2
    prompt = Prompt(((middle, middle),)) if capabilities.clicks else Prompt(box=(0, 0, middle, middle))
    black_box.segment(np.zeros((1, capabilities.input_size, capabilities.input_size, 3), np.uint8), [prompt])
    replied = time.perf_counter()
    message = (
        f"{capabilities.name}, SHA-256 {capabilities.weights_sha256[:12]}..., loaded in {loaded - begun:.1f} s, first "
        f"mask in {replied - loaded:.2f} s"
    )
    if removed := black_box.removed_replicas:
        return Finding(Status.WARNING, f"{message}. {' '.join(removed)}", "Name fewer replicas in the setting device.")
    if capabilities.preprocessing == "sam" and capabilities.weights_sha256 not in KNOWN_SHA256.values():
        remedy = (
            "If it is MedSAM, or was trained from it, set black_box=medsam: its tensors are those of SAM, but it "
            "expects other images. If it was trained from SAM, ignore this."
        )
        return Finding(Status.WARNING, f"{message}; it is not a published checkpoint of SAM", remedy)
    return Finding(Status.OK, message)


def organ_model(site: Settings) -> Finding:
    """Check that the organ model loads, and report its licence where it needs attention.

    Args:
        site: The settings of the site.

    Returns:
        The finding.

    Raises:
        InputError: If the model cannot be used.
        MissingExtraError: If its packages are not installed.
    """
    from baps.fseft.models import load_organ_model

    begun = time.perf_counter()
    model = load_organ_model(site.organ_model, site.organ_weights, site.organ_weights_sha256, site.device)
    message = (
        f"{model.name}, {len(model.network.classes)} organs, SHA-256 {model.sha256}, loaded in "
        f"{time.perf_counter() - begun:.1f} s"
    )
    return Finding(Status.OK, f"{message}. {model.notice}".rstrip(". "))


def volume_model(site: Settings) -> Finding:
    """Check that the 3D model responds to a prompt, and report what it understands and its licence.

    Args:
        site: The settings of the site.

    Returns:
        The finding.

    Raises:
        InputError: If the model cannot be used.
        BapsError: If its server cannot be reached.
    """
    from baps.blackbox.volumes.loading import load_volume_black_box
    from baps.blackbox.volumes.nninteractive import licence_notice

    begun = time.perf_counter()
    black_box = load_volume_black_box(site.volume_black_box, site.volume_remote_model)  # It asks for one prediction.
    black_box.close()
    capabilities, seconds = black_box.capabilities, time.perf_counter() - begun
    message = f"{capabilities.name}, which answered in {seconds:.1f} s and understands {capabilities.kinds}"
    if capabilities.masks:
        message += ", and masks to correct"
    if site.volume_black_box != "nninteractive":
        return Finding(Status.OK, message)
    return Finding(Status.WARNING, message, f"{licence_notice(capabilities.licence)} Check that you may use them.")


def adapters(root: Path) -> Finding:
    """Check that adapters can be saved. The first training makes the folder.

    Args:
        root: Folder of the adapter store.

    Returns:
        The finding.
    """
    existing = _nearest(root)
    if not existing.is_dir():
        return Finding(Status.FAILED, f"{existing} is not a folder", "Give another folder with --adapters.")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            Status.FAILED, f"{existing} cannot be written to", f"{_OWN} Or give another one with --adapters."
        )
    return Finding(Status.OK, str(root) if root.exists() else f"{root}, which the first training will make")


def disk(places: list[Path]) -> Finding:
    """Check that there is free space where the server writes.

    Args:
        places: Folders that the server writes to.

    Returns:
        The finding.
    """
    free = {_nearest(place): shutil.disk_usage(_nearest(place)).free for place in places}
    message = ", ".join(f"{_gigabytes(size)} at {place}" for place, size in free.items())
    if min(free.values()) < _MIN_DISK:
        return Finding(Status.WARNING, message, f"Free some space: less than {_gigabytes(_MIN_DISK)} is left.")
    return Finding(Status.OK, message)


def folder(studies: str) -> Finding:
    """Check that the folder of studies can be used, and report what is in it.

    Args:
        studies: The folder.

    Returns:
        The finding.

    Raises:
        InputError: If it is not a folder.
    """
    from baps.annotations.label_files import unused_labels
    from baps.io import images_folder

    check_studies(studies)
    root = Path(studies)
    if not os.access(root, os.R_OK | os.X_OK):
        return Finding(Status.FAILED, f"{root} cannot be read", _OWN)
    kinds = _kinds_of_images(root)
    message = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no images"
    images, warnings = images_folder(root), []
    unserved = _unserved(images)
    if unserved.series:
        message += f"; {unserved.series} DICOM series in nested folders, which are not served"
        warnings.append(
            f"The server reads one series from each folder directly in {images}. Move the folder of each series there, "
            f"or convert it: baps convert SERIES_FOLDER {images}. Or serve the series from a PACS."
        )
    if unserved.files:
        message += f"; {unserved.files} image files in nested folders, which are not served"
        warnings.append(f"Move the image files directly into {images}.")
    if unserved.loose:
        message += "; DICOM files that are not in the folder of a series, which are not served"
        warnings.append(f"Move the files of each series into a folder of its own in {images}.")
    if not kinds and not warnings:
        warnings.append(f"Put images directly into {images}: NIfTI or NRRD files, or one folder per DICOM series.")
    for sentence in unused_labels(root):
        unused, _, remedy = sentence.partition("; they are not used. ")
        message += f"; {unused}, and are not used"
        warnings.append(remedy)
    if not os.access(root, os.W_OK):
        message += "; the folder cannot be written to: clicks work, but labels and images are not saved"
        warnings.append(f"To save labels: {_OWN} Mount it with write permission.")
    return Finding(Status.WARNING if warnings else Status.OK, message, " ".join(warnings))


def pacs(studies: str, credentials_file: Path | None = None, worklist: Path | None = None) -> Finding:
    """Check that the PACS responds to DICOMweb requests, and report the first series that match the query.

    Args:
        studies: DICOMweb address of the PACS, and a query.
        credentials_file: The setting ``pacs_credentials``.
        worklist: The setting ``worklist``.

    Returns:
        The finding.

    Raises:
        InputError: If the address, the query, the credentials or the worklist cannot be used.
        MissingExtraError: If the packages of the extra ``server`` are not installed.
    """
    try:
        import requests
    except ImportError as error:
        raise MissingExtraError("The check of a PACS", "server") from error

    check_studies(studies, worklist)
    served = read_pacs_studies(studies)
    prefix = os.environ.get("MONAI_LABEL_QIDO_PREFIX", "").strip("/")
    root = "/".join(part for part in (served.address, prefix) if part)
    credentials = read_pacs_credentials(credentials_file)
    try:
        response = requests.get(
            f"{root}/series",
            params={"limit": str(_SERIES), **served.filters},
            headers={"Accept": "application/dicom+json"},
            auth=credentials.account,
            verify=str(credentials.ca) if credentials.ca else True,
            timeout=_TIMEOUT,
        )
    except requests.exceptions.SSLError as error:
        remedy = "Name the certificate of the PACS's authority: ca in the file that BAPS_PACS_CREDENTIALS names."
        return Finding(Status.FAILED, f"TLS error: {_innermost(error)}", remedy)
    except requests.exceptions.RequestException as error:
        remedy = "Check the address, the firewall, the proxy (NO_PROXY), and that the PACS is running."
        return Finding(Status.FAILED, f"not reachable: {_innermost(error)}", remedy)
    listed = f"; the worklist has {len(Worklist(worklist).studies())} studies" if worklist else ""
    return _interpret_response(
        response.status_code, response.headers.get("Content-Type", ""), response.content, served, listed
    )


def _interpret_response(code: int, kind: str, content: bytes, served: PacsStudies, listed: str) -> Finding:
    """Interpret the response of a PACS to a search for series."""
    root = "Give the root of its DICOMweb service; Orthanc's ends in /dicom-web."
    if code in (401, 403):
        remedy = f"Set an account that may read: in the file BAPS_PACS_CREDENTIALS, or in {' and '.join(ACCOUNT)}."
        return Finding(Status.FAILED, f"refused ({code})", remedy)
    if code == 404:
        return Finding(Status.FAILED, "not the root of a DICOMweb service (404)", root)
    try:
        series = json.loads({200: content, 204: b"[]"}[code])  # 204 means that nothing was found.
        modalities = Counter(str(one.get("00080060", {}).get("Value", ["none"])[0]) for one in series)
        others = sum(not served.matches(one) for one in series)
    except (ValueError, TypeError, AttributeError, LookupError):
        return Finding(
            Status.FAILED,
            f"not a DICOMweb response ({code}, {kind or 'no type'})",
            f"{root} Otherwise see the PACS's log.",
        )
    if not modalities:
        remedy = "Send images to the PACS" + (", or check the query in STUDIES." if served.filters else ".")
        return Finding(Status.WARNING, f"reachable, without series{listed}", remedy)
    shown = ", ".join(f"{count} {name}" for name, count in modalities.most_common())
    message = f"{len(modalities)} modalities in the first {modalities.total()} series: {shown}{listed}"
    if others:
        remedy = f"The PACS ignores {' or '.join(served.filters)} in a search: use other attributes, or a worklist."
        return Finding(Status.WARNING, f"{message}; {others} do not match STUDIES and are not served", remedy)
    return Finding(Status.OK, message)


def _innermost(error: Exception) -> str:
    """Return the message of the innermost of wrapped errors."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return _innermost(inner) if isinstance(inner, Exception) else str(error)


def _kinds_of_images(studies: Path) -> Counter[str]:
    """Count the images that the server would serve, by kind."""
    from baps.io import file_stem, images_folder, list_images

    images = list_images(images_folder(studies))
    return Counter(path.name[len(file_stem(path)) :].lower() or "DICOM series" for path in images)


@dataclass
class _Unserved:
    """Images that are not served.

    Attributes:
        series: Number of DICOM series in nested folders.
        files: Number of image files in nested folders.
        loose: Whether DICOM files without a suffix lie beside the folders of series.
    """

    series: int = 0
    files: int = 0
    loose: bool = False


def _unserved(images: Path) -> _Unserved:
    """Search the first folders below the folder of images for images that are not served."""
    from baps.annotations.history import FOLDER
    from baps.annotations.label_files import LABEL_FOLDERS
    from baps.io import IMAGE_SUFFIXES, is_dicom_folder, list_images

    served = {path.name for path in list_images(images)}
    unserved = _Unserved(loose=not served and is_dicom_folder(images))
    labels = (*LABEL_FOLDERS, FOLDER)
    for place, folders, files in islice(os.walk(images), _FOLDERS):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in labels]
        if Path(place) == images:
            folders[:] = [name for name in folders if name not in served]
            continue
        if is_dicom_folder(Path(place)):
            unserved.series += 1
        else:
            unserved.files += sum(name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") for name in files)
    return unserved


def _written_places(studies: str) -> list[Path]:
    """Return where the server writes labels, or keeps what it fetches from a PACS or converts of read-only studies."""
    if is_pacs(studies) or (studies and not os.access(studies, os.W_OK)):
        named = (os.environ.get(f"MONAI_LABEL_{kind}_CACHE_PATH") for kind in ("DICOMWEB", "DATASTORE"))
        return [Path(next(filter(None, named), Path.home() / ".cache" / "monailabel"))]
    return [Path(studies)] if studies else []


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB"
