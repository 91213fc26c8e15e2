"""The boundary network: what is frozen, shapes, backbones, files."""

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from chexseg.classifier import models
from chexseg.errors import DataError, UsageError
from chexseg.irnet import boundary_net
from chexseg.irnet.boundary_net import BoundaryNet, BoundarySpec

TINY = BoundarySpec("resnet10w32")


def network(seed=0, spec=TINY):
    torch.manual_seed(seed)
    return boundary_net.build(spec)


class Pyramid(nn.Module):
    """A stand-in backbone: channels and strides told by hand."""

    def forward(self, images):
        pooled = [torch.nn.functional.avg_pool2d(images, s, ceil_mode=True) for s in (4, 4, 8, 16, 16)]
        return [x.repeat(1, k, 1, 1)[:, :k] for x, k in zip(pooled, (3, 4, 5, 6, 7), strict=True)]


def test_branches_as_the_paper_says():
    model = BoundaryNet(Pyramid(), (3, 4, 5, 6, 7))
    assert len(model.branches) == 5
    for branch, channels in zip(model.branches, (3, 4, 5, 6, 7), strict=True):
        convolution, norm = branch
        assert convolution.weight.shape == (32, channels, 1, 1)
        assert convolution.bias is None
        assert (norm.num_groups, norm.num_channels) == (4, 32)
    assert model.boundary.weight.shape == (1, 160, 1, 1)
    assert model.boundary.bias is not None


def test_forward_step_by_step():
    model = BoundaryNet(Pyramid(), (3, 4, 5, 6, 7))
    images = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    joined = []
    for stage, branch in zip(Pyramid()(images), model.branches, strict=True):
        x = nn.functional.group_norm(nn.functional.conv2d(stage, branch[0].weight), 4, branch[1].weight, branch[1].bias)
        x = nn.functional.interpolate(x, (12, 8), mode="bilinear", align_corners=False)
        joined.append(x.clamp(min=0))
    expected = torch.einsum("bkhw,k->bhw", torch.cat(joined, 1), model.boundary.weight[0, :, 0, 0])
    assert_close(model(images)[:, 0], expected + model.boundary.bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "channels", "strides"),
    [
        ("resnet10w32", (32, 32, 64, 128, 256), (4, 4, 8, 16, 16)),
        ("resnet18", (64, 64, 128, 256, 512), (4, 4, 8, 16, 16)),
        ("resnet50", (64, 256, 512, 1024, 2048), (4, 4, 8, 16, 16)),
        ("densenet121", (64, 256, 512, 1024, 1024), (4, 4, 8, 16, 16)),
        ("mobilenet_v2", (16, 24, 32, 96, 1280), (2, 4, 8, 16, 16)),
    ],
)
def test_stages_of_backbones(architecture, channels, strides):
    with torch.no_grad():
        stages = boundary_net.Stages(architecture).eval()
        found = stages(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in found] == [
        (k, 64 // s, 96 // s) for k, s in zip(channels, strides, strict=True)
    ]
    assert not [name for name in stages.state_dict() if ".fc." in name or "classifier" in name]


def test_stages_are_the_classifiers_own_features_up_to_the_last_stride():
    """All stages but the last are torchvision's; the last has torchvision's weights at twice the resolution."""
    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    stages = boundary_net.Stages("resnet18").eval()
    stages.network.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        expected = [x]
        for stage in (reference.layer1, reference.layer2, reference.layer3):
            expected.append(x := stage(x))
        found = stages(images)
    for one, other in zip(found[:4], expected, strict=True):
        assert_close(one, other)
    assert found[4].shape[-2:] == (4, 4)


@pytest.mark.parametrize("size", [(64, 64), (62, 33), (33, 320), (160, 159)])
def test_logits_stand_on_the_stride_4_grid(size):
    with torch.no_grad():
        logits = network()(torch.zeros(1, 3, *size))
    assert logits.shape == (1, 1, -(-size[0] // 4), -(-size[1] // 4))


def test_backbone_is_frozen_statistics_included():
    model = network().train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in [*model.branches.parameters(), *model.boundary.parameters()]}
    optimizer = torch.optim.SGD(trainable, lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.backbone.state_dict().items())
    assert not model.backbone.network.bn1.training
    assert model.branches.training


def test_batch_does_not_matter():
    model = network().eval()
    images = torch.randn(3, 3, 40, 48)
    with torch.no_grad():
        assert_close(model(images)[1:2], model(images[1:2]), atol=1e-5, rtol=1e-4)


def test_saved_and_loaded(tmp_path):
    model, path = network(1), tmp_path / "net.pth"
    boundary_net.save(path, model.state_dict(), TINY, {"epoch": 2, "train_loss": 0.5})
    loaded, spec = boundary_net.load(path)
    images = torch.randn(1, 3, 32, 32)
    assert spec == TINY
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": network().state_dict()}, path)
    with pytest.raises(DataError, match="other.pth: not a boundary network"):
        boundary_net.load(path)
    weights = network().state_dict()
    weights.pop("boundary.bias")
    boundary_net.save(path, weights, TINY, {})
    with pytest.raises(DataError, match="boundary.bias"):
        boundary_net.load(path)
    with pytest.raises(DataError, match="no such"):
        boundary_net.load(tmp_path / "missing.pth")
    with pytest.raises(UsageError, match="vgg16"):
        boundary_net.build(BoundarySpec("vgg16"))


def classifier_file(path, architecture="resnet10w32", normalisation="chexpert"):
    torch.manual_seed(3)
    spec = models.ClassifierSpec(architecture, ("Edema", "Fracture"), normalisation=normalisation)
    models.save_classifier(path, classifier := models.Classifier(spec))
    return classifier


def test_backbone_from_a_classifier(tmp_path):
    classifier = classifier_file(tmp_path / "classifier.ckpt")
    architecture, normalisation, tensors = boundary_net.read_backbone(tmp_path / "classifier.ckpt")
    assert (architecture, normalisation) == ("resnet10w32", "chexpert")
    model = network()
    boundary_net.load_backbone(model, tensors, tmp_path / "classifier.ckpt")
    assert torch.equal(model.backbone.network.conv1.weight, classifier.network.conv1.weight)
    assert torch.equal(model.backbone.network.layer4[0].conv2.weight, classifier.network.layer4[0].conv2.weight)


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "resnet18"])
def test_backbone_from_torchvisions_file(tmp_path, architecture):
    path = tmp_path / "weights.pth"
    torch.save(getattr(torchvision.models, architecture)().state_dict(), path)
    found, normalisation, tensors = boundary_net.read_backbone(path)
    assert (found, normalisation) == (architecture, "imagenet")
    boundary_net.load_backbone(network(spec=BoundarySpec(architecture)), tensors, path)
    with pytest.raises(DataError, match=f"weights of a {architecture}, not of a resnet50"):
        boundary_net.read_backbone(path, "resnet50")


def test_a_backbone_with_a_hole_is_refused(tmp_path):
    classifier_file(tmp_path / "classifier.ckpt")
    _, _, tensors = boundary_net.read_backbone(tmp_path / "classifier.ckpt")
    tensors.pop("bn1.running_mean")
    with pytest.raises(DataError, match="bn1.running_mean"):
        boundary_net.load_backbone(network(), tensors, tmp_path / "classifier.ckpt")


class OriginalNet(nn.Module):
    """IRN's own network as CheXseg's training saves it: parts under several names, displacements, paths of its loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        network = torchvision.models.resnet50()
        del network.fc
        network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
        self.resnet50 = network
        self.stage1 = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        for number, channels in enumerate((64, 256, 512, 1024, 2048), 1):
            edge = nn.Sequential(nn.Conv2d(channels, 32, 1, bias=False), nn.GroupNorm(4, 32))
            dp = nn.Sequential(nn.Conv2d(channels, 8, 1, bias=False), nn.GroupNorm(8, 8))
            setattr(self, f"fc_edge{number}", edge)
            setattr(self, f"fc_dp{number}", dp)
        self.fc_edge6 = nn.Conv2d(160, 1, 1)
        self.backbone = nn.ModuleList([self.stage1, nn.Sequential(network.layer1)])
        self.edge_layers = nn.ModuleList([self.fc_edge1, self.fc_edge6])
        self.dp_layers = nn.ModuleList([self.fc_dp1])
        self.mean_shift = nn.BatchNorm1d(2, affine=False)
        self.register_buffer("path_indices0", torch.zeros(4, 1, 10, dtype=torch.int64))
        self.register_buffer("disp_target", torch.zeros(1, 2, 4, 1))

    def forward(self, images):
        net, x = self.resnet50, self.stage1(images)
        edges = [self.fc_edge1(x).relu()]
        for number, (stage, factor) in enumerate(
            ((net.layer1, 1), (net.layer2, 2), (net.layer3, 4), (net.layer4, 4)), 2
        ):
            x = stage(x)
            edge = getattr(self, f"fc_edge{number}")(x)
            edges.append(nn.functional.interpolate(edge, scale_factor=factor, mode="bilinear").relu())
        return self.fc_edge6(torch.cat(edges, 1))


@torch.no_grad()
def test_the_originals_file_gives_its_boundaries_and_reports_its_displacements(tmp_path, caplog):
    theirs, path = OriginalNet().eval(), tmp_path / "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
    torch.save(theirs.state_dict(), path)
    with caplog.at_level("INFO"):
        model, spec = boundary_net.load(path)
    assert spec == BoundarySpec("resnet50")
    images = torch.randn(1, 3, 64, 96)
    assert_close(model(images), theirs(images), atol=1e-4, rtol=1e-4)
    unused = "fc_dp1, fc_dp2, fc_dp3, fc_dp4, fc_dp5, mean_shift"
    assert f"{path}: not used, for boundaries do not need displacements: {unused}" in caplog.text
    weights = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc_edge3")}
    torch.save(weights, path)
    with pytest.raises(DataError, match="no tensor 'branches.2.0.weight', no tensor 'branches.2.1.weight'"):
        boundary_net.load(path)
