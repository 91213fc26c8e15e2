"""Pooling heads by hand, their gradients and maps against autograd."""

import math

import pytest
import torch

from chexseg.classifier import cam
from chexseg.classifier.choices import POOLINGS
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.classifier.pooling import LSE_SHARPNESS, pool, spatial_gradient
from chexseg.errors import UsageError
from tests.classifier.test_cam import FAMILIES, by_autograd, by_the_equations, make


def test_by_hand():
    scores = torch.tensor([[[[0.0, math.log(3.0)]]]])  # probabilities 1/2 and 3/4
    assert pool(scores, "average").item() == pytest.approx(math.log(3) / 2)
    assert pool(scores, "pcam").item() == pytest.approx(math.log(3) * 0.75 / 1.25)
    r = LSE_SHARPNESS
    assert pool(scores, "lse").item() == pytest.approx(math.log((1 + 3**r) / 2) / r)
    with pytest.raises(ValueError, match="pooling 'max'"):
        pool(scores, "max")
    with pytest.raises(ValueError, match="pooling 'max'"):
        spatial_gradient(scores, "max")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_constant_map_pools_to_its_value_and_nothing_overflows(pooling):
    for value in (-300.0, -2.0, 0.0, 300.0):
        scores = torch.full((1, 1, 3, 3), value)
        assert pool(scores, pooling).item() == pytest.approx(value)
        assert spatial_gradient(scores, pooling).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_autograds(pooling):
    torch.manual_seed(0)
    scores = (3 * torch.randn(2, 4, 5, 6, dtype=torch.float64)).float().requires_grad_()
    (expected,) = torch.autograd.grad(pool(scores, pooling).sum(), scores)
    torch.testing.assert_close(spatial_gradient(scores.detach(), pooling), expected, rtol=1e-4, atol=1e-6)


def pooled(architecture, pooling, output_stride=32):
    average = make(architecture)
    spec = ClassifierSpec(architecture, average.spec.tasks, pooling=pooling)
    model = Classifier(spec, output_stride=output_stride).eval()
    model.load_state_dict(average.state_dict())
    return model


@pytest.mark.parametrize("pooling", ["lse", "pcam"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_maps_are_grad_cam(architecture, pooling):
    model = pooled(architecture, pooling)
    images = torch.randn(2, 3, 70, 95)
    maps, probabilities = cam.saliency(model, images)
    expected_maps, expected_probabilities = by_the_equations(model, images)
    assert expected_maps.max() > 0
    torch.testing.assert_close(probabilities, expected_probabilities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=float(1e-5 * expected_maps.max()))


@pytest.mark.parametrize("architecture", ["resnet10w32", "densenet121", "mobilenet_v2"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_maps_of_dense_features_are_autograds(architecture, pooling):
    model = pooled(architecture, pooling, output_stride=16)
    with torch.no_grad():
        features = model.features(torch.randn(2, 3, 64, 64))
        maps, p = cam.closed_form(model, features)
    slow, q = by_autograd(features, lambda f: model.logits_from_features(f).sigmoid())
    assert maps.shape == (2, 5, 4, 4)
    torch.testing.assert_close(p, q)
    torch.testing.assert_close(maps, slow, rtol=1e-4, atol=float(1e-5 * slow.max()))


def test_average_pooling_of_scores_is_the_linear_head():
    model = make("densenet121")
    features = torch.randn(2, 1024, 3, 4)
    torch.testing.assert_close(
        pool(model.score_maps(features), "average"), model.outputs_from_features(features), rtol=1e-4, atol=1e-5
    )


def test_three_way_heads_are_averaged_only():
    with pytest.raises(UsageError, match="--pooling pcam needs one output per finding"):
        ClassifierSpec("resnet10w32", ("a",), three_way=True, pooling="pcam")


def naive_average(model, images, scales, mirror):
    """Every variant by itself, in the words of the docstring."""
    maps = []
    for scale in scales:
        size = tuple(round(side * scale) for side in images.shape[2:])
        scaled = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        maps.append(cam.saliency(model, scaled)[0] * scale**2)
        if mirror:
            maps.append(cam.saliency(model, torch.flip(scaled, [3]))[0].flip([3]) * scale**2)
    grid = max((m.shape[2:] for m in maps), key=lambda shape: shape[0])
    return torch.stack([torch.nn.functional.interpolate(m, grid, mode="bilinear") for m in maps]).mean(0)


@pytest.mark.parametrize("scales, mirror", [((1.0,), True), ((1.0, 1.5), False), ((2.0, 0.5), True)])
def test_averaged_maps(scales, mirror):
    model, images = make("resnet10w32"), torch.randn(2, 3, 64, 64)
    maps, p = cam.averaged_saliency(model, images, scales=scales, mirror=mirror)
    torch.testing.assert_close(maps, naive_average(model, images, scales, mirror))
    if scales[0] == 1:
        torch.testing.assert_close(p, cam.saliency(model, images)[1])


@pytest.mark.parametrize("architecture", ["resnet10w32", "densenet121"])
def test_a_denser_map_refines_the_coarse_one(architecture):
    coarse, dense = make(architecture), pooled(architecture, "average", output_stride=16)
    images = torch.randn(2, 3, 64, 96)
    (old, p), (new, q) = (cam.averaged_saliency(model, images) for model in (coarse, dense))
    # The same values at the coarse positions, but for what the finer average changes in p (1 - p) and, behind a ReLU,
    # in the share of positions that are open.
    old, new = (m / (v * (1 - v))[..., None, None] for m, v in ((old, p), (new, q)))
    if architecture != "densenet121":
        torch.testing.assert_close(new[..., ::2, ::2], old, rtol=1e-3, atol=float(1e-5 * old.max()))
    assert new.shape[2:] == (4, 6) and 0.5 < new.max() / old.max() < 2


def test_one_scale_without_a_mirror_is_the_plain_map():
    model, images = make("resnet10w32"), torch.randn(2, 3, 64, 64)
    for found, plain in zip(cam.averaged_saliency(model, images), cam.saliency(model, images), strict=True):
        assert torch.equal(found, plain)
    with pytest.raises(ValueError, match="no scale"):
        cam.averaged_saliency(model, images, scales=())


def test_maps_average_to_a_symmetric_one_for_a_symmetric_image():
    model = make("resnet10w32")
    image = torch.randn(1, 3, 64, 64)
    maps, _ = cam.averaged_saliency(model, image + image.flip(3), mirror=True)
    torch.testing.assert_close(maps, maps.flip(3))
