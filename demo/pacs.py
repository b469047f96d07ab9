"""A PACS and the server beside it, to try in a browser: ``make pacs``.

Orthanc with the sample study, on loopback, and the server on its DICOMweb. Open the address that is printed, choose the
study and the mode MONAI Label. Ctrl-C ends both; adapters stay in ``demo-output/pacs``. Where the system does not let
Orthanc be kept on loopback, nothing is started, unless others may reach it: ``make pacs OPEN=1``.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from baps.demo.server import running
from baps.errors import BapsError, InputError
from baps.site.server_command import check_port, serving_command
from baps.utils.temporary_folder import temporary_folder
from demo import orthanc

_ROOT = Path(__file__).resolve().parents[1]
_SAMPLES = _ROOT / "sample-data" / "dicom"
_OUT = _ROOT / "demo-output" / "pacs"


def main(
    port: Annotated[int, typer.Option(help="Of the server.")] = 8000,
    reachable: Annotated[
        bool, typer.Option("--open", help="Others may reach the PACS, where that cannot be prevented.")
    ] = False,
) -> None:
    """Start both and wait."""
    console = Console(soft_wrap=True, highlight=False)
    if said := orthanc.missing():
        raise SystemExit(said)
    try:
        check_port("127.0.0.1", port)
    except InputError as error:
        raise SystemExit(str(error)) from None
    _OUT.mkdir(parents=True, exist_ok=True)
    log, server = _OUT / "server.log", f"http://127.0.0.1:{port}"
    settings = {"labels": "spleen=2,liver=1", "adapters": str(_OUT / "adapters")}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Both programs are stopped then, too.
    try:
        with (
            temporary_folder() as folder,
            orthanc.running_orthanc(folder, reachable=reachable) as address,
        ):
            orthanc.store(address, _SAMPLES)
            console.print(f"==> The PACS (Orthanc) is at {address}. Its store is gone when this ends.")
            command, environment = serving_command(f"{address}/dicom-web", "127.0.0.1", port, settings)
            environment["MONAI_LABEL_DATASTORE_CACHE_PATH"] = f"{folder}/cache"
            console.print(f"==> The server starts, some 15 seconds; its log is {log}.")
            with running(command, environment, f"{server}/info/", log) as process:
                console.print(f"==> Open {server}/ohif/ . Ctrl-C ends both.")
                process.wait()
    except BapsError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        console.print("==> Stopped.")


if __name__ == "__main__":
    typer.run(main)
