"""IRNet/train_irnet.py on six small images: what it leaves, learns, goes on from and refuses."""

import json

import pytest
import torch

import constants
from chexseg.classifier import models
from chexseg.data import hdf5_files
from chexseg.data.images import normalise
from chexseg.irnet import affinity, boundary_net
from chexseg.irnet.dataset import RelationSet
from chexseg.training.draws import Draw
from tests.irnet.six_films import MODEL, SIZE, assert_one_line, run

pytestmark = pytest.mark.usefixtures("six_films_environment")


def test_training_leaves_a_network_and_a_log(relation_run, six_films):
    saved = six_films / "base" / "weakly_supervised" / "saved_models"
    model, spec = boundary_net.load(saved / MODEL)
    lines = [json.loads(line) for line in (saved / "ir_model_hdf5_lr_0.01_weight_decay_0.0" / "log.jsonl").open()]
    assert spec.architecture == "resnet10w32"
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    # Two batches an epoch: the last epoch's last step is step 5 of 6, lr x (1 - 5 / 6)^0.9.
    assert lines[-1]["lr"] == pytest.approx(0.01 * (1 / 6) ** 0.9)
    best = torch.load(saved / MODEL, weights_only=True)["metrics"]
    assert best["train_loss"] == min(line["train_loss"] for line in lines)
    classifier = models.load_classifier(six_films / "classifier.ckpt", constants.OBSERVATIONS)
    for name, tensor in classifier.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.backbone.network.state_dict()[name], tensor), name


def test_training_learns(relation_run):
    """More epochs on six images without scaling: the loss falls well below a blank network's log 2."""
    dataset = RelationSet(hdf5_files.open_train_set(relation_run), hdf5_files.open_ir_labels(relation_run), SIZE)
    torch.manual_seed(0)
    model = boundary_net.build(boundary_net.BoundarySpec("resnet10w32"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    samples = [dataset[Draw(i)] for i in range(6)]
    images, labels = (torch.stack([s[k] for s in samples]) for k in ("image", "labels"))
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = affinity.relation_loss(model(normalise(images, "imagenet")), labels, 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] < 0.65


def test_trained_again_it_is_done(relation_run, six_films, capsys):
    classifier = ("--backbone_weights", six_films / "classifier.ckpt")
    network = six_films / "base" / "weakly_supervised" / "saved_models" / MODEL
    before = network.read_bytes()
    assert run("IRNet/train_irnet.py", *classifier, "--num_epochs", 3, "--batch_size", 3, "--radius", 3) == 0
    assert network.read_bytes() == before
    assert run("IRNet/train_irnet.py", *classifier, "--num_epochs", 3, "--batch_size", 3, "--radius", 4) == 1
    assert "radius was 3, is 4" in capsys.readouterr().err


def test_optimiser_is_the_papers(relation_run, six_films, monkeypatch):
    given, plain = {}, torch.optim.SGD

    def spy(parameters, **options):
        given.update(options)
        return plain(parameters, **options)

    monkeypatch.setattr(torch.optim, "SGD", spy)
    options = ("--backbone_weights", six_films / "classifier.ckpt", "--lr", "0.02", "--weight_decay", "0.25")
    assert run("IRNet/train_irnet.py", *options, "--num_epochs", 1, "--radius", 2) == 0
    assert given == {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.25}
    saved = six_films / "base" / "weakly_supervised" / "saved_models"
    assert (saved / "best_ir_model_hdf5_lr_0.02_weight_decay_0.25.pth").is_file()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--map_dir", "nowhere"], 1, "convert_to_hdf5.py"),
        (["--radius", "0"], 2, "--radius"),
        (["--backbone_weights", "none.ckpt"], 1, "none.ckpt: no such"),
        (["--backbone_weights", "imagenet"], 1, "no ImageNet weights"),
        (["--backbone", "vgg16"], 2, "vgg16"),
    ],
)
def test_wrong_input_ends_in_one_line(relation_run, options, status, words, capsys):
    assert_one_line(run("IRNet/train_irnet.py", *options), status, words, capsys)
