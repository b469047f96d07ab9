"""The tone curve of volumes."""

from __future__ import annotations

import torch

from baps.adapters.volumes.tone import FUNCTIONS, VolumeTone


def test_there_are_twelve_numbers_and_untrained_it_changes_nothing() -> None:
    tone = VolumeTone()
    assert sum(one.numel() for one in tone.parameters()) == 12
    cubes = torch.rand(2, 16, 16, 16)
    code = tone.code(torch.tensor([0.2, 0.7])).detach()
    assert torch.allclose(tone.apply_code(cubes, code), cubes)


def test_the_curve_depends_on_the_level() -> None:
    tone = VolumeTone()
    with torch.no_grad():
        tone.slope[0, 0] = 0.5  # Brighter where the clicked tissue is bright.
    code = tone.code(torch.tensor([0.0, 0.5, 1.0])).detach()
    assert torch.allclose(code[:, 0], torch.tensor([-0.5, 0.0, 0.5]))
    changed = tone.apply_code(torch.full((3, 8, 8, 8), 0.5), code)
    assert torch.allclose(changed[:, 0, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_each_function_does_what_its_name_says() -> None:
    cube = torch.linspace(0, 1, 16).view(1, 16, 1, 1).expand(1, 16, 16, 16)
    codes = 0.2 * torch.eye(FUNCTIONS)
    shift, contrast, square, detail = VolumeTone.apply_code(cube.expand(FUNCTIONS, -1, -1, -1), codes)[:, :, 8, 8]
    x = torch.linspace(0, 1, 16)
    assert torch.allclose(shift, (x + 0.2).clamp(0, 1))
    assert torch.allclose(contrast, (x + 0.4 * (x - 0.5)).clamp(0, 1), atol=1e-6)
    assert torch.allclose(square, (x + 0.8 * (x - 0.5) ** 2).clamp(0, 1), atol=1e-6)
    assert torch.allclose(detail[3:13], x[3:13], atol=1e-5)  # A ramp has no detail.
