from __future__ import annotations

import torch

from baps.fseft.adapters.landmarks import LandmarkAdapter
from baps.fseft.fitting import Example, FitSettings, fit
from baps.fseft.landmarks import add_landmarks
from baps.fseft.models import FoundationModel

SHAPE = (40, 30, 30)


def _features_with_organ(unet: FoundationModel, organ: int) -> torch.Tensor:
    """Make features (C, H, W, D) in which the model's head finds a cube of one organ and no other organ."""
    assert unet.head is not None
    weights, bias = unet.head.weight.detach().flatten(1), unet.head.bias
    assert bias is not None
    expected = torch.full((3, *SHAPE), -4.0)
    expected[organ, 10:16, 10:16, 10:16] = 4
    return torch.tensordot(torch.linalg.pinv(weights), expected - bias.detach()[:, None, None, None], 1)


def test_vector_from_the_centre_of_an_organ(unet: FoundationModel) -> None:
    image, features = torch.rand(1, *SHAPE), _features_with_organ(unet, 1)
    result = add_landmarks(unet, image, features, spacing=2.0).float()
    looks = unet.channels + 1
    assert result.shape == (2 * looks + 3 * 3, *SHAPE)
    torch.testing.assert_close(result[:1], image, rtol=0, atol=1e-3)
    torch.testing.assert_close(result[1:looks], features, rtol=1e-3, atol=1e-3)
    surroundings = image[0, 18:23, 8:13, 4:9].mean()
    torch.testing.assert_close(result[looks, 20, 10, 6], surroundings, rtol=0, atol=1e-3)
    vectors = result[2 * looks :].view(3, 3, *SHAPE)
    assert not vectors[[0, 2]].any()
    expected = torch.tensor([20 - 12.5, 10 - 12.5, 6 - 12.5]) * 2 / 100
    torch.testing.assert_close(vectors[1, :, 20, 10, 6], expected, rtol=0, atol=1e-3)


def test_tiny_organs_are_ignored(unet: FoundationModel) -> None:
    features = _features_with_organ(unet, 1)
    features[:, 11:] = features[:, :1, :1, :1]  # A slice of 36 voxels is left.
    assert not add_landmarks(unet, torch.rand(1, *SHAPE), features, 2.0)[-9:].any()


def test_adapter_learns_the_position_of_an_organ(unet: FoundationModel) -> None:
    """Only the position relative to another organ, which varies between volumes, distinguishes the organ."""
    generator = torch.Generator().manual_seed(0)

    def example(shift: int) -> Example:
        features = _features_with_organ(unet, 1).roll(shift, 1)
        target = torch.zeros(1, *SHAPE, dtype=torch.bool)
        target[0, 4 + shift : 10 + shift, 18:25, 8:18] = True
        return Example(add_landmarks(unet, torch.rand((1, *SHAPE), generator=generator), features, 10.0), target)

    torch.manual_seed(0)
    adapter = LandmarkAdapter(unet, "gallbladder")
    fitted = fit(adapter, [example(0), example(12)], FitSettings(1e-2, epochs=150, steps=2, points=1000))
    assert fitted.losses[0] > 1, "with the cross-entropy"
    assert all(-1e-6 < progress < 1 for progress in fitted.dices), fitted.dices
    assert fitted.dices[-1] > fitted.dices[0]
    unseen = example(6)
    with torch.no_grad():
        mask = adapter(unseen.inputs[None].float())[0] > 0
    assert 2 * (mask & unseen.target).sum() / (mask.sum() + unseen.target.sum()) > 0.25, "by chance, 0.05"


def test_model_without_classes_uses_features_only(unet: FoundationModel) -> None:
    """Without classes it sees the features of voxels only."""
    bare = FoundationModel(unet.new_body, unet.channels, (), unet.multiple, (), ())
    inputs = add_landmarks(bare, torch.rand(1, *SHAPE), torch.rand(unet.channels, *SHAPE), 2.0)
    assert len(inputs) == 2 * (unet.channels + 1)
    adapter = LandmarkAdapter(bare, "heart")
    augment = adapter.augment(inputs[None].float(), torch.Generator().manual_seed(0))
    assert torch.equal(augment, inputs[None].float())
    assert adapter(augment).shape == (1, 1, *SHAPE)


def test_augmented_bodies(unet: FoundationModel) -> None:
    adapter, generator = LandmarkAdapter(unet, "gallbladder"), torch.Generator().manual_seed(0)
    inputs = torch.ones(1, 2 * (unet.channels + 1) + 9, 4000, 1, 1)
    augment = adapter.augment(inputs, generator)
    assert torch.equal(augment[:, :-9], inputs[:, :-9]), "what a voxel looks like is left as it is"
    vectors = augment[0, -9:, :, 0, 0].view(3, 3, 4000)
    assert len(vectors.flatten(0, 1).T.unique(dim=0)) == 16
    missing = (vectors == 0).all(1)
    assert torch.equal(missing, (vectors == 0).any(1)), "an organ is missing as a whole"
    assert 0.05 < missing.float().mean() < 0.4
    assert 0.05 < vectors[vectors != 0].std() < 0.25
