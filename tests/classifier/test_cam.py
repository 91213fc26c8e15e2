"""Closed-form Grad-CAM against autograd and against a loop that follows the paper's equations literally."""

import pytest
import torch

from chexseg.classifier import cam
from chexseg.classifier.models import Classifier, ClassifierSpec

FAMILIES = ["resnet10w32", "resnet18", "resnet50", "densenet121", "mobilenet_v2"]


def make(architecture, three_way=False, tasks=5, seed=0):
    torch.manual_seed(seed)
    model = Classifier(ClassifierSpec(architecture, tuple(f"task{i}" for i in range(tasks)), three_way)).eval()
    for module in model.modules():  # statistics and biases that a mistake would show against
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.05)
            module.bias.data.normal_(0, 0.2)
    torch.nn.init.normal_(model.head.weight, 0, 0.3)
    torch.nn.init.normal_(model.head.bias, 0, 0.3)
    with torch.no_grad():  # no saturated probability, whatever the depth
        model.head.weight /= 0.3 * model.features(torch.randn(1, 3, 64, 64)).abs().mean((2, 3)).norm()
    return model


def by_autograd(features, probabilities_of):
    """Grad-CAM for any differentiable `probabilities_of(features (B, K, h, w)) -> (B, T)`: one short backward pass
    a task, for the whole batch at once."""
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        probabilities = probabilities_of(features)
        maps = []
        for task in range(probabilities.shape[1]):
            # Images of a batch do not touch each other, so the sum's gradient holds each image's own.
            (gradient,) = torch.autograd.grad(probabilities[:, task].sum(), features, retain_graph=True)
            maps.append((gradient.mean((2, 3), keepdim=True) * features).sum(1).relu())
    return torch.stack(maps, 1).detach(), probabilities.detach()


def by_the_equations(model, images):
    """One image, one task, one backward pass from the probability each: Selvaraju et al., eq. 1-2."""
    maps, probabilities = [], []
    for image in images:
        features = model.features(image[None]).detach().requires_grad_()
        outputs = model.outputs_from_features(features)[0]
        row, kept = [], []
        for task in range(len(outputs)):
            p = outputs[task][1:].softmax(0)[1] if model.spec.three_way else outputs[task].sigmoid()
            (gradient,) = torch.autograd.grad(p, features, retain_graph=True)
            total = torch.zeros(features.shape[2:])
            for k in range(features.shape[1]):
                total += gradient[0, k].mean() * features[0, k].detach()
            row.append(total.clamp(min=0))
            kept.append(p.detach())
        maps.append(torch.stack(row))
        probabilities.append(torch.stack(kept))
    return torch.stack(maps), torch.stack(probabilities)


@pytest.mark.parametrize("three_way", [False, True])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_closed_form_is_grad_cam(architecture, three_way):
    model = make(architecture, three_way)
    images = torch.randn(2, 3, 70, 95)  # odd and not square
    maps, probabilities = cam.saliency(model, images)
    expected_maps, expected_probabilities = by_the_equations(model, images)
    assert maps.shape == (2, 5, *model.features(images).shape[2:])
    assert expected_maps.max() > 0
    torch.testing.assert_close(probabilities, expected_probabilities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps, expected_maps, rtol=1e-5, atol=float(1e-5 * expected_maps.max()))


@pytest.mark.parametrize("three_way", [False, True])
@pytest.mark.parametrize("architecture", ["resnet10w32", "densenet121"])
def test_autograd_for_a_batch_equals_the_closed_form(architecture, three_way):
    model = make(architecture, three_way)
    with torch.no_grad():
        features = model.features(torch.randn(3, 3, 64, 64))
        closed, p = cam.closed_form(model, features)
    slow, q = by_autograd(features, lambda f: model.logits_from_features(f).sigmoid())
    torch.testing.assert_close(p, q)
    torch.testing.assert_close(closed, slow, rtol=1e-5, atol=float(1e-5 * slow.max()))


def test_autograd_for_a_head_without_closed_form():
    """Two layers and max pooling: the map must follow the maximum, by hand."""
    features = torch.zeros(1, 1, 2, 2)
    features[0, 0, 1, 0] = 2.0
    maps, p = by_autograd(features, lambda f: f.amax((2, 3)))
    # d max / d A is 1 at one of four positions: alpha = 1/4; map = A / 4.
    torch.testing.assert_close(maps[0, 0], torch.tensor([[0.0, 0.0], [0.5, 0.0]]))
    torch.testing.assert_close(p, torch.tensor([[2.0]]))


def test_by_hand():
    """One channel of ones over 2 x 2, weight 2, bias 0: logit 2, p = 0.8808, alpha = p (1 - p) 2 / 4."""
    model = make("resnet10w32", tasks=1)
    torch.nn.init.zeros_(model.head.weight)
    model.head.weight.data[0, 0] = 2.0
    torch.nn.init.zeros_(model.head.bias)
    features = torch.zeros(1, 256, 2, 2)
    features[0, 0] = 1.0
    maps, p = cam.closed_form(model, features)
    assert p.item() == pytest.approx(0.880797, abs=1e-6)
    assert maps.flatten().tolist() == pytest.approx([0.880797 * 0.119203 * 0.5] * 4, rel=1e-5)


def test_negative_evidence_and_unlikely_findings_vanish():
    model = make("resnet10w32", tasks=1)
    torch.nn.init.constant_(model.head.weight, -1.0)
    assert cam.closed_form(model, torch.ones(1, 256, 3, 3))[0].max() == 0
    torch.nn.init.constant_(model.head.weight, 1.0)
    model.head.bias.data.fill_(-1000.0)
    assert cam.closed_form(model, torch.ones(1, 256, 3, 3))[0].max() == 0


def test_batch_split_and_flip():
    model = make("resnet18")
    with torch.no_grad():
        features = torch.randn(4, 512, 3, 5).relu()
        maps, p = cam.closed_form(model, features)
        for i in range(4):
            one, q = cam.closed_form(model, features[i : i + 1])
            torch.testing.assert_close(one[0], maps[i])
            torch.testing.assert_close(q[0], p[i])
        torch.testing.assert_close(cam.closed_form(model, features.flip(3))[0], maps.flip(3))


@pytest.mark.parametrize("method", ["layercam", "gradcam++"])
def test_other_methods_come_from_a_library(method):
    pytest.importorskip("pytorch_grad_cam")
    model = make("resnet10w32")
    images = torch.randn(2, 3, 64, 64)
    maps, p = cam.saliency(model, images, method)
    assert maps.shape == (2, 5, 2, 2) and 0 <= maps.min() and maps.max() <= 1 and maps.max() > 0
    torch.testing.assert_close(p, cam.saliency(model, images)[1])
