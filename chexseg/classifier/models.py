"""Classifiers: building them, telling them from a checkpoint's tensors, and handing their encoder to other networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor, nn

from chexseg.classifier import checkpoints, foreign
from chexseg.classifier.choices import ARCHITECTURES, MAX_SIDE, OUTPUT_STRIDES, POOLINGS
from chexseg.classifier.networks import HEADS, build_network, family
from chexseg.classifier.output_stride import set_output_stride
from chexseg.classifier.pooling import pool
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError, UsageError


@dataclass(frozen=True)
class ClassifierSpec:
    """What the weights of a classifier do not say."""

    KEY: ClassVar[str] = "spec"
    WHAT: ClassVar[str] = "a classifier"
    MADE_BY: ClassVar[str] = "train.py"

    architecture: str = field(metadata={"choices": ARCHITECTURES})
    tasks: tuple[str, ...]
    three_way: bool = False
    image_size: int = field(default=320, metadata={"most": MAX_SIDE})
    normalisation: str = field(default="imagenet", metadata={"choices": tuple(NORMALISATION)})
    output_stride: int = field(default=32, metadata={"choices": OUTPUT_STRIDES, "optional": True})
    pooling: str = field(default="average", metadata={"choices": POOLINGS, "optional": True})

    def __post_init__(self) -> None:
        if self.three_way and self.pooling != "average":
            raise UsageError(f"--pooling {self.pooling} needs one output per finding; --uncertain multiclass has three")


class Classifier(nn.Module):
    """A pooled linear network over chest X-rays.

    With `three_way` heads each task has three outputs (uncertain, negative, positive: the label + 1), and its
    probability is the softmax over the last two (Irvin et al. 2019, U-MultiClass): sigmoid of their difference.
    """

    def __init__(self, spec: ClassifierSpec, *, output_stride: int | None = None):
        """`output_stride`: of features denser than those that the weights are trained with."""
        super().__init__()
        self.spec = spec
        self.family = family(spec.architecture)
        self.network: Any = build_network(spec.architecture, len(spec.tasks) * (3 if spec.three_way else 1))
        self.output_stride = output_stride or spec.output_stride
        set_output_stride(self.network, self.family, spec.output_stride, self.output_stride)

    @property
    def head(self) -> nn.Linear:
        return self.network.get_submodule(HEADS[self.family])

    def features(self, images: Tensor) -> Tensor:
        """The last convolutional feature map A: (B, 3, H, W) -> (B, K, h, w). DenseNet's is before its last ReLU."""
        if self.family != "resnet":
            return self.network.features(images)
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    def outputs_from_features(self, features: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, T), or (B, T, 3) with three-way heads."""
        if self.spec.pooling != "average":
            return pool(self.score_maps(features), self.spec.pooling)
        if self.family == "densenet":
            features = features.relu()
        pooled = features.mean((2, 3))
        outputs = self.network.classifier(pooled) if self.family == "mobilenet" else self.head(pooled)
        return outputs.view(len(outputs), -1, 3) if self.spec.three_way else outputs

    def score_maps(self, features: Tensor) -> Tensor:
        """(B, K, h, w) -> the logit at each position (B, T, h, w), which `pooling.pool` pools."""
        if self.family == "densenet":
            features = features.relu()
        if self.family == "mobilenet":  # whose head drops pooled channels
            features = nn.functional.dropout2d(features, self.network.classifier[0].p, self.training)
        return nn.functional.conv2d(features, self.head.weight[..., None, None], self.head.bias)

    def logits_from_features(self, features: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, T): the number whose sigmoid is the task's probability."""
        outputs = self.outputs_from_features(features)
        return outputs[..., 2] - outputs[..., 1] if self.spec.three_way else outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> raw outputs (B, T) or (B, T, 3), what the training losses take."""
        return self.outputs_from_features(self.features(images))

    def logit_weights(self) -> Tensor:
        """(T, K): the head's rows for `logits_from_features`."""
        weight = self.head.weight
        if not self.spec.three_way:
            return weight
        weight = weight.view(-1, 3, weight.shape[1])
        return weight[:, 2] - weight[:, 1]


def save_classifier(path: Path, model: Classifier) -> None:
    """Write a classifier's weights and spec."""
    checkpoints.save_network(path, model.network.state_dict(), model.spec)


def load_classifier(
    path: Path, tasks: Sequence[str], *, normalisation: str | None = None, output_stride: int | None = None
) -> Classifier:
    """A classifier in eval mode from our checkpoint or a foreign one, whose architecture, task count and three-way
    heads are told from its tensors. `tasks` names a foreign checkpoint's outputs, in order. `normalisation` replaces
    the checkpoint's; `output_stride` asks for denser features than it was trained with."""
    checkpoint = checkpoints.load_checkpoint(path)
    if isinstance(checkpoint.get(ClassifierSpec.KEY), dict):
        tensors, spec, _ = checkpoints.unpack_network(checkpoint, path, ClassifierSpec)
    else:
        tensors, spec = _read_foreign(checkpoints.state_dict(checkpoint, path), path, tasks)
    if normalisation:
        spec = replace(spec, normalisation=normalisation)
    if output_stride and output_stride > spec.output_stride:
        raise UsageError(f"--output_stride {output_stride}: {path} was trained with {spec.output_stride}")
    model = Classifier(spec, output_stride=output_stride)
    checkpoints.load_exactly(model.network, tensors, path)
    return model.eval()


def _read_foreign(
    tensors: Mapping[str, Tensor], path: Path, tasks: Sequence[str]
) -> tuple[dict[str, Tensor], ClassifierSpec]:
    """Tensors under torchvision's names, and what their shapes tell of the network."""
    name, own = foreign.strip_prefix(tensors, path)
    architecture = foreign.infer_architecture(name, own, path)
    own = foreign.rename_head(own, HEADS[name], path)
    if foreign.grey_input(tensors):
        own, names = foreign.named_outputs(name, own, foreign.operating_points(tensors), path)
        size = foreign.XRV_SIZES.get(name, 224)
        return own, ClassifierSpec(architecture, names, image_size=size, normalisation="torchxrayvision")
    outputs = len(own[HEADS[name] + ".weight"])
    if outputs not in (len(tasks), 3 * len(tasks)):
        raise DataError(f"{path}: its head has {outputs} outputs, expected {len(tasks)} or {3 * len(tasks)}")
    return own, ClassifierSpec(architecture, tuple(tasks), three_way=outputs == 3 * len(tasks))


def load_backbone(path: Path, *, keys: str = "") -> tuple[str, dict[str, Tensor]]:
    """Architecture and headless tensors (torchvision names) of our own classifier or one that `foreign` knows, or, with
    `keys="encoder_q"`, a MoCo checkpoint's query encoder."""
    tensors = checkpoints.state_dict(checkpoints.load_checkpoint(path), path)
    if keys:
        tensors = {k: v for k, v in tensors.items() if keys in k.split(".")}
        if not tensors:
            raise DataError(f"{path}: no tensor under {keys!r}; is this a MoCo checkpoint?")
    name, tensors = foreign.strip_prefix(tensors, path)
    head = HEADS[name].split(".")[0]
    tensors = {k: v for k, v in tensors.items() if not k.startswith(head + ".")}
    return foreign.infer_architecture(name, tensors, path), tensors


def trained_normalisation(path: Path, default: str) -> str:
    """How the checkpoint says that its network's input was normalised; `default` where it says nothing."""
    content = checkpoints.load_checkpoint(path)
    if isinstance(spec := content.get(ClassifierSpec.KEY), dict):
        found = spec.get("normalisation", default)
        if found not in tuple(NORMALISATION):
            names = ", ".join(NORMALISATION)
            raise DataError(f"{path}: spec, field 'normalisation': {str(found)[:60]!r} is not one of {names}")
        return found
    return "torchxrayvision" if foreign.grey_input(checkpoints.state_dict(content, path)) else default


def pretrained_backbone(architecture: str, folder: Path | None = None) -> Path:
    """ImageNet weights of torchvision in torch's own cache (or `folder`); DataError with the way out if not there."""
    weights = torchvision.models.get_model_weights(architecture).DEFAULT if architecture != "resnet10w32" else None
    if weights is None:
        raise UsageError(f"{architecture} has no ImageNet weights; train it with train.py")
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise DataError(f"{path}: no ImageNet weights here; download {weights.url} to it, or give a path")
    return path
