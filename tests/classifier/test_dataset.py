"""The classifier's data: labels and images stay together, batches are full, augmentation is a function of its key."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chexseg.classifier.dataset import aurocs, predict, read_batches
from chexseg.classifier.labelled import LabelledImages, cached_pixels, label_array
from chexseg.classifier.models import Classifier, ClassifierSpec
from chexseg.data import chexpert
from chexseg.data.chexpert import ImageSet
from chexseg.training.draws import Draw

N, SIZE = 5, 32
TASKS = ("Edema", "Fracture")


@pytest.fixture
def images(tmp_path):
    """Image i is uniformly 40 i bright; odd sizes."""
    rows = []
    for i in range(N):
        path = tmp_path / f"CheXpert/CheXpert-v1.0/train/patient{i}/study1/view1_frontal.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((33 + i, 47), 40 * i, np.uint8)).save(path)
        rows.append({"Path": str(path.relative_to(tmp_path / "CheXpert")), "Edema": i % 2, "Fracture": 0})
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    frame = chexpert.read_labels(tmp_path / "train.csv", TASKS, {})
    return ImageSet(tmp_path, frame, tmp_path / "train.csv")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_batches_are_full_and_in_order(images, batch_size, workers):
    seen = []
    for ids, pixels, sizes in read_batches(images, images.ids, SIZE, batch_size, workers):
        assert pixels.shape == (batch_size, SIZE, SIZE)
        for name, image, size in zip(ids, pixels, sizes, strict=True):
            if name is None:
                assert (image == 0).all()
                continue
            i = int(name.split("_")[0].removeprefix("patient"))
            assert (image == 40 * i).all() and tuple(size) == (33 + i, 47)
            seen.append(name)
    assert seen == images.ids


def test_cached_images_keep_their_labels(images, tmp_path):
    pixels = cached_pixels(images, tmp_path / "cache", SIZE, 0)
    dataset = LabelledImages(pixels, label_array(images.frame, TASKS), augment=False)
    for i in (4, 0, 3):
        sample = dataset[Draw(i, (1, 2))]
        assert sample["id"] == f"patient{i}_study1_view1_frontal"
        assert (sample["image"] == 40 * i).all() and sample["labels"].tolist() == [i % 2, 0]


def test_augmentation_depends_on_the_key_alone(images, tmp_path):
    pixels = cached_pixels(images, tmp_path / "cache", SIZE, 0)
    dataset = LabelledImages(pixels, np.zeros((N, 2), np.float32), augment=True)
    assert (dataset[Draw(3)]["image"] == 120).all()  # no key: evaluation
    assert (dataset[Draw(3, (0, 0, 0))]["image"] != 120).any()


def test_predictions_do_not_depend_on_the_batch_size(images, tmp_path):
    torch.manual_seed(0)
    model = Classifier(ClassifierSpec("resnet10w32", TASKS, image_size=SIZE)).eval()
    pixels = cached_pixels(images, tmp_path / "cache", SIZE, 0)
    dataset = LabelledImages(pixels, np.zeros((N, 2), np.float32), augment=False)
    one, three = (predict(model, dataset, b, torch.device("cpu")) for b in (1, 3))
    assert one.shape == (N, 2) and 0 < one.min() and one.max() < 1
    np.testing.assert_allclose(one, three, rtol=1e-5)


def test_aurocs_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.3], [0.1, 0.4]])
    labels = np.array([[1, 0], [0, 0], [1, 0], [-1, np.nan]], np.float32)
    # Edema: positives 0.9 and 0.3 against the negative 0.8: one of two pairs is in order. Fracture: no positive.
    assert aurocs(probabilities, labels, TASKS) == {"Edema": 0.5}
