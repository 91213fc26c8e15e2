"""Grad-CAM (Selvaraju et al. 2017, eq. 1-2) of all tasks of a batch, on the scale of the paper's code.

With A the last feature map (K, h, w), alpha_k the mean over positions of d p_c / d A_k and p_c the *probability*, the
map is ReLU(sum_k alpha_k A_k). Differentiating p_c and not its logit multiplies the map by p_c (1 - p_c): an unlikely
finding has a map near zero, whose threshold mask is then empty. Where the network ends in global pooling and a linear
layer, the gradient is known without a backward pass.
"""

import torch
from torch import Tensor

from chexseg.classifier.models import Classifier
from chexseg.errors import DataError


def closed_form(model: Classifier, features: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, T, h, w) and probabilities (B, T) from feature maps (B, K, h, w), without a gradient.

    d logit_c / d A_k(i, j) = W_ck / (h w); with a ReLU between features and pooling (DenseNet) W_ck [A_k > 0] / (h w).
    """
    area = features.shape[2] * features.shape[3]
    weights = model.logit_weights().to(features.dtype) / area
    if model.family == "densenet":
        alpha = weights[None] * (features > 0).to(features.dtype).mean((2, 3))[:, None]
        maps = torch.einsum("btk,bkhw->bthw", alpha, features)
    else:
        maps = torch.einsum("tk,bkhw->bthw", weights, features)
    probabilities = model.logits_from_features(features).sigmoid()
    return maps.relu() * (probabilities * (1 - probabilities))[..., None, None], probabilities


def by_autograd(features: Tensor, probabilities_of) -> tuple[Tensor, Tensor]:
    """The same for any differentiable `probabilities_of(features (B, K, h, w)) -> (B, T)`: one short backward pass
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


def by_library(model: Classifier, images: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Grad-CAM++ or LayerCAM by the `grad-cam` package (`pip install grad-cam`), each map scaled to 0..1 as it does."""
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise DataError(f"--cam_method {method} needs the package grad-cam: pip install grad-cam") from error
    kind = {"gradcam++": pytorch_grad_cam.GradCAMPlusPlus, "layercam": pytorch_grad_cam.LayerCAM}[method]
    probe = _Probabilities(model)
    with torch.no_grad():
        features = model.features(images)
        probabilities = probe(images)
    maps = torch.zeros(len(images), probabilities.shape[1], *features.shape[2:])
    with torch.enable_grad(), kind(model=probe, target_layers=[probe.last]) as cam:
        for task in range(probabilities.shape[1]):
            targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(task)] * len(images)
            full = torch.from_numpy(cam(input_tensor=images, targets=targets))[:, None]
            maps[:, task] = torch.nn.functional.interpolate(full, features.shape[2:], mode="area")[:, 0]
    return maps.nan_to_num(), probabilities.cpu()


class _Probabilities(torch.nn.Module):
    """The classifier as the library wants it: images to probabilities, with a layer to hook."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model, self.last = model, torch.nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits_from_features(self.last(self.model.features(images))).sigmoid()


@torch.no_grad()
def saliency(model: Classifier, images: Tensor, method: str = "gradcam") -> tuple[Tensor, Tensor]:
    """Maps (B, T, h, w) and probabilities (B, T) of normalised images (B, 3, H, W), float32."""
    if method != "gradcam":
        return by_library(model, images, method)
    return closed_form(model, model.features(images).float())
