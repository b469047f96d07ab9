"""``baps adapters``: list, show, add, publish, roll back, withdraw, and the evidence for them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from baps.cli.audit_log import add_audit_line, private_files
from baps.cli.console import Console
from baps.cli.options import Adapters, given_settings
from baps.errors import BapsError, InputError

if TYPE_CHECKING:
    from baps.adapters.adapter_file import HasStateDict
    from baps.registry.store import AdapterStore

app = typer.Typer(no_args_is_help=True, callback=private_files, help="List, show, add, publish and roll back adapters.")

Label = Annotated[str, typer.Argument(help="The organ, or 'shared' for the adapter of clicks without a label.")]
console = Console(soft_wrap=True, highlight=False)

_VERSION_KEYS = ("label", "version", "parent", "created", "adapter_sha256", "scores", "label_versions")
"""Keys of a record that the store sets for its own version, and evidence, which a file cannot prove."""


def _store(root: str) -> AdapterStore:
    from baps.registry.store import AdapterStore
    from baps.site.settings import read_settings

    return AdapterStore(read_settings(given_settings(adapters=root)).adapters)


def _label(name: str) -> str:
    return "" if name == "shared" else name


@app.command("list")
def list_adapters(adapters: Adapters = "") -> None:
    """List every version, what is known of it, and which one is served.

    The status is that of the evidence: candidate, on trial, published, withdrawn or rejected. The gain is the likely
    one for the next patient, with a 90 % interval. Before and after are the Dice that the training measured.
    """
    from baps.registry.evidence import read_statuses

    store = _store(adapters)
    if not store.labels():
        console.print(f"There are no adapters in {store.root} yet. A training makes them.", markup=False)
        return
    table = Table("label", "version", "served", "status", "patients", "gain", "before", "after", "images")
    for label in store.labels():
        statuses = read_statuses(store, label)
        for version in store.versions(label):
            served = "yes" if store.published(label) == version else ""
            try:
                record = store.record(label, version)
            except BapsError:  # List the others; `show` says what to do.
                table.add_row(escape(label or "shared"), version, served, "damaged", "", "", "", "", "")
                continue
            verdict = record["verdict"] or {}
            numbers = [
                f"{verdict[key]:.3f}" if {"before", "after"} <= set(verdict) else "" for key in ("before", "after")
            ]
            images = str(record.get("black_box_images", ""))  # The organ model's adapters query no black box.
            known = ["candidate" if "scores" in record else record["status"], "", ""]
            if status := statuses.get(version):
                known = [status.state.value, str(status.patients), status.gain.text() if status.gain else ""]
            table.add_row(escape(label or "shared"), version, served, *known, *numbers, images)
    console.print(table)


@app.command()
def show(label: Label, version: str, adapters: Adapters = "") -> None:
    """Show the record of one version."""
    console.print_json(json.dumps(_store(adapters).record(_label(label), version)))


@app.command()
def evidence(
    label: Label,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the confidence sequences: a PNG or PDF file.")
    ] = None,
    adapters: Adapters = "",
) -> None:
    """Show what is known of a label's versions, since when, and what every patient contributed.

    A patient counts once, as a hash. The confidence sequence holds for all patients at once, however often one looks:
    it contains the true mean gain with a probability of 95 %.
    """
    from baps.evaluation.claims import confidence_sequence
    from baps.registry.evidence import read_evidence, read_statuses

    store = _store(adapters)
    found, statuses = read_evidence(store, _label(label)), read_statuses(store, _label(label))
    for note in found.notes:
        console.print(note, style="yellow", markup=False)
    if not statuses:
        console.print(f"There is no evidence for adapters of {label} yet. A training makes it.", markup=False)
        return
    sequences = {}
    for version, status in statuses.items():
        console.print(f"{version}{' (served)' if status.serves else ''}: {status.sentence()}", markup=False)
        stream = found.gate.open(version, status.black_box)
        differences = stream.differences()
        sequences[version] = differences, confidence_sequence(differences)
        if status.is_active and len(stream):
            table = Table("patient", "measured", "difference", "confidence sequence")
            rows = zip(stream.patients, stream.measured(), differences, sequences[version][1], strict=True)
            for patient, measured, difference, (low, high) in rows:
                table.add_row(patient, measured, f"{difference:+.3f}", f"{low:+.2f} to {high:+.2f}")
            console.print(table)
    history = Table("time", "version", "status", "served", title="History")
    for change in found.history:
        served = "yes" if change.get("serves") else ""
        history.add_row(str(change.get("time")), str(change.get("version")), str(change.get("sentence")), served)
    console.print(history)
    if plot:
        from baps.cli.evidence_plot import draw_evidence

        draw_evidence(plot, label, sequences)
        console.print(f"The plot is {plot}.", markup=False)


@app.command()
def publish(label: Label, version: str, adapters: Adapters = "") -> None:
    """Serve a version from the next click on. It may be any version, even one that could not be checked."""
    _publish(_store(adapters), label, version, adapters)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="Adapter of baps adapt.")],
    label: Label,
    publish: Annotated[bool, typer.Option("--publish", help="Serve it from the next click on.")] = False,
    adapters: Adapters = "",
) -> None:
    """Add the adapter of a file as a new version. It is not served until you publish it."""
    store = _store(adapters)
    adapter, record = _read_for(store.root, file)
    try:
        model, weights = record["black_box"]["name"], record["black_box"]["weights_sha256"]
    except (KeyError, TypeError):
        raise InputError(f"The record of {file} does not name the model that it was trained for.") from None
    about = {"verdict": None, **{key: value for key, value in record.items() if key not in _VERSION_KEYS}}
    version = store.add(_label(label), adapter, about, record.get("status", "unverified"))
    add_audit_line("add an adapter", adapter=f"{label}/{version}", adapters=adapters)
    console.print(f"{label} {version} was trained for {model} with weights {weights[:12]}....", markup=False)
    if publish:
        _publish(store, label, version, adapters)
    else:
        folder = f" --adapters {shlex.quote(adapters)}" if adapters else ""
        console.print(f"To serve it, run baps adapters publish {shlex.quote(label)} {version}{folder}.", markup=False)


@app.command()
def rollback(label: Label, adapters: Adapters = "") -> None:
    """Serve the previous version from the next click on. Run it twice to go back two versions."""
    from baps.registry.evidence import record_choice

    store = _store(adapters)
    before = store.published(_label(label))
    with record_choice(store, _label(label)):
        now = store.roll_back(_label(label))
    add_audit_line("roll back an adapter", adapter=f"{label}/{now or 'none'}", adapters=adapters)
    _print_served(store, label, before, now)


@app.command()
def withdraw(label: Label, adapters: Adapters = "") -> None:
    """Serve the unadapted model from the next click on. All versions are kept."""
    from baps.registry.evidence import record_choice

    store = _store(adapters)
    before = store.published(_label(label))
    with record_choice(store, _label(label)):
        store.withdraw(_label(label))
    add_audit_line("withdraw an adapter", adapter=label, adapters=adapters)
    console.print(_served_now(label, before, None), markup=False)


def _read_for(root: Path, file: Path) -> tuple[HasStateDict, dict[str, Any]]:
    """Read the file of an adapter, which must be of the kind that a folder of adapters is for.

    Raises:
        InputError: If the file cannot be read, or the folder is for adapters of another kind.
    """
    from baps.adapters.adapter_file import read_adapter, read_with
    from baps.adapters.volumes.adapter_file import read_volume_adapter

    if root.name == "organs":
        raise InputError(f"{root} is for adapters of the organ model. Give --adapters the folder above it.")
    is_volume_model = read_with(file, lambda record, _: record.get("dimension") == 3)[0]
    if root.name == "volumes":
        if not is_volume_model:
            raise InputError(
                f"{root} is for adapters of the 3D black box, and {file} is none. Give --adapters the folder above it."
            )
        return read_volume_adapter(file)
    if is_volume_model:
        raise InputError(f"{file} is the adapter of a 3D black box. Give --adapters {root / 'volumes'}.")
    return read_adapter(file)


def _publish(store: AdapterStore, label: str, version: str, adapters: str) -> None:
    from baps.registry.evidence import record_choice

    before = store.published(_label(label))
    with record_choice(store, _label(label)):
        store.publish(_label(label), version)
    add_audit_line("publish an adapter", adapter=f"{label}/{version}", adapters=adapters)
    _print_served(store, label, before, version)


def _print_served(store: AdapterStore, label: str, before: str | None, now: str | None) -> None:
    from baps.registry.evidence import read_statuses

    console.print(_served_now(label, before, now), markup=False)
    if now and (status := read_statuses(store, _label(label)).get(now)) and status.gain:
        console.print(f"{now} is {status.sentence()}.", markup=False, style="yellow" if status.gain.mean <= 0 else None)


def _served_now(label: str, before: str | None, now: str | None) -> str:
    """Return a sentence on the version that is served, before and now."""
    names = [name or "the unadapted model" for name in (before, now)]
    if before == now:
        return f"{label} is served by {names[1]}, as before."
    return f"{label} is now served by {names[1]}, no longer by {names[0]}."
