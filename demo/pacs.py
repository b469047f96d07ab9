"""Start a PACS with the sample study, and the server, to try OHIF in a browser: ``make pacs``.

Open the address that is printed, and choose the study and the mode MONAI Label. Ctrl+C stops both; adapters stay in
``demo-output/pacs``. If the system does not let users isolate Orthanc from other machines, nothing is started unless
they may reach it: ``make pacs OPEN=1``.
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
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    reachable: Annotated[
        bool, typer.Option("--open", help="Let other machines reach the PACS, if this cannot be prevented.")
    ] = False,
) -> None:
    """Start the PACS and the server, and wait."""
    console = Console(soft_wrap=True, highlight=False)
    if message := orthanc.missing():
        raise SystemExit(message)
    try:
        check_port("127.0.0.1", port)
    except InputError as error:
        raise SystemExit(str(error)) from None
    _OUT.mkdir(parents=True, exist_ok=True)
    log, server = _OUT / "server.log", f"http://127.0.0.1:{port}"
    settings = {"labels": "spleen=2,liver=1", "adapters": str(_OUT / "adapters")}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # So that both programs are stopped too.
    try:
        with (
            temporary_folder() as folder,
            orthanc.running_orthanc(folder, reachable=reachable) as address,
        ):
            orthanc.store(address, _SAMPLES)
            console.print(f"==> The PACS (Orthanc) is at {address}. Its store is removed at the end.")
            command, environment = serving_command(f"{address}/dicom-web", "127.0.0.1", port, settings)
            environment["MONAI_LABEL_DATASTORE_CACHE_PATH"] = f"{folder}/cache"
            console.print(f"==> Starting the server, which takes about 15 seconds. Its log is {log}.")
            with running(command, environment, f"{server}/info/", log) as process:
                console.print(f"==> Open {server}/ohif/ . Ctrl+C stops both.")
                process.wait()
    except BapsError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        console.print("==> Stopped.")


if __name__ == "__main__":
    typer.run(main)
