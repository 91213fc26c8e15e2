"""Segmentation networks, their samples, the choice of thresholds, and masks at the original size."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from chexseg.classifier import models
from chexseg.data import mask_files, rle
from chexseg.data.images import fit_shape, fit_square, read_image
from chexseg.data.mask_files import MaskFile
from chexseg.data.sample_cache import Sample
from chexseg.errors import DataError, UsageError
from chexseg.evaluation.pooled_iou import PooledIoU
from chexseg.runtime import distributed
from chexseg.segmentation import dataset
from chexseg.segmentation.dataset import SegmentationSet, prepare
from chexseg.segmentation.evaluator import Evaluator, make_loss
from chexseg.segmentation.model import (
    SegmentationSpec,
    build_model,
    load_encoder,
    load_model,
    normalisation_for,
    save_model,
)
from chexseg.segmentation.prediction import Originals, original_masks, predict
from chexseg.training.draws import Draw

TASKS = ("Cardiomegaly", "Edema", "Support Devices")
SPEC = SegmentationSpec("DeepLabV3Plus", "resnet10w32", TASKS, 32, "chexpert", 16)


def save_image(root, image_id, image, split="train"):
    path = root / "CheXpert" / "CheXpert-v1.0" / split / image_id.replace("_", "/", 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def blocks(rng, height, width, coarse=8):
    """A random mask of blocks."""
    small = rng.integers(0, 2, (-(-height // coarse), -(-width // coarse)), dtype=np.uint8)
    return np.kron(small, np.ones((coarse, coarse), np.uint8))[:height, :width]


def coded(mask):
    return rle.encode(mask[None])[0]


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (40, 40), (31, 57)])
def test_masks_move_with_the_image(tmp_path, shape):
    """An image that is its own mask still is, wherever the resized image is clearly black or white."""
    mask = blocks(np.random.default_rng(0), *shape)
    path = save_image(tmp_path, "patient00001_study1_view1_frontal", mask * 255)
    image, found, size = prepare((path, [coded(mask), None]), 32)
    assert size == shape and image.shape == (32, 32) and found.shape == (2, 32, 32)
    height, width = fit_shape(*shape, 32)
    assert not found[1].any() and not found[0, height:].any() and not found[0, :, width:].any()
    clear = (image < 20) | (image > 235)
    assert clear[:height, :width].mean() > 0.3
    assert np.array_equal(found[0][clear], (image > 127)[clear])


def test_a_mask_stored_as_a_square_is_stretched_to_the_images_shape(tmp_path):
    mask = blocks(np.random.default_rng(1), 20, 40, coarse=10)
    path = save_image(tmp_path, "patient00001_study1_view1_frontal", mask * 255)
    square = cv2.resize(mask, (40, 40), interpolation=cv2.INTER_NEAREST)
    found = prepare((path, [coded(square)]), 40).masks
    assert np.array_equal(found[0, :20], mask) and not found[0, 20:].any()


@pytest.fixture
def folder(tmp_path):
    """Three images of different shapes with random masks; the second lacks a task, the third stands in `valid`."""
    rng = np.random.default_rng(3)
    entries = []
    for i, (shape, split) in enumerate([((40, 30), "train"), ((32, 32), "train"), ((20, 50), "valid")]):
        name = f"patient{i:05d}_study1_view1_frontal"
        save_image(tmp_path, name, rng.integers(0, 256, shape, dtype=np.uint8), split)
        tasks = TASKS if i != 1 else TASKS[:2]
        entries.append((name, {task: coded(blocks(rng, *shape)) for task in tasks}))
    mask_files.write(tmp_path / "masks.json", entries)
    return tmp_path


def build_cache(folder, **options):
    given = {"data_dir": folder, "tasks": TASKS, "image_size": 32}
    records = MaskFile(folder / "masks.json")
    return dataset.build_cache(folder / "cache", records, ("train", "valid"), **(given | options))


def test_cache_of_a_masks_file(folder):
    found = build_cache(folder)
    assert found.ids == [f"patient{i:05d}_study1_view1_frontal" for i in range(3)]
    assert [found.size(i) for i in range(3)] == [(40, 30), (32, 32), (20, 50)]
    assert [found[i].masks.any((1, 2)).tolist() for i in range(3)] == [[True] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize("what", ["image", "mask", "tasks", "size"])
def test_cache_follows_its_inputs(folder, what, caplog):
    before = build_cache(folder)
    first, options = before[0], {}
    if what == "image":
        save_image(folder, before.ids[0], np.zeros((40, 30), np.uint8))
    if what == "mask":
        entries = [(name, dict(entry)) for name, entry in MaskFile(folder / "masks.json").items()]
        entries[0][1]["Cardiomegaly"] = coded(np.ones((40, 30), np.uint8))
        mask_files.write(folder / "masks.json", entries)
    if what == "tasks":
        options["tasks"] = TASKS[::-1]
    if what == "size":
        options["image_size"] = 64
    after = build_cache(folder, **options)[0]
    assert ("stale" in caplog.text) == (what in ("image", "mask"))
    expected = {
        "image": first._replace(image=np.zeros((32, 32), np.uint8)),
        "tasks": first._replace(masks=first.masks[::-1]),
    }
    if what in expected:
        assert np.array_equal(after.image, expected[what].image) and np.array_equal(after.masks, expected[what].masks)
    if what == "mask":
        assert after.masks[0].sum() == 32 * 24 and np.array_equal(after.masks[1:], first.masks[1:])
    if what == "size":
        assert after.image.shape == (64, 64)


def test_missing_image_and_empty_file_are_named(folder):
    mask_files.write(folder / "masks.json", [("patient99999_study1_view1_frontal", {})])
    with pytest.raises(DataError, match="patient99999"):
        build_cache(folder)
    mask_files.write(folder / "masks.json", [])
    with pytest.raises(DataError, match="masks.json: no image"):
        build_cache(folder)


class Samples:
    """A cache in memory."""

    def __init__(self, prefix, count):
        rng = np.random.default_rng(count)
        self.ids = [f"{prefix}{i}" for i in range(count)]
        self.samples = [
            Sample(rng.integers(0, 256, (32, 32), dtype=np.uint8), np.stack([blocks(rng, 32, 32)] * 3), (32, 32))
            for _ in range(count)
        ]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return self.samples[index]


def test_sets_follow_one_another():
    both = SegmentationSet([Samples("expert", 2), Samples("none", 0), Samples("pseudo", 3)])
    assert len(both) == 5
    assert [both[Draw(i)]["id"] for i in range(5)] == ["expert0", "expert1", "pseudo0", "pseudo1", "pseudo2"]
    sample = both[Draw(3, (1, 2, 3))]
    assert np.array_equal(sample["image"], Samples("pseudo", 3).samples[1].image)
    assert sample["masks"].dtype == torch.uint8


def test_augmentation_is_a_function_of_the_draw():
    dataset = SegmentationSet([Samples("a", 2)], augment=True)
    first, again, other = (dataset[Draw(0, (17, 0, position))] for position in (4, 4, 5))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["masks"], again["masks"])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(dataset[Draw(0)]["image"], torch.from_numpy(Samples("a", 2).samples[0].image))


def test_model_gives_a_logit_map_per_task():
    model = build_model(SPEC)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert model.segmentation_head[0].in_channels == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "Nothing"}, "Nothing"),
        ({"encoder": "resnet999"}, "resnet999"),
        ({"image_size": 40}, "multiple of 16"),
        ({"architecture": "Unet"}, "--decoder_channels 16"),
    ],
)
def test_what_cannot_be_built_is_wrong_usage(change, named):
    with pytest.raises(UsageError, match=named):
        build_model(SegmentationSpec(**(vars(SPEC) | change)))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.manual_seed(0)
    spec = models.ClassifierSpec("resnet10w32", ("A", "B"), normalisation="imagenet")
    network = models.Classifier(spec)
    models.save_classifier(path, network)
    return path, network.network.state_dict()


def encoder_equals(model, tensors):
    return all(torch.equal(v, tensors[k]) for k, v in model.encoder.state_dict().items())


def test_encoder_starts_from_a_classifier(classifier, tmp_path):
    path, tensors = classifier
    model = build_model(SPEC)
    assert not encoder_equals(model, tensors)
    assert load_encoder(model, SPEC, str(path), "CheXpert") == path
    assert encoder_equals(model, tensors)
    assert normalisation_for(str(path), "CheXpert") == "imagenet"  # as it was trained
    chexpert = models.Classifier(models.ClassifierSpec("resnet10w32", ("a",), normalisation="chexpert"))
    models.save_classifier(tmp_path / "c.ckpt", chexpert)
    for kind in ("CheXpert", "imagenet", ""):
        assert normalisation_for(str(tmp_path / "c.ckpt"), kind) == "chexpert"


def test_encoder_starts_from_a_lightning_or_moco_checkpoint(classifier, tmp_path):
    _, tensors = classifier
    other = {k: v + 1 for k, v in tensors.items()}
    lightning = {"state_dict": {f"model.model.{k}": v for k, v in tensors.items()}, "epoch": 2}
    queries = {f"module.encoder_q.{k}": v for k, v in tensors.items()}
    moco = {"state_dict": {f"module.encoder_k.{k}": v for k, v in other.items()} | queries}
    for kind, content in (("CheXpert", lightning), ("MoCoCXR", moco)):
        torch.save(content, tmp_path / kind)
        model = build_model(SPEC)
        load_encoder(model, SPEC, str(tmp_path / kind), kind)
        assert encoder_equals(model, tensors)
        assert normalisation_for(str(tmp_path / kind), kind) == "chexpert"
    with pytest.raises(DataError, match="encoder_q"):
        load_encoder(model, SPEC, str(tmp_path / "CheXpert"), "MoCoCXR")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.pop("layer1.0.conv2.weight"), r"layer1\.0\.conv2\.weight|unknown shapes"),
        (lambda t: t.update({"layer9.weight": torch.zeros(1)}), r"layer9\.weight|unknown shapes"),
        (lambda t: t.update({"layer1.0.conv2.weight": torch.zeros(32, 32, 1, 1)}), "conv2|unknown shapes"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_encoder_weights_that_do_not_fit_are_named(classifier, tmp_path, spoil, named):
    tensors = dict(classifier[1])
    spoil(tensors)
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=named):
        load_encoder(build_model(SPEC), SPEC, str(tmp_path / "bad.pth"), "CheXpert")


def test_an_encoder_of_another_architecture_is_refused(classifier):
    spec = SegmentationSpec(**(vars(SPEC) | {"encoder": "resnet18"}))
    with pytest.raises(DataError, match="holds a resnet10w32, but --encoder is resnet18"):
        load_encoder(nn.Module(), spec, str(classifier[0]), "CheXpert")


def test_imagenet_weights_are_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = SegmentationSpec(**(vars(SPEC) | {"encoder": "resnet18"}))
    for weights, kind in (("imagenet", ""), ("", "imagenet"), ("imagenet", "imagenet")):
        with pytest.raises(DataError, match=r"resnet18.*no ImageNet weights here; download"):
            load_encoder(nn.Module(), spec, weights, kind)
        assert normalisation_for(weights, kind) == "imagenet"


@pytest.mark.parametrize("weights", ["", "none", "None"])
def test_random_encoder(weights):
    model = build_model(SPEC)
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    assert load_encoder(model, SPEC, weights, "") is None
    assert encoder_equals(model, before)
    assert normalisation_for(weights, "") == "chexpert"
    for kind in ("CheXpert", "MoCoCXR"):
        with pytest.raises(UsageError, match=f"{kind} needs --encoder_weights"):
            normalisation_for(weights, kind)
        with pytest.raises(UsageError, match=f"{kind} needs --encoder_weights"):
            load_encoder(model, SPEC, weights, kind)


def test_saved_model_comes_back_whole(tmp_path):
    model = build_model(SPEC)
    save_model(tmp_path / "best.pth", model.state_dict(), SPEC, {"epoch": 3, "miou": 0.5})
    found, spec, chosen = load_model(tmp_path / "best.pth")
    assert spec == SPEC and chosen == {"epoch": 3, "miou": 0.5} and not found.training
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(found(images), model.eval()(images))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(DataError, match="bare.pth: not a segmentation model"):
        load_model(tmp_path / "bare.pth")


def pooled(rows):
    """A PooledIoU whose table of IoU has these values at two thresholds (others lower) for each task; None: absent."""
    counts = PooledIoU(len(rows))
    for task, row in enumerate(rows):
        for threshold, hits in (row or {}).items():
            # Of 100 true pixels, `hits` exceed `threshold` and no higher one; no false pixel.
            counts.counts[task, 1, round(threshold * 20) + 1] += hits
        if row:
            counts.counts[task, 1, 0] += 100 - sum(row.values())
    return counts


def evaluator(common=()):
    dataset = SegmentationSet([Samples("a", 3)])
    return Evaluator(dataset, SPEC, common=common, batch_size=2, device=torch.device("cpu"))


def test_thresholds_and_score_of_the_validation_set():
    # IoU of task 0: 80% up to 0.3, then 50% up to 0.6. The lowest threshold with the most is 0.
    valid = pooled([{0.3: 30, 0.6: 50}, None, {0.5: 40}])
    train = pooled([{0.2: 90}, {0.4: 70}, None])
    for counts in (valid, train):  # false pixels below each class's own threshold make that threshold the best
        for task in range(3):
            counts.counts[task, 0, 5] += 50
    found = evaluator().summarise(valid, train)
    # Above 0.2 the 50 false pixels (which exceed 5 thresholds, 0 to 0.2) are gone: the best threshold is 0.25.
    assert found["thresholds"] == pytest.approx([0.25, 0.25, 0.25])
    assert found["iou"] == pytest.approx({"Cardiomegaly": 0.8, "Edema": None, "Support Devices": 0.4})
    assert found["miou"] == pytest.approx(0.6)
    assert found["train_miou"] == pytest.approx((90 / 150 + 0.7) / 2)


def test_common_tasks_are_scored_at_the_training_sets_thresholds():
    valid = pooled([{0.3: 30, 0.6: 50}, {0.9: 100}, {0.5: 40}])
    train = pooled([{0.6: 60}, {0.4: 70}, None])
    train.counts[0, 0, 12] += 1000  # false pixels up to 0.55: the best threshold is 0.6
    found = evaluator(common=("Cardiomegaly", "Support Devices")).summarise(valid, train)
    assert found["thresholds"] == pytest.approx([0.6, 0.0, 0.0])
    assert found["common_iou"] == pytest.approx((0.5 + 0.4) / 2)
    assert found["iou"]["Edema"] == pytest.approx(1.0)


def test_a_task_that_occurs_nowhere_takes_one_half():
    found = evaluator().summarise(pooled([{0.3: 30}, None, None]), pooled([None, None, None]))
    assert found["thresholds"] == [0.0, 0.5, 0.5]
    assert found["train_miou"] is None


def test_evaluation_masks_without_a_pixel_of_what_counts_are_refused():
    with pytest.raises(DataError, match="no pixel of Edema"):
        evaluator(common=("Edema",)).summarise(pooled([{0.3: 30}, None, None]), pooled([None, {0.3: 30}, None]))


class Oracle(nn.Module):
    """Answers from the image: a logit of +4 where it is bright."""

    def forward(self, images):
        return torch.where(images[:, :1] > 0, 4.0, -4.0).expand(-1, 3, -1, -1)


def test_evaluator_sees_every_image_once():
    samples = Samples("a", 3)
    for sample in samples.samples:
        sample.image[:] = 255 * sample.masks[0]
        sample.masks[1] = 0
    found = Evaluator(SegmentationSet([samples]), SPEC, batch_size=2, device=torch.device("cpu"))
    counts = torch.zeros(3, 2, 21, dtype=torch.int64)
    counts[:, 1, 20] = 1
    metrics = found(Oracle(), counts)
    # sigmoid(-4) = 0.018: only threshold 0 takes the background too.
    assert metrics["iou"] == {"Cardiomegaly": 1.0, "Edema": None, "Support Devices": 1.0}
    assert metrics["thresholds"] == pytest.approx([0.05, 0.0, 0.05])
    tally = found.tally(Oracle()(torch.ones(2, 3, 32, 32)), {"masks": torch.ones(2, 3, 32, 32)})
    assert tally.sum().item() == 2 * 3 * 32 * 32 and tally[:, 1, 20].tolist() == [2048] * 3


def test_ranks_evaluate_a_share_each_and_agree(monkeypatch):
    def evaluate(rank=0, world_size=1, others=None):
        """This rank's metrics, and what it counted itself."""
        counted = []

        def all_reduce(pooled):
            counted.append(pooled.counts.clone())
            if others is not None:
                pooled.counts += others

        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world_size)
        monkeypatch.setattr(PooledIoU, "all_reduce", all_reduce)
        return evaluator()(Oracle(), pooled([{0.5: 9}] * 3).counts), counted[0]

    alone, whole = evaluate()
    first, second = (evaluate(rank, 2)[1] for rank in (0, 1))
    assert first.sum() == 2 * second.sum() and torch.equal(first + second, whole)
    assert evaluate(0, 2, second)[0] == evaluate(1, 2, first)[0] == alone


def test_loss_normalises_as_told():
    compute_loss = make_loss("chexpert")
    seen = []
    batch = {"image": torch.full((1, 4, 4), 128, dtype=torch.uint8), "masks": torch.zeros(1, 1, 4, 4)}
    loss, logits = compute_loss(lambda x: seen.append(x) or x[:, :1] * 0, batch)
    assert_close(seen[0], torch.full((1, 3, 4, 4), (128 / 255 - 0.5020) / 0.085585))
    assert loss.item() == pytest.approx(1 - 1 / 9)  # 16 pixels at 1/2: (0 + 1) / (8 + 0 + 1)
    assert logits.shape == (1, 1, 4, 4)


def test_original_masks_by_hand():
    """A 2 x 4 image in a 4-px square: the lower half is padding, whatever the network says there."""
    probabilities = np.zeros((3, 4, 4), np.float32)
    probabilities[0, :2, :2] = 1
    probabilities[0, 2:] = 1
    probabilities[1, 2:] = 1
    probabilities[2, :2] = 0.5, 0.5, 1, 1
    found = rle.decode(original_masks(probabilities, (4, 8), (0.5, 0.0, 0.5)))
    expected = np.zeros((3, 4, 8), np.uint8)
    expected[0, :, :4] = 1  # bilinear: 1, 1, 1, 0.75 | 0.25, 0, 0, 0
    expected[2, :, 3:] = 1  # 0.5, 0.5, 0.5, 0.625 | 0.875, 1, 1, 1: 0.5 is not above 0.5
    assert np.array_equal(found, expected)
    at_lower = rle.decode(original_masks(probabilities, (4, 8), (0.2, 0.0, 0.4)))
    expected[0, :, 4] = 1
    expected[2] = 1
    assert np.array_equal(at_lower, expected)


def test_original_masks_equal_torchs_interpolation():
    rng = np.random.default_rng(0)
    probabilities = cv2.GaussianBlur(rng.random((32, 32, 3), np.float32), (0, 0), 2).transpose(2, 0, 1)
    height, width = fit_shape(75, 101, 32)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(probabilities[None, :, :height, :width].copy()), (75, 101), mode="bilinear"
    )[0]
    found = rle.decode(original_masks(probabilities, (75, 101), (0.5, 0.45, 0.55)))
    for mask, plane, threshold in zip(found, large.numpy(), (0.5, 0.45, 0.55), strict=True):
        assert 0 < mask.mean() < 1
        clear = abs(plane - threshold) > 1e-4
        assert np.array_equal(mask[clear], (plane > threshold)[clear])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_predictions_do_not_depend_on_how_images_are_divided(folder, batch_size):
    found = {p.parent.parent.name: p for p in sorted((folder / "CheXpert").rglob("*.png"))}
    paths = {f"{patient}_study1_view1_frontal": path for patient, path in found.items()}
    ids = sorted(paths)

    def predicted(names):
        dataset = Originals(paths, names, 32)
        return dict(predict(Oracle(), SPEC, (0.5,) * 3, dataset, batch_size=batch_size, device=torch.device("cpu")))

    whole = predicted(ids)
    assert list(whole) == ids
    assert whole == {name: predicted([name])[name] for name in ids}
    for name in ids:
        image = read_image(paths[name])
        assert [m["size"] for m in whole[name].values()] == [list(image.shape)] * 3
        small = fit_square(image, 32)
        shape = fit_shape(*image.shape, 32)
        bright = (small[: shape[0], : shape[1]] / 255 > 0.5020).mean()
        assert rle.area(whole[name].values())[0] / image.size == pytest.approx(bright, abs=0.05)
