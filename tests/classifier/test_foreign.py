"""Checkpoints that other projects write: each kind made here as its project makes it, loaded, and run against it."""

import argparse
import os
import pickle
import re
import struct
from pathlib import PurePosixPath

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

import constants
from chexseg.classifier import foreign, models, networks
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.data import safe_loading
from chexseg.data.images import normalise
from chexseg.errors import DataError

TASKS = constants.OBSERVATIONS
# torchxrayvision's own names of its outputs, in its order.
PATHOLOGIES = (
    "Atelectasis Consolidation Infiltration Pneumothorax Edema Emphysema Fibrosis Effusion Pneumonia "
    "Pleural_Thickening Cardiomegaly Nodule Mass Hernia Lung_Lesion Fracture Lung_Opacity Enlarged_Cardiomediastinum"
).split()


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode with statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@torch.no_grad()
def logits(model: nn.Module, size: int = 64) -> torch.Tensor:
    torch.manual_seed(1)
    return model(torch.randn(2, 3, size, size))


def lightning(path, network):
    """As Lightning 0.9 saves the original's module: the network lies two attributes down, beside objects."""
    content = {
        "epoch": 2,
        "global_step": 100,
        "pytorch-lightning_version": "0.9.0",
        "state_dict": {f"model.model.{key}": value for key, value in network.state_dict().items()},
        "hyper_parameters": argparse.Namespace(model_args=argparse.Namespace(model="ResNet18")),
    }
    torch.save(content, path)


@pytest.mark.parametrize("outputs", [14, 42])
@pytest.mark.parametrize("architecture", ["resnet18", "densenet121"])
def test_the_originals_classifier(tmp_path, architecture, outputs):
    network = shaken(getattr(torchvision.models, architecture)(num_classes=outputs))
    path = tmp_path / "epoch=2-chexpert_competition_AUROC=0.89.ckpt"
    lightning(path, network)
    model = models.load_classifier(path, TASKS)
    assert model.spec == ClassifierSpec(architecture, TASKS, three_way=outputs == 42)
    torch.testing.assert_close(logits(model).flatten(1), logits(network))
    if outputs == 42:  # (uncertain, negative, positive): the softmax over the last two
        groups = logits(network).view(2, 14, 3)
        expected = groups[..., 1:].softmax(-1)[..., 1]
        with torch.no_grad():
            torch.manual_seed(1)
            found = model.logits_from_features(model.features(torch.randn(2, 3, 64, 64))).sigmoid()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv2_100"])
def test_timms_networks(tmp_path, name):
    network = shaken(timm.create_model(name, num_classes=14))
    torch.save(network.state_dict(), tmp_path / "a.pth")
    save_file(network.state_dict(), tmp_path / "model.safetensors")  # as timm's files on the hub are
    for file in ("a.pth", "model.safetensors"):
        model = models.load_classifier(tmp_path / file, TASKS)
        assert model.spec.architecture == {"mobilenetv2_100": "mobilenet_v2"}.get(name, name)
        torch.testing.assert_close(logits(model), logits(network), rtol=1e-4, atol=1e-5)
    headless = timm.create_model(name, num_classes=0).state_dict()
    torch.save(headless, tmp_path / "headless.pth")
    architecture, tensors = models.load_backbone(tmp_path / "headless.pth")
    assert architecture == model.spec.architecture and len(tensors) == len(headless)


def test_torchvisions_old_names_of_a_densenet(tmp_path):
    """Its own ImageNet files say `norm.1` where its networks say `norm1`."""
    network = shaken(torchvision.models.densenet121(num_classes=14))
    old = {re.sub(r"(denselayer\d+\.)(norm|conv)(\d)\.", r"\1\2.\3.", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    model = models.load_classifier(tmp_path / "densenet121-a639ec97.pth", TASKS)
    torch.testing.assert_close(logits(model), logits(network))


class XrayDenseNet(nn.Module):
    """torchxrayvision's: torchvision's layers on one channel; its forward pass ends in the classifier's 18 logits."""

    def __init__(self, thresholds: torch.Tensor | None = None):
        super().__init__()
        network = torchvision.models.densenet121(num_classes=18)
        network.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        self.features, self.classifier = network.features, network.classifier
        self.register_buffer("op_threshs", thresholds)

    def forward(self, x):
        pooled = F.adaptive_avg_pool2d(F.relu(self.features(x)), (1, 1))
        return self.classifier(pooled.flatten(1))


@torch.no_grad()
def test_torchxrayvisions_densenet(tmp_path):
    network = shaken(XrayDenseNet())
    torch.save(network.state_dict(), tmp_path / "nih-densenet121.pt")
    model = models.load_classifier(tmp_path / "nih-densenet121.pt", TASKS)
    mapped = {"Effusion": "Pleural Effusion", "Lung_Opacity": "Airspace Opacity"}
    assert model.spec.tasks == tuple(mapped.get(name, name.replace("_", " ")) for name in PATHOLOGIES)
    assert (model.spec.image_size, model.spec.architecture) == (224, "densenet121")
    pixels = torch.randint(0, 256, (2, 96, 96), dtype=torch.uint8)
    theirs = (2 * (pixels.float() / 255) - 1) * 1024  # its own range
    expected = network(theirs[:, None])
    torch.testing.assert_close(model(normalise(pixels, model.spec.normalisation)), expected, rtol=1e-3, atol=1e-3)
    assert models.trained_normalisation(tmp_path / "nih-densenet121.pt", "imagenet") == model.spec.normalisation
    architecture, tensors = models.load_backbone(tmp_path / "nih-densenet121.pt")
    assert architecture == "densenet121" and tensors["features.conv0.weight"].shape == (64, 3, 7, 7)


def test_outputs_that_torchxrayvision_never_trained_are_left_out(tmp_path):
    thresholds = torch.full((18,), 0.1)
    thresholds[[2, 5]] = torch.nan  # a set of weights whose data had no Infiltration and no Emphysema
    network = shaken(XrayDenseNet(thresholds))
    torch.save(network.state_dict(), tmp_path / "chex.pt")
    model = models.load_classifier(tmp_path / "chex.pt", TASKS)
    assert (
        len(model.spec.tasks) == 16 and "Infiltration" not in model.spec.tasks and "Emphysema" not in model.spec.tasks
    )
    kept = [i for i in range(18) if i not in (2, 5)]
    torch.testing.assert_close(model.head.weight, network.classifier.weight[kept])


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("new_format", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_module_that_was_pickled(tmp_path, monkeypatch, new_format, wrapped):
    """As torchxrayvision's published weights are, in the old format; whatever the module holds is not run."""
    monkeypatch.chdir(tmp_path)
    network = shaken(XrayDenseNet())
    network.pathologies, network.bomb, network.where = PATHOLOGIES, Bomb(), PurePosixPath("/scratch")
    content = {"epoch": 3, "model": network} if wrapped else network
    torch.save(content, "xrv.pt", _use_new_zipfile_serialization=new_format)
    found = safe_loading.load_checkpoint("xrv.pt")["state_dict"]
    expected = network.state_dict()
    assert list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    model = models.load_classifier("xrv.pt", TASKS)
    assert len(model.spec.tasks) == 18 and model.spec.normalisation == "torchxrayvision"
    assert os.listdir() == ["xrv.pt"]


def test_a_module_that_holds_itself_ends_and_so_does_a_damaged_one(tmp_path):
    module = nn.Linear(2, 2)
    for _ in range(40):  # 2^40 names
        module = nn.Sequential(module, module)
    torch.save(module, tmp_path / "many.pt")
    with pytest.raises(DataError, match=r"many.pt: (more than 20000 modules|it makes more data)"):
        safe_loading.load_checkpoint(tmp_path / "many.pt")
    torch.save(nn.Linear(300, 300), tmp_path / "cut.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "cut.pt").read_bytes()
    for end in range(len(data) - 1, 0, -9001):
        (tmp_path / "cut.pt").write_bytes(data[:end])
        with pytest.raises(DataError, match="cut.pt: "):
            safe_loading.load_checkpoint(tmp_path / "cut.pt")


def test_a_grey_network_of_another_head_is_named(tmp_path):
    torch.save(timm.create_model("resnet18", in_chans=1, num_classes=14).state_dict(), tmp_path / "grey.pth")
    with pytest.raises(DataError, match="grey.pth: takes grey images .* 18 outputs; it has 14"):
        models.load_classifier(tmp_path / "grey.pth", TASKS)


def test_a_mismatch_names_the_first_keys_that_differ(tmp_path):
    weights = torchvision.models.resnet18(num_classes=14).state_dict()
    weights.pop("layer2.0.bn1.weight")
    weights["layer3.1.conv1.weight"] = torch.ones(2, 2, 3, 3)
    weights["layer9.extra"] = torch.ones(1)
    torch.save(weights, tmp_path / "bad.pth")
    expected = (
        r"bad.pth: a resnet with unknown shapes; resnet18 differs by no tensor 'layer2.0.bn1.weight', "
        r"'layer3.1.conv1.weight' is \(2, 2, 3, 3\), expected \(256, 256, 3, 3\), unexpected tensor 'layer9.extra'"
    )
    with pytest.raises(DataError, match=expected):
        models.load_classifier(tmp_path / "bad.pth", TASKS)


# ---- safetensors ----------------------------------------------------------------------------------------------------


def test_safetensors_are_read_whatever_their_name(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    (tmp_path / "renamed.ckpt").write_bytes((tmp_path / "m.safetensors").read_bytes())
    for name in ("m.safetensors", "renamed.ckpt"):
        found = safe_loading.load_checkpoint(tmp_path / name)
        assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        pickle.dumps({"a": 1}),
        header(b"{}")[:-1],
        header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"\0" * 8),  # shorter than it says
        header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', b"\0" * 4),  # more than its bytes
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 8),  # something behind it
        struct.pack("<Q", 1 << 60) + b"{",
    ],
)
def test_damaged_safetensors_are_named(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"bad.safetensors: damaged, or no"):
        safe_loading.load_checkpoint(tmp_path / "bad.safetensors")


def test_every_architecture_is_told_from_its_own_tensors():
    for name in ("resnet34", "resnet50", "densenet169", "mobilenet_v2"):
        with torch.device("meta"):
            weights = networks.build_network(name, 14).state_dict()
        family, tensors = foreign.strip_prefix({f"net.{k}": v for k, v in weights.items()}, "x.pth")
        assert foreign.infer_architecture(family, tensors, "x.pth") == name


def test_an_encoder_of_segmentation_models_pytorch(tmp_path):
    import segmentation_models_pytorch as smp

    network = smp.Unet("resnet18", encoder_weights=None, classes=3)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    architecture, tensors = models.load_backbone(tmp_path / "model.safetensors")
    own = Classifier(ClassifierSpec("resnet18", ("A",))).network.state_dict()
    assert architecture == "resnet18" and {*own} - {*tensors} == {"fc.weight", "fc.bias"}
    assert torch.equal(tensors["conv1.weight"], network.encoder.conv1.weight)
