"""Say in words what is special about a version of a label, for people who look at a list of versions."""

from __future__ import annotations

from baps.annotations.history import Version


def describe(version: Version) -> list[str]:
    """Describe what is special about a version: who confirmed or restored it, and whether it is disputed or damaged.

    Args:
        version: the version.

    Returns:
        Remarks of a few words.
    """
    info = version.info
    remarks = [f"made by {info['model']}"] if info.get("model") else []
    remarks += ["damaged: restore it from your backup"] if info.get("damaged") else []
    remarks += ["not confirmed"] if info.get("confirmed") is False else []
    remarks += ["found in the folder"] if info.get("found") else []
    if info.get("restored"):
        by = f" by {info['restored_by']}" if info.get("restored_by") else ""
        remarks.append(f"restored from {info['restored']}{by}")
    for organ, standing in (info.get("disputed") or {}).items():
        before = f"the version by {standing['author'] or 'an unnamed author'} ({standing['version']})"
        remarks.append(
            f"{organ} is disputed: trainings use {before} until a trainer confirms this one (baps labels confirm)"
        )
    confirmed = info.get("confirmed_by") or {}
    remarks += [f"{organ} confirmed by {who or 'nobody who has a name'}" for organ, who in confirmed.items()]
    return remarks
