"""Denser features are the old ones with others between, in all families; weights keep their names and shapes."""

import pytest
import torch
from torch import nn

from chexseg.classifier import models
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.classifier.output_stride import DilatedAveragePool, set_output_stride
from chexseg.errors import UsageError

FAMILIES = ["resnet10w32", "resnet18", "resnet50", "densenet121", "mobilenet_v2"]


def pair(architecture, trained, output_stride):
    """The same weights with the stride that they are trained with, and denser."""
    torch.manual_seed(0)
    spec = ClassifierSpec(architecture, ("a", "b"), output_stride=trained)
    coarse = Classifier(spec)
    for module in coarse.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0, 0.2)
            module.momentum = 1.0
    coarse.train()(torch.randn(4, 3, 64, 64))  # statistics that keep a signal alive through all layers
    dense = Classifier(spec, output_stride=output_stride).eval()
    dense.load_state_dict(coarse.state_dict())
    return coarse.eval(), dense


@pytest.mark.parametrize("trained, output_stride", [(32, 16), (32, 8), (16, 8)])
@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_the_coarse_features_are_among_the_dense_ones(architecture, trained, output_stride):
    coarse, dense = pair(architecture, trained, output_stride)
    images = torch.randn(1, 3, 64, 96)
    old, new = coarse.features(images), dense.features(images)
    every = trained // output_stride
    assert new.shape[2:] == (64 // output_stride, 96 // output_stride)
    torch.testing.assert_close(new[..., ::every, ::every], old, rtol=1e-4, atol=float(1e-5 * old.abs().max()))
    assert (new[..., 1::every, :] - new[..., ::every, :]).abs().max() > 0.05 * old.abs().max()


@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_a_stride_to_train_with_dilates_nothing(architecture):
    for stride in (16, 8):
        model = Classifier(ClassifierSpec(architecture, ("a",), output_stride=stride)).eval()
        assert model.features(torch.randn(1, 3, 64, 96)).shape[2:] == (64 // stride, 96 // stride)
        assert all(m.dilation == (1, 1) for m in model.modules() if isinstance(m, nn.Conv2d))


def test_pooling_at_stride_one_by_hand():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert DilatedAveragePool(1)(x)[0, 0, 0].tolist() == [2.5, 3.5, 4.5, 5.0]  # at the edge, the last column twice
    assert DilatedAveragePool(2)(x)[0, 0, 0].tolist() == [5.0, 6.0, 6.0, 7.0]
    assert DilatedAveragePool(1)(x)[0, 0, 2].tolist() == [8.5, 9.5, 10.5, 11.0]


def test_an_unknown_stride_is_refused():
    with pytest.raises(ValueError, match="output stride 4: expected one of 32, 16, 8"):
        set_output_stride(nn.Identity(), "resnet", 32, 4)
    with pytest.raises(ValueError, match="output stride 32: coarser than 16"):
        set_output_stride(nn.Identity(), "resnet", 16, 32)


def test_the_stride_is_in_the_file_only_where_it_is_not_32(tmp_path):
    for stride in (32, 16):
        model = Classifier(ClassifierSpec("resnet10w32", ("a",), output_stride=stride))
        models.save_classifier(tmp_path / "c.ckpt", model)
        assert ("output_stride" in torch.load(tmp_path / "c.ckpt")["spec"]) == (stride != 32)
        assert models.load_classifier(tmp_path / "c.ckpt", ()).spec == model.spec
        dense = models.load_classifier(tmp_path / "c.ckpt", (), output_stride=8)
        assert dense.spec == model.spec and dense.features(torch.zeros(1, 3, 64, 64)).shape[2:] == (8, 8)
    with pytest.raises(UsageError, match="--output_stride 32: .*c.ckpt was trained with 16"):
        models.load_classifier(tmp_path / "c.ckpt", (), output_stride=32)
