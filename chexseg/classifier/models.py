"""Classifiers: building them, telling them from a checkpoint's tensors, and handing their encoder to other networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from chexseg.classifier import checkpoints
from chexseg.classifier.choices import ARCHITECTURES, MAX_SIDE, OUTPUT_STRIDES, POOLINGS
from chexseg.classifier.output_stride import set_output_stride
from chexseg.classifier.pooling import pool
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError, UsageError

# Each family's first tensor, which shows what precedes the names of a state dict, and where its linear head is.
STEMS = {"resnet": "conv1.weight", "densenet": "features.conv0.weight", "mobilenet": "features.0.0.weight"}
HEADS = {"resnet": "fc", "densenet": "classifier", "mobilenet": "classifier.1"}


def narrow(network: ResNet) -> None:
    """Give a ResNet one block a stage and 32, 64, 128, 256 channels: a ninth of ResNet-18's work."""
    network.inplanes = 32
    network.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(32)
    for stage, planes in enumerate((32, 64, 128, 256), start=1):
        setattr(network, f"layer{stage}", network._make_layer(BasicBlock, planes, 1, stride=1 if stage == 1 else 2))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet10w32(num_classes: int = 1000) -> ResNet:
    """The embedded default's classifier: half of ResNet-18's depth and half of its width."""
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    narrow(network)
    network.fc = nn.Linear(256, num_classes)
    return network


def family(architecture: str) -> str:
    """resnet, densenet or mobilenet. UsageError for a network that is not supported."""
    if architecture not in ARCHITECTURES:
        raise UsageError(f"{architecture!r} is not a supported classifier; choose from {', '.join(ARCHITECTURES)}")
    return next(name for name in STEMS if architecture.startswith(name))


def build_network(architecture: str, num_outputs: int) -> nn.Module:
    """The bare network with a linear head of `num_outputs`, randomly initialised."""
    family(architecture)
    if architecture == "resnet10w32":
        return resnet10w32(num_outputs)
    return getattr(torchvision.models, architecture)(num_classes=num_outputs)


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


def strip_prefix(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """The family of a state dict and its tensors under torchvision's names, whatever wrapped them
    (`model.model.conv1.weight`, `module.encoder_q.conv1.weight`, ...)."""
    for name, stem in STEMS.items():
        keys = sorted((k for k in tensors if k == stem or k.endswith("." + stem)), key=len)
        if keys and tensors[keys[0]].ndim == 4 and tensors[keys[0]].shape[1] == 3:
            prefix = keys[0].removesuffix(stem)
            return name, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    raise DataError(f"{path}: neither a ResNet, a DenseNet nor a MobileNetV2: first key {next(iter(tensors))!r}")


def _signature(tensors: Mapping[str, Tensor], head: str) -> dict[str, tuple[int, ...]]:
    names = (k for k in tensors if not k.startswith(head.split(".")[0]) and not k.endswith("num_batches_tracked"))
    return {k: tuple(tensors[k].shape) for k in names}


def infer_architecture(name: str, tensors: Mapping[str, Tensor], path: Path) -> str:
    """The architecture of family `name` whose tensors, head aside, have exactly these names and shapes."""
    wanted = _signature(tensors, HEADS[name])
    for architecture in (a for a in ARCHITECTURES if a.startswith(name)):
        with torch.device("meta"):
            candidate = build_network(architecture, 1)
        if _signature(candidate.state_dict(), HEADS[name]) == wanted:
            return architecture
    raise DataError(f"{path}: a {name} with unknown shapes; supported: {', '.join(ARCHITECTURES)}")


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
    load_exactly(model.network, tensors, path)
    return model.eval()


def _read_foreign(
    tensors: Mapping[str, Tensor], path: Path, tasks: Sequence[str]
) -> tuple[dict[str, Tensor], ClassifierSpec]:
    """Tensors under torchvision's names, and what their shapes tell of the network."""
    name, tensors = strip_prefix(tensors, path)
    architecture = infer_architecture(name, tensors, path)
    tensors = _rename_head(tensors, HEADS[name], path)
    outputs = len(tensors[HEADS[name] + ".weight"])
    if outputs not in (len(tasks), 3 * len(tasks)):
        raise DataError(f"{path}: its head has {outputs} outputs, expected {len(tasks)} or {3 * len(tasks)}")
    return tensors, ClassifierSpec(architecture, tuple(tasks), three_way=outputs == 3 * len(tasks))


def _rename_head(tensors: dict[str, Tensor], head: str, path: Path) -> dict[str, Tensor]:
    """Put a linear head that stands under another index (`fc.0`, `classifier.0`) where torchvision has it."""
    start = head.split(".")[0]
    weights = [k for k in tensors if k.startswith(start + ".") and k.endswith("weight") and tensors[k].ndim == 2]
    if len(weights) != 1:
        raise DataError(f"{path}: expected one linear head {head!r}, found {weights or 'none'}")
    old = weights[0].removesuffix(".weight")
    return {(head + k.removeprefix(old) if k.startswith(old + ".") else k): v for k, v in tensors.items()}


def load_exactly(
    network: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, but_for: tuple[str, ...] = ()
) -> None:
    """Load weights by name; a missing, unexpected or misshapen tensor outside the modules `but_for` is a DataError."""
    network.load_state_dict(check_fit(network, tensors, path, but_for=but_for), strict=False)


def check_fit(
    network: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, but_for: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The tensors that `load_exactly` loads; DataError where they do not fit the network."""

    def matters(key: str) -> bool:
        return not key.endswith("num_batches_tracked") and not key.startswith(
            tuple(b + "." for b in but_for) or ("\0",)
        )

    own = network.state_dict()
    loaded = {k: v for k, v in tensors.items() if matters(k)}
    for key in (k for k in own if matters(k)):
        if key not in loaded:
            raise DataError(f"{path}: no tensor {key!r}, which {type(network).__name__} needs")
        if own[key].shape != loaded[key].shape:
            raise DataError(f"{path}: {key!r} is {tuple(loaded[key].shape)}, expected {tuple(own[key].shape)}")
    unexpected = [k for k in loaded if k not in own]
    if unexpected:
        raise DataError(f"{path}: unexpected tensor {unexpected[0]!r} for {type(network).__name__}")
    return loaded


def load_backbone(path: Path, *, keys: str = "") -> tuple[str, dict[str, Tensor]]:
    """Architecture and headless tensors (torchvision names) of a classifier checkpoint, an ImageNet file, or, with
    `keys="encoder_q"`, a MoCo checkpoint's query encoder."""
    tensors = checkpoints.state_dict(checkpoints.load_checkpoint(path), path)
    if keys:
        tensors = {k: v for k, v in tensors.items() if keys in k.split(".")}
        if not tensors:
            raise DataError(f"{path}: no tensor under {keys!r}; is this a MoCo checkpoint?")
    name, tensors = strip_prefix(tensors, path)
    head = HEADS[name].split(".")[0]
    tensors = {k: v for k, v in tensors.items() if not k.startswith(head + ".")}
    return infer_architecture(name, tensors, path), tensors


def trained_normalisation(path: Path, default: str) -> str:
    """How the checkpoint says that its network's input was normalised; `default` where it says nothing."""
    spec = checkpoints.load_checkpoint(path).get("spec")
    found = spec.get("normalisation", default) if isinstance(spec, dict) else default
    if found not in tuple(NORMALISATION):
        names = ", ".join(NORMALISATION)
        raise DataError(f"{path}: spec, field 'normalisation': {str(found)[:60]!r} is not one of {names}")
    return found


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
