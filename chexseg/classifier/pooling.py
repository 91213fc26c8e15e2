"""From a map of logits to one logit per finding: three ways of pooling, and the weight that each position has in it.

The head is linear, so pooling features and then weighing them is the same as pooling each finding's map of logits
s = W A + b. The gradient of the pooled logit with respect to s at each position, which `spatial_gradient` knows in
closed form, is all that Grad-CAM needs of a head.
"""

import math

import torch
from torch import Tensor

# Sharpness of log-sum-exp pooling: 0 is the mean, infinity the maximum (Wang et al. 2017 use up to 12).
LSE_SHARPNESS = 5.0


def pool(scores: Tensor, pooling: str) -> Tensor:
    """Maps of logits (B, T, h, w) -> logits (B, T).

    average  their mean, as in the paper's networks
    lse      log-sum-exp: (1/r) log mean exp(r s) (Pinheiro & Collobert 2015)
    pcam     their mean weighted by each position's probability (Ye et al. 2020, probabilistic CAM)
    """
    flat = scores.flatten(2)
    if pooling == "average":
        return flat.mean(2)
    flat = flat.float()
    if pooling == "lse":
        return (torch.logsumexp(LSE_SHARPNESS * flat, 2) - math.log(flat.shape[2])) / LSE_SHARPNESS
    if pooling == "pcam":
        return (_attention(flat) * flat).sum(2)
    raise ValueError(f"pooling {pooling!r}: expected average, lse or pcam")


def spatial_gradient(scores: Tensor, pooling: str) -> Tensor:
    """d pool(s) / d s at each position: (B, T, h, w), of the shape of `scores`."""
    flat = scores.flatten(2).float()
    if pooling == "average":
        gradient = torch.full_like(flat, 1 / flat.shape[2])
    elif pooling == "lse":
        gradient = (LSE_SHARPNESS * flat).softmax(2)
    elif pooling == "pcam":
        attention = _attention(flat)
        pooled = (attention * flat).sum(2, keepdim=True)
        # d w_j / d s_i = w_i (1 - p_i) (delta_ij - w_j), summed over j with s_j.
        gradient = attention * (1 + (1 - flat.sigmoid()) * (flat - pooled))
    else:
        raise ValueError(f"pooling {pooling!r}: expected average, lse or pcam")
    return gradient.view(scores.shape)


def _attention(flat: Tensor) -> Tensor:
    """Probabilities (B, T, n) that sum to 1 over positions; in logarithms, so that they do where all are tiny."""
    return torch.nn.functional.logsigmoid(flat).softmax(2)
