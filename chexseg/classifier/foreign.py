"""Networks that others saved: which one it is, told from the names and shapes of its tensors, and these tensors under
torchvision's names.

Known are torchvision's own names, timm's, those of segmentation_models_pytorch's encoders, of MoCo's query encoder, of
Lightning's modules (anything may stand before a name), and torchxrayvision's networks of one input channel.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from chexseg.classifier import checkpoints
from chexseg.classifier.choices import ARCHITECTURES
from chexseg.classifier.networks import HEADS, STEMS, build_network
from chexseg.errors import DataError
from chexseg.runtime.checks import some

# torchxrayvision's outputs in their order; where a finding is also CheXpert's, by CheXpert's name.
XRV_TASKS = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis",
    "Pleural Effusion", "Pneumonia", "Pleural Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion",
    "Fracture", "Airspace Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip
XRV_SIZES = {"densenet": 224, "resnet": 512}  # of the input that the published ones were trained with
XRV_THRESHOLDS = "op_threshs"  # not a number for an output that the network was never trained for
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.")  # torchvision's own files before 0.3
_TIMM_STEM = "conv_stem.weight"
# What timm calls the parts of MobileNetV2's blocks: the first block has no expansion.
_TIMM_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_TIMM_BLOCK = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
_TIMM_REST = {
    "conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.18.0", "bn2": "features.18.1",
    "classifier": "classifier.1",
}  # fmt: skip


def strip_prefix(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """The family of a state dict and its tensors under torchvision's names, whatever wrapped them
    (`model.model.conv1.weight`, `module.encoder_q.conv1.weight`, ...). DataError where it is of no known family."""
    for name, stem in {**STEMS, "timm": _TIMM_STEM}.items():
        keys = sorted((k for k in tensors if k == stem or k.endswith("." + stem)), key=len)
        if keys and tensors[keys[0]].ndim == 4 and tensors[keys[0]].shape[1] in (1, 3):
            prefix = keys[0].removesuffix(stem)
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if name == "timm":
                name, own, stem = "mobilenet", _from_timm(own), STEMS["mobilenet"]
            if own[stem].shape[1] == 1:
                own[stem] = in_three_channels(own[stem])
            return name, {_OLD_DENSENET.sub(r"\1\2.", k): v for k, v in own.items() if k != XRV_THRESHOLDS}
    raise DataError(f"{path}: neither a ResNet, a DenseNet nor a MobileNetV2: first key {next(iter(tensors))!r}")


def in_three_channels(weight: Tensor) -> Tensor:
    """The weights (K, 1, h, w) of a first layer for grey images, for three equal channels: the first one counts."""
    return torch.cat([weight, torch.zeros_like(weight).expand(-1, 2, -1, -1)], dim=1)


def _from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's mobilenetv2_100 under torchvision's names."""
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", key) for key in tensors)
    blocks = sorted({(int(block[1]), int(block[2])) for block in found if block})
    renamed = {}
    for key, tensor in tensors.items():
        if block := re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)", key):
            place = blocks.index((int(block[1]), int(block[2])))
            parts = _TIMM_BLOCK if place else _TIMM_FIRST
            new = f"features.{place + 1}.conv.{parts.get(block[3], block[3])}{key[block.end() :]}"
        else:
            first, dot, rest = key.partition(".")
            new = f"{_TIMM_REST.get(first, first)}{dot}{rest}"
        renamed[new] = tensor
    return renamed


def _without_head(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    head = HEADS[name].split(".")[0] + "."
    return {k: v for k, v in tensors.items() if not k.startswith(head) and not k.endswith("num_batches_tracked")}


def infer_architecture(name: str, tensors: Mapping[str, Tensor], path: Path) -> str:
    """The architecture of family `name` whose tensors, head aside, have exactly these names and shapes. DataError with
    the first that differ from the most similar one's."""
    given, nearest, differing = _without_head(tensors, name), "", [""] * (len(tensors) + 10_000)
    for architecture in (a for a in ARCHITECTURES if a.startswith(name)):
        with torch.device("meta"):
            candidate = build_network(architecture, 1)
        found = checkpoints.differences(_without_head(candidate.state_dict(), name), given)
        if not found:
            return architecture
        if len(found) < len(differing):
            nearest, differing = architecture, found
    known = ", ".join(ARCHITECTURES)
    raise DataError(f"{path}: a {name} with unknown shapes; {nearest} differs by {some(differing)}; supported: {known}")


def grey_input(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a network's first layer takes one channel, as torchxrayvision's do."""
    stems = (tensors[k] for k in tensors for s in STEMS.values() if k == s or k.endswith("." + s))
    return any(t.ndim == 4 and t.shape[1] == 1 for t in stems)


def named_outputs(
    name: str, tensors: dict[str, Tensor], thresholds: Tensor | None, path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Of torchxrayvision's network of family `name`: its tensors and the names of its outputs, without those outputs
    that it was never trained for."""
    head = HEADS[name]
    outputs = len(tensors[f"{head}.weight"])
    if outputs != len(XRV_TASKS):
        raise DataError(f"{path}: takes grey images as torchxrayvision's networks do, which have {len(XRV_TASKS)} "
                        f"outputs; it has {outputs}")  # fmt: skip
    if thresholds is None or thresholds.shape != (outputs,):
        return tensors, XRV_TASKS
    known = ~thresholds.isnan()
    tasks = tuple(task for task, kept in zip(XRV_TASKS, known.tolist(), strict=True) if kept)
    rows = {key: tensors[key][known] for key in (f"{head}.weight", f"{head}.bias") if key in tensors}
    return tensors | rows, tasks


def rename_head(tensors: dict[str, Tensor], head: str, path: Path) -> dict[str, Tensor]:
    """Put a linear head that stands under another index (`fc.0`, `classifier.0`) where torchvision has it."""
    start = head.split(".")[0]
    weights = [k for k in tensors if k.startswith(start + ".") and k.endswith("weight") and tensors[k].ndim == 2]
    if len(weights) != 1:
        raise DataError(f"{path}: expected one linear head {head!r}, found {weights or 'none'}")
    old = weights[0].removesuffix(".weight")
    return {(head + k.removeprefix(old) if k.startswith(old + ".") else k): v for k, v in tensors.items()}


def operating_points(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """torchxrayvision's threshold of each output, where the file has them."""
    return next((v for k, v in tensors.items() if k.rpartition(".")[2] == XRV_THRESHOLDS), None)
