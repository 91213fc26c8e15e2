"""Grad-CAM (Selvaraju et al. 2017, eq. 1-2) of all tasks of a batch, on the scale of the paper's code.

With A the last feature map (K, h, w), alpha_k the mean over positions of d p_c / d A_k and p_c the *probability*, the
map is ReLU(sum_k alpha_k A_k). Differentiating p_c and not its logit multiplies the map by p_c (1 - p_c): an unlikely
finding has a map near zero, whose threshold mask is then empty. Where the network ends in global pooling and a linear
layer, the gradient is known without a backward pass.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.classifier.models import Classifier
from chexseg.classifier.pooling import spatial_gradient
from chexseg.errors import DataError


def closed_form(model: Classifier, features: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, T, h, w) and probabilities (B, T) from feature maps (B, K, h, w), without a gradient.

    With average pooling d logit_c / d A_k(i, j) = W_ck / (h w), and W_ck [A_k > 0] / (h w) where a ReLU stands between
    features and pooling (DenseNet). Other poolings have W_ck g_c(i, j), where g is `pooling.spatial_gradient`.
    """
    area = features.shape[2] * features.shape[3]
    weights = model.logit_weights().to(features.dtype) / area
    if model.spec.pooling != "average":
        maps = torch.einsum("btk,bkhw->bthw", weights[None] * _gain(model, features), features)
    elif model.family == "densenet":
        alpha = weights[None] * (features > 0).to(features.dtype).mean((2, 3))[:, None]
        maps = torch.einsum("btk,bkhw->bthw", alpha, features)
    else:
        maps = torch.einsum("tk,bkhw->bthw", weights, features)
    probabilities = model.logits_from_features(features).sigmoid()
    return maps.relu() * (probabilities * (1 - probabilities))[..., None, None], probabilities


def _gain(model: Classifier, features: Tensor) -> Tensor:
    """The sum over positions of a pooling's gradient, (B, T, 1), or (B, T, K) where a ReLU shuts some of them off."""
    gradient = spatial_gradient(model.score_maps(features), model.spec.pooling).to(features.dtype)
    if model.family == "densenet":
        return torch.einsum("bthw,bkhw->btk", gradient, (features > 0).to(features.dtype))
    return gradient.sum((2, 3))[..., None]


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


@torch.no_grad()
def averaged_saliency(
    model: Classifier,
    images: Tensor,
    method: str = "gradcam",
    *,
    scales: Sequence[float] = (1.0,),
    mirror: bool = False,
) -> tuple[Tensor, Tensor]:
    """`saliency` averaged over `scales` of the images and, with `mirror`, over their mirror images too, as IRN does.

    The maps have the size of the largest scale's. Those of Grad-CAM fade as 1 / (h w) with their own size; here they
    keep the values that they have at stride 32 and scale 1, where the paper's thresholds expect them. The probabilities
    are those of the images as they are, at the first scale: a mirrored chest is no chest that the classifier knows.
    """
    maps, probabilities = [], None
    for scale in scales:
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        scaled = images
        if size != list(images.shape[-2:]):
            scaled = F.interpolate(images, size, mode="bilinear", antialias=True)
        plain, of_scale = saliency(model, scaled, method)
        probabilities = of_scale if probabilities is None else probabilities
        gain = (scale * 32 / model.output_stride) ** 2 if method == "gradcam" else 1.0
        maps.append(plain * gain)
        if mirror:
            maps.append(saliency(model, scaled.flip(-1), method)[0].flip(-1) * gain)
    if probabilities is None:
        raise ValueError("no scale to average over")
    if len(maps) == 1:
        return maps[0], probabilities
    grid = max((m.shape[-2:] for m in maps), key=lambda shape: shape[0] * shape[1])
    resized = [m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="bilinear") for m in maps]
    return torch.stack(resized).mean(0), probabilities
