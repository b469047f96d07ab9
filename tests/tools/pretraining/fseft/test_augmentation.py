from __future__ import annotations

import torch

from tools.pretraining.fseft.augmentation import _bias_field, _recolour, random_view


def _volume() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.full((1, 40, 36, 30), 0.3)
    labels = torch.zeros((1, 40, 36, 30), dtype=torch.uint8)
    image[:, 12:28, 10:26, 8:22] = 0.8
    labels[:, 12:28, 10:26, 8:22] = 3
    return image, labels


def test_view_is_fixed_by_the_generator() -> None:
    first, same, different = (random_view(*_volume(), 24, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], same[0])
    assert torch.equal(first[1], same[1])
    assert not torch.equal(first[0], different[0])


def test_image_and_labels_are_transformed_alike() -> None:
    """After any change of intensities, voxels are similar within the organ and different outside it."""
    apart = []
    for seed in range(20):
        image, labels = random_view(*_volume(), 24, torch.Generator().manual_seed(seed))
        assert image.shape == labels.shape == (1, 24, 24, 24)
        assert labels.dtype == torch.uint8
        assert 0 <= image.min() <= image.max() <= 1
        inside = labels == 3
        assert inside.any()
        spread = (image[inside].var() + image[~inside].var()).sqrt()
        apart.append(float((image[inside].mean() - image[~inside].mean()).abs() / spread))
    assert sorted(apart)[4] > 1


def test_recoloured_organ_differs_from_the_rest_and_keeps_its_edges() -> None:
    image, labels = torch.full((1, 24, 24, 24), 0.5), torch.zeros((1, 24, 24, 24), dtype=torch.uint8)
    labels[:, 2:10], labels[:, 14:22] = 1, 2
    recoloured = _recolour(image, labels, torch.Generator().manual_seed(0))
    assert torch.equal(recoloured[:, 11:13], image[:, 11:13])
    one, other = recoloured[:, 4:8], recoloured[:, 16:20]
    assert one.std() < 1e-6
    assert other.std() < 1e-6
    assert len({round(float(part.mean()), 3) for part in (one, other, image)}) == 3


def test_bias_field_is_smooth_and_as_strong_as_asked() -> None:
    flat, strong = (_bias_field(torch.Size((24, 24, 24)), by, torch.Generator().manual_seed(0)) for by in (0.0, 0.4))
    assert torch.equal(flat, torch.ones(1, 24, 24, 24))
    assert 0.1 < strong.log().std() < 0.6
    assert strong.log().diff(dim=1).abs().max() < 0.2
