"""Batch norm shared by ranks: alone it is torch's, forwards, backwards and in its statistics."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from chexseg.errors import DataError, UsageError
from chexseg.training import batch_norm, draws
from tests.training.small import train


def pair(**options):
    torch.manual_seed(0)
    reference = nn.BatchNorm2d(4, **options)
    nn.init.uniform_(reference.weight)
    nn.init.uniform_(reference.bias)
    shared = nn.BatchNorm2d(4, **options)
    shared.load_state_dict(reference.state_dict())
    holder = nn.Sequential(shared)
    batch_norm.share(holder, torch.device("cpu"))
    return reference, holder[0]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_process_gets_torchs_batch_norm(momentum):
    reference, shared = pair(momentum=momentum)
    assert type(shared) is batch_norm.SharedBatchNorm2d
    for step in range(3):
        x = (5 + step + 2 * torch.randn(3, 4, 5, 6)).requires_grad_()
        y = x.detach().clone().requires_grad_()
        weights = torch.randn(3, 4, 5, 6)
        expected, found = reference(x), shared(y)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
        assert_close(y.grad, x.grad, rtol=1e-3, atol=1e-5)
    for name, value in reference.state_dict().items():
        assert_close(shared.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert_close(shared.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-4)
    assert_close(shared.eval()(x), reference.eval()(x))


def test_other_layers_and_half_precision_are_left_as_they_are():
    holder = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    batch_norm.share(holder, torch.device("cpu"))
    assert [type(m).__name__ for m in holder] == ["Conv2d", "SharedBatchNorm2d", "GroupNorm"]
    assert holder[1](torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


class Pooled(nn.Module):
    """Batch norm of an image that is pooled to one position, as in DeepLabV3: it cannot learn from one image."""

    def __init__(self):
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

    def forward(self, images):
        return self.net(images + self.norm(images.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize(
    "images, batch_size, kind, message",
    [
        (22, 1, UsageError, "--batch_size 1: a batch of the 22 images has a single one.*give --batch_size 2"),
        (3, 2, UsageError, "--batch_size 2: a batch of the 3 images has a single one.*give --batch_size 3"),
        (1, 4, DataError, "one image to train on"),
    ],
)
def test_an_image_that_is_alone_in_its_batch_is_refused_by_name_before_training(
    tmp_path, images, batch_size, kind, message
):
    options = {"order": draws.shuffled(images, 17), "batch_size": batch_size, "num_epochs": 1}
    with pytest.raises(kind, match=message):
        train(tmp_path, model=Pooled(), **options)
    assert not list(tmp_path.glob("*.pt"))
    train(tmp_path, **options)  # a network that can learn from one image does
    train(tmp_path / "enough", model=Pooled(), **(options | {"order": draws.shuffled(4, 17), "batch_size": 2}))
