"""List what needs attention: damaged adapters, lost evidence, harmful choices, and what the checks of the site find."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from baps.server.web.adapter_table import DAMAGED, OrganAdapters, describe_adapter
from baps.server.web.images import OutboxCounts
from baps.server.web.layout import plural
from baps.site.doctor import Finding, Status
from baps.utils.redaction import shorten_paths


@dataclass(frozen=True)
class Warned:
    """Something that needs attention.

    Attributes:
        what: What it is about.
        failed: Whether something does not work.
        message: What is wrong.
        remedy: What to do, or "".
    """

    what: str
    failed: bool
    message: str
    remedy: str


def adapter_warnings(organs: Iterable[OrganAdapters]) -> list[Warned]:
    """List what is wrong with adapters: damaged files, lost evidence, and a version that serves and loses Dice.

    Args:
        organs: The adapters of each organ.

    Returns:
        The warnings.
    """
    warnings = []
    for organ in organs:
        name = describe_adapter(organ.model, organ.organ)
        for note in organ.notes:
            warnings.append(Warned(f"Evidence for {name}", False, note, ""))
        for version in organ.versions:
            if version.state == DAMAGED:
                warnings.append(Warned(f"Adapter of {name}", True, version.sentence, ""))
        now = organ.served
        if now and now.status and now.status.gain and now.status.gain.mean <= 0:
            warnings.append(
                Warned(
                    f"Adapter of {name}",
                    False,
                    f"{now.version} serves because a person chose it, and patients lose Dice: {now.sentence}.",
                    "Withdraw it or roll back, on the page Adapters.",
                )
            )
    return warnings


def finding_warnings(findings: Mapping[str, Finding], shows_paths: bool) -> list[Warned]:
    """List the findings that need attention.

    Args:
        findings: Findings by the name of the check.
        shows_paths: Whether the reader may see paths of this machine.

    Returns:
        The warnings.
    """
    clean = str if shows_paths else shorten_paths
    return [
        Warned(
            check[:1].upper() + check[1:],
            finding.status is Status.FAILED,
            clean(finding.message),
            clean(finding.remedy),
        )
        for check, finding in findings.items()
        if finding.status is not Status.OK
    ]


def outbox_warnings(outbox: OutboxCounts) -> list[Warned]:
    """List what is wrong with the labels that are not in the PACS.

    Args:
        outbox: Their numbers.

    Returns:
        The warnings.
    """
    warnings = []
    if outbox.waiting:
        warnings.append(
            Warned(
                "Labels for the PACS",
                False,
                f"{plural(outbox.waiting, 'label waits', 'labels wait')} on this server to be sent to the PACS.",
                "Nobody needs to submit again: this server sends when the PACS answers. Keep its cache until then.",
            )
        )
    if outbox.rejected:
        warnings.append(
            Warned(
                "Labels for the PACS",
                True,
                f"The PACS refused {plural(outbox.rejected, 'label')}, kept on this server alone.",
                "Ask who runs the PACS why, then submit again. The page Labels lists what was refused.",
            )
        )
    return warnings
