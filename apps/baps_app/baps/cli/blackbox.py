"""``baps blackbox``: serve a model of this machine to other machines."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from baps.cli import options
from baps.errors import InputError, MissingExtraError

app = typer.Typer(no_args_is_help=True, help="Serve a model of this machine to other machines.")


@app.callback()
def _commands() -> None:
    """Keep ``serve`` a sub-command, although it is the only one."""


@app.command()
@options.with_settings("black_box", "weights", "weights_sha256", "device", "config")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for HTTP.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for gRPC.")] = 8081,
    name: Annotated[str, typer.Option(help="Name of the model in its address. Default: its own.")] = "",
    hard_masks: Annotated[bool, typer.Option("--hard-masks", help="Return masks, not probabilities.")] = False,
    *,
    settings: dict[str, str],
) -> None:
    """Serve a model by the Open Inference Protocol (v2), for --black-box remote on another machine.

    There is no login. Before you open it to other machines, put a reverse proxy with TLS and a login in front of it.
    """
    from baps.site.server_command import check_port
    from baps.site.settings import read_settings
    from baps.utils.url_host import url_host

    if read_settings(settings).black_box == "remote":
        raise InputError("A remote model is already served. Use its address, or serve a model of this machine.")
    check_port(host, port)
    check_port(host, grpc_port)
    try:
        from baps.blackbox.remote.hosting import host as serve_until_stopped
    except ImportError as error:
        raise MissingExtraError("Serving a model to other machines", "hosting") from error
    _, model = options.load_site(settings)
    name = name or model.capabilities.name
    address = url_host(host)
    http, grpc = f"http://{address}:{port}/{name}", f"grpc://{address}:{grpc_port}/{name}"
    print(f"==> Serving {name} at {http} and {grpc} (stop with Ctrl+C)")
    sys.stdout.flush()
    serve_until_stopped(model, name, host, port, grpc_port, hard_masks)
