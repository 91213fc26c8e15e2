"""Stages 3 and 4 on six small images: what they write, what the gates do, what they refuse."""

import json
import os
import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import constants
from chexseg.classifier import models, saliency_maps, saliency_masks, saliency_pickles, saliency_store
from chexseg.data import chexpert, hdf5_files, rle
from chexseg.data.images import normalise, read_image, resize_square
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.irnet import affinity, boundary_net, crf, random_walk
from chexseg.irnet.dataset import OtherFilms, RelationSet, TrainFilms, grid_labels, window
from chexseg.training.draws import Draw

ROOT = Path(__file__).resolve().parents[2]
TASKS = constants.LOCALIZATION_TASKS
IDS = [f"patient{i:05d}_study1_view1_frontal" for i in range(1, 7)]
SIZE, GRID = 48, 12
MODEL = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"


def run(script, *arguments):
    """Run a script in this process; (status, ) of its exit."""
    before = sys.argv
    sys.argv = [str(ROOT / script), *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = before
    return ended.value.code


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """CheXpert's layout with six images of 40 x 52, labels that differ, a classifier, and its run folder with maps."""
    root, rng = tmp_path_factory.mktemp("workspace"), np.random.default_rng(0)
    images = root / "data" / "CheXpert" / "CheXpert-v1.0"
    rows, records = [], []
    for i, name in enumerate(IDS):
        path = images / "train" / name.split("_")[0] / "study1" / "view1_frontal.png"
        path.parent.mkdir(parents=True)
        smooth = cv2.GaussianBlur(rng.integers(0, 256, (40, 52)).astype(np.float32), (0, 0), 5)
        Image.fromarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)).save(path)
        # Image 0 has no finding, image 1 all, the others some; task 3 is uncertain everywhere else, blanks elsewhere.
        labels = {t: (0.0 if i == 0 else 1.0 if i == 1 or (i + k) % 4 == 0 else np.nan) for k, t in enumerate(TASKS)}
        if i > 1:
            labels["Airspace Opacity"] = -1.0
        listed = f"CheXpert-v1.0/train/{name.split('_')[0]}/study1/view1_frontal.png"
        rows.append({"Path": listed, "Sex": "Male", "Age": 50, "Frontal/Lateral": "Frontal", "AP/PA": "AP"} | labels)
        maps = rng.random((len(constants.OBSERVATIONS), 3, 3)).astype(np.float32) ** 3
        if i == 2:
            maps[constants.OBSERVATIONS.index("Atelectasis")] = 0  # labelled, but nothing to see
        probabilities = rng.random(len(constants.OBSERVATIONS)).astype(np.float32)
        records.append({"id": name, "maps": maps, "probabilities": probabilities, "size": (40, 52)})
    frame = pd.DataFrame(rows)
    for name in constants.OBSERVATIONS:
        if name not in frame:
            frame[name] = np.nan
    frame.rename(columns={"Airspace Opacity": "Lung Opacity"}).to_csv(images / "train.csv", index=False)
    folder = root / "base" / "train_cams" / constants.MODEL_NAME
    (folder / "cams").mkdir(parents=True)
    shards = saliency_store.StoreShards(constants.OBSERVATIONS, SIZE, len(IDS))
    shards.write(records, folder / "part")
    shards.merge([folder / "part"], folder / saliency_store.STORE)
    pd.DataFrame({"Train_CAM_Id": IDS}).to_csv(folder / "train_cams_paths.csv", index=False)
    torch.manual_seed(0)
    spec = models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS, image_size=SIZE)
    models.save_classifier(root / "classifier.ckpt", models.Classifier(spec))
    return root


@pytest.fixture(autouse=True)
def environment(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(workspace / "data"))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(workspace / "base"))
    monkeypatch.setenv("TORCH_HOME", str(workspace / "no_torch_cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(workspace):
    """The run folder after stages 3a, 3b and 3c, each by the seed README's command in its own folder."""
    environment = {"CHEXPERT_DATA_DIR": workspace / "data", "OBJ_EFFICIENCY_BASE_PATH": workspace / "base"}
    before = {name: os.environ.get(name) for name in environment} | {"here": os.getcwd()}
    os.environ.update({k: str(v) for k, v in environment.items()})
    os.chdir(ROOT / "IRNet")
    try:
        assert run("IRNet/convert_to_hdf5.py", "--image_size", SIZE) == 0
        assert run("IRNet/cam_to_ir_label_hdf5.py", "--shard_size", 4) == 0
        options = ("--num_epochs", 3, "--batch_size", 3, "--radius", 3)
        classifier = ("--backbone_weights", workspace / "classifier.ckpt")
        assert run("IRNet/train_irnet.py", "--lr", "0.01", "--weight_decay", "0.0", *classifier, *options) == 0
    finally:
        os.chdir(before.pop("here"))
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return workspace / "base" / "train_cams" / constants.MODEL_NAME


def present(uncertain=True):
    found = np.zeros((len(IDS), len(TASKS)), bool)
    for i in range(1, len(IDS)):
        found[i] = [i == 1 or (i + k) % 4 == 0 for k in range(len(TASKS))]
        if i > 1:
            found[i, 3] = uncertain
    return found


def test_train_set_holds_images_and_maps(folder, workspace):
    with h5py.File(folder / "hdf5_files" / "train_set") as file:
        assert [name.decode() for name in file["cxr_base_names"][:]] == IDS
        assert file["cxr_images"].shape == (6, SIZE, SIZE) and file["cxr_images"].dtype == np.uint8
        assert file["cxr_cams"].shape == (6, 10, 3, 3) and file["cxr_cams"].dtype == np.float32
        image = read_image(chexpert.find_image(workspace / "data", IDS[4]))
        assert np.array_equal(file["cxr_images"][4], resize_square(image, SIZE))
        rows = [constants.OBSERVATIONS.index(t) for t in TASKS]
        assert np.array_equal(file["cxr_cams"][4], saliency_store.open_maps(folder)[IDS[4]]["maps"][rows])


def test_relation_labels_of_present_findings(folder):
    with (
        h5py.File(folder / "hdf5_files" / "ir_labels") as file,
        h5py.File(folder / "hdf5_files" / "train_set") as train,
    ):
        labels = file["ir_labels"]
        assert labels.shape == (6, 10, SIZE, SIZE) and labels.dtype == np.uint8 and labels.chunks == (1, 1, SIZE, SIZE)
        scale = {"bilateral_sxy": 50 * SIZE / 320, "gaussian_sxy": 3 * SIZE / 320}
        written = 0
        for i, here in enumerate(present()):
            expected = torch.full((10, SIZE, SIZE), 255, dtype=torch.uint8)
            if here.any():
                image, maps = torch.from_numpy(train["cxr_images"][i]), torch.from_numpy(train["cxr_cams"][i])
                expected[here] = crf.relation_labels(image, maps[here], **scale)
            assert np.array_equal(labels[i], expected)
            written += int((expected != 255).flatten(1).any(1).sum())
        assert set(np.unique(labels[:])) == {0, 1, 255}
        # What is absent, and the map that is all zero, takes no space.
        assert labels.id.get_num_chunks() == written < present().sum()


def test_training_leaves_a_network_and_a_log(folder, workspace):
    saved = workspace / "base" / "weakly_supervised" / "saved_models"
    model, spec = boundary_net.load(saved / MODEL)
    lines = [json.loads(line) for line in (saved / "ir_model_hdf5_lr_0.01_weight_decay_0.0" / "log.jsonl").open()]
    assert spec.architecture == "resnet10w32"
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    # Two batches an epoch: the last epoch's last step is step 5 of 6, lr x (1 - 5 / 6)^0.9.
    assert lines[-1]["lr"] == pytest.approx(0.01 * (1 / 6) ** 0.9)
    best = torch.load(saved / MODEL, weights_only=True)["metrics"]
    assert best["train_loss"] == min(line["train_loss"] for line in lines)
    classifier = models.load_classifier(workspace / "classifier.ckpt", constants.OBSERVATIONS)
    for name, tensor in classifier.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.backbone.network.state_dict()[name], tensor), name


def test_training_learns(folder):
    """More epochs on six images without scaling: the loss falls well below a blank network's log 2."""
    dataset = RelationSet(hdf5_files.open_train_set(folder), hdf5_files.open_ir_labels(folder), SIZE)
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


def test_trained_again_it_is_done(folder, workspace, capsys):
    classifier = ("--backbone_weights", workspace / "classifier.ckpt")
    network = workspace / "base" / "weakly_supervised" / "saved_models" / MODEL
    before = network.read_bytes()
    assert run("IRNet/train_irnet.py", *classifier, "--num_epochs", 3, "--batch_size", 3, "--radius", 3) == 0
    assert network.read_bytes() == before
    assert run("IRNet/train_irnet.py", *classifier, "--num_epochs", 3, "--batch_size", 3, "--radius", 4) == 1
    assert "radius was 3, is 4" in capsys.readouterr().err


def test_optimiser_is_the_papers(folder, workspace, monkeypatch):
    given, plain = {}, torch.optim.SGD

    def spy(parameters, **options):
        given.update(options)
        return plain(parameters, **options)

    monkeypatch.setattr(torch.optim, "SGD", spy)
    options = ("--backbone_weights", workspace / "classifier.ckpt", "--lr", "0.02", "--weight_decay", "0.25")
    assert run("IRNet/train_irnet.py", *options, "--num_epochs", 1, "--radius", 2) == 0
    assert given == {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.25}
    saved = workspace / "base" / "weakly_supervised" / "saved_models"
    assert (saved / "best_ir_model_hdf5_lr_0.02_weight_decay_0.25.pth").is_file()


def pseudo(*options):
    return run("make_pseudo_seg_labels.py", *options)


def entries(path):
    return {name: entry for name, entry in MaskFile(path).items()}


def naive_masks(folder, row, allowed, **walk):
    """Stage 4 for one image, step by step."""
    model, spec = boundary_net.load(folder.parents[1] / "weakly_supervised" / "saved_models" / MODEL)
    with h5py.File(folder / "hdf5_files" / "train_set") as file:
        pixels, maps = torch.from_numpy(file["cxr_images"][row]), torch.from_numpy(file["cxr_cams"][row])
    with torch.no_grad():
        image = normalise(pixels[None], spec.normalisation)
        boundary = (model(image).sigmoid() + model(image.flip(-1)).sigmoid().flip(-1)) / 2
    assert boundary.shape == (1, 1, GRID, GRID)
    cam = torch.nn.functional.interpolate(maps[None], (GRID, GRID), mode="bilinear", align_corners=False)
    scores = random_walk.propagate(cam, boundary, **walk)
    large = torch.nn.functional.interpolate(scores, (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    found = large > 0.6 * large.amax((1, 2), keepdim=True)
    found[~torch.from_numpy(allowed)] = False
    return found.numpy()


def assert_nearly_equal(entry, expected):
    """Masks equal but for pixels whose score lies within rounding of the threshold."""
    found = rle.decode([entry[task] for task in TASKS])
    assert found.shape == expected.shape
    assert (found != expected).sum() <= 2
    assert ((found.sum((1, 2)) > 0) == (expected.sum((1, 2)) > 0)).all()


def test_pseudo_masks_of_the_seeds_command(folder):
    words = (f"{folder.parent}/", folder.name)
    assert (
        pseudo("--irn_pseudo_labels_save_dir", *words, "--irn_best_model_name", MODEL, "--irn_is_training", "True") == 0
    )
    walked, plain = (entries(folder / f"pseudo_seg_labels_encoded_{kind}.json") for kind in ("irnet", "cams"))
    assert list(walked) == list(plain) == IDS
    stored = saliency_store.open_maps(folder)
    for i, name in enumerate(IDS):
        assert list(walked[name]) == list(plain[name]) == list(TASKS)
        assert_nearly_equal(walked[name], naive_masks(folder, i, present()[i]))
        maps = stored[name]["maps"][stored.task_rows(TASKS)]
        expected = saliency_masks.threshold_maps(maps, (SIZE, SIZE), network_size=(SIZE, SIZE))
        assert np.array_equal(rle.decode([plain[name][t] for t in TASKS]), expected)
    assert rle.decode(list(walked[IDS[0]].values())).sum() == 0
    assert rle.decode(list(walked[IDS[1]].values())).sum((1, 2)).min() > 0
    assert rle.decode(list(plain[IDS[0]].values())).sum() > 0


def test_gates_and_options(folder):
    path = folder / "pseudo_seg_labels_encoded_irnet.json"
    assert pseudo("--gate", "none", "--radius", 2, "--beta", 2, "--exp_times", 1) == 0
    for i in (0, 3):
        everything = np.ones(10, bool)
        assert_nearly_equal(entries(path)[IDS[i]], naive_masks(folder, i, everything, radius=2, beta=2.0, exp_times=1))
    assert pseudo("--uncertain_is_present", "False", "--batch_size", 4) == 0
    for i in (2, 5):
        assert_nearly_equal(entries(path)[IDS[i]], naive_masks(folder, i, present(uncertain=False)[i]))
    assert pseudo("--gate", "probability", "--gate_probability", "0.6") == 0
    stored = saliency_store.open_maps(folder)
    for i in (0, 4):
        likely = stored[IDS[i]]["probabilities"][stored.task_rows(TASKS)] >= 0.6
        assert 0 < likely.sum() < 10
        assert_nearly_equal(entries(path)[IDS[i]], naive_masks(folder, i, likely))
    assert pseudo("--threshold", "1") == 0
    assert rle.decode(list(entries(path)[IDS[1]].values())).sum() == 0


def probable(folder, ids):
    """What the gate by probability lets through, and its files."""
    script = runpy.run_path(str(ROOT / "make_pseudo_seg_labels.py"), run_name="imported")
    args = script["build_parser"]().parse_args(["--gate", "probability", "--gate_probability", "0.6"])
    return script["present_findings"](args, folder, SimpleNamespace(ids=ids, tasks=TASKS))


def test_probabilities_come_from_the_store_at_once_or_from_pickles(workspace, tmp_path, monkeypatch):
    folder = workspace / "base" / "train_cams" / constants.MODEL_NAME
    stored, ids = saliency_store.open_maps(folder), [IDS[4], IDS[0], IDS[2]]
    rows = stored.task_rows(TASKS)
    expected = np.stack([stored[name]["probabilities"][rows] >= 0.6 for name in ids])
    (tmp_path / "cams").mkdir()
    for name in IDS:
        image = np.zeros((SIZE, SIZE), np.uint8)
        saliency_pickles.write_pickles(tmp_path / "cams", name, constants.OBSERVATIONS, stored[name], image, None)
    found, files = probable(tmp_path, ids)
    assert np.array_equal(found, expected) and files == []
    monkeypatch.setattr(saliency_maps.SaliencyMaps, "__getitem__", None)  # image by image
    found, files = probable(folder, ids)
    assert np.array_equal(found, expected) and files == [folder / saliency_store.STORE]
    with pytest.raises(DataError, match="no saliency map of patient00007"):
        probable(folder, [IDS[0], "patient00007_study1_view1_frontal", IDS[1]])


def test_masks_of_a_training_set_are_made_a_batch_at_a_time(folder, monkeypatch):
    (folder / "pseudo_seg_labels_encoded_irnet.json").unlink(missing_ok=True)
    shapes, plain = [], random_walk.masks_from_scores
    monkeypatch.setattr(
        random_walk, "masks_from_scores", lambda s, *args, **more: shapes.append(s.shape) or plain(s, *args, **more)
    )
    assert pseudo("--batch_size", 4, "--shard_size", 6) == 0
    assert shapes == [(4, 10, GRID, GRID), (2, 10, GRID, GRID)]


def test_bytes_do_not_depend_on_shards(folder):
    path, found = folder / "pseudo_seg_labels_encoded_irnet.json", []
    for options in ((), ("--shard_size", 1), ("--shard_size", 4)):
        path.unlink(missing_ok=True)
        assert pseudo(*options) == 0
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]


def test_workers_get_a_small_pickle(folder, workspace):
    for films in (TrainFilms(folder), OtherFilms(folder, TASKS, workspace / "data", SIZE)):
        expected = films(3)
        sent = pickle.dumps(films)
        assert len(sent) < 5000
        for one, other in zip(pickle.loads(sent)(3), expected, strict=True):
            assert np.array_equal(one, other)


def test_another_set_at_its_own_size(folder, workspace):
    """A run without hdf5_files and labels: images from CheXpert's folder, masks of the originals' size."""
    other = workspace / "base" / "test_cams"
    (other / "cams").mkdir(parents=True, exist_ok=True)
    (other / saliency_store.STORE).write_bytes((folder / saliency_store.STORE).read_bytes())
    with h5py.File(other / saliency_store.STORE, "r+") as file:
        file["sizes"][2] = 33, 21
    assert pseudo("--irn_pseudo_labels_save_dir", other, "--irn_is_training", "False", "--num_workers", 0) == 0
    walked, plain = (entries(other / f"pseudo_seg_labels_encoded_{kind}.json") for kind in ("irnet", "cams"))
    stored = saliency_store.open_maps(other)
    assert {tuple(walked[IDS[2]][t]["size"]) for t in TASKS} == {(33, 21)}  # among others in the batch
    for i in (0, 5):
        found = rle.decode([walked[IDS[i]][t] for t in TASKS])
        likely = stored[IDS[i]]["probabilities"][stored.task_rows(TASKS)] >= 0.5
        assert found.shape[1:] == (40, 52)
        assert ((found.sum((1, 2)) > 0) == likely).all()
        square = naive_masks(folder, i, likely)
        back = np.stack([cv2.resize(m.astype(np.uint8), (52, 40), interpolation=cv2.INTER_NEAREST) for m in square])
        assert (back != found).mean() < 0.02
        maps = stored[IDS[i]]["maps"][stored.task_rows(TASKS)]
        expected = saliency_masks.threshold_maps(maps, (40, 52), network_size=(SIZE, SIZE))
        assert np.array_equal(rle.decode([plain[IDS[i]][t] for t in TASKS]), expected)


@pytest.mark.parametrize(
    ("script", "options", "status", "words"),
    [
        ("IRNet/convert_to_hdf5.py", ["--map_dir", "nowhere"], 1, "nowhere/train_cams_paths.csv"),
        ("IRNet/cam_to_ir_label_hdf5.py", ["--map_dir", "nowhere"], 1, "convert_to_hdf5.py"),
        ("IRNet/train_irnet.py", ["--map_dir", "nowhere"], 1, "convert_to_hdf5.py"),
        ("IRNet/train_irnet.py", ["--radius", "0"], 2, "--radius"),
        ("IRNet/train_irnet.py", ["--backbone_weights", "none.ckpt"], 1, "none.ckpt: no such"),
        ("IRNet/train_irnet.py", ["--backbone_weights", "imagenet"], 1, "no ImageNet weights"),
        ("IRNet/train_irnet.py", ["--backbone", "vgg16"], 2, "vgg16"),
        ("make_pseudo_seg_labels.py", ["--irn_pseudo_labels_save_dir", "a", "b", "c"], 2, "one or two words"),
        ("make_pseudo_seg_labels.py", ["--irn_pseudo_labels_save_dir", "nowhere"], 1, "nowhere/hdf5_files/train_set"),
        ("make_pseudo_seg_labels.py", ["--irn_best_model_name", "none.pth"], 1, "none.pth: no such"),
        ("make_pseudo_seg_labels.py", ["--gate", "hope"], 2, "--gate"),
        ("make_pseudo_seg_labels.py", ["--threshold", "1.5"], 2, "--threshold"),
        ("make_pseudo_seg_labels.py", ["--csv_path", "none.csv"], 1, "none.csv: no such"),
    ],
)
def test_wrong_input_ends_in_one_line(folder, script, options, status, words, capsys):
    assert run(script, *options) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[-1] and "error:" in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_labels_of_other_images_are_refused(folder, workspace, tmp_path, capsys):
    frame = pd.read_csv(workspace / "data" / "CheXpert" / "CheXpert-v1.0" / "train.csv").iloc[:-1]
    frame.to_csv(tmp_path / "short.csv", index=False)
    assert pseudo("--csv_path", tmp_path / "short.csv") == 1
    assert f"{IDS[-1]}: no labels" in capsys.readouterr().err


def test_backbone_is_found_by_the_maps_manifest(folder, workspace, monkeypatch):
    module = runpy.run_path(str(ROOT / "IRNet" / "train_irnet.py"), run_name="imported")
    args = module["build_parser"]().parse_args([])
    manifest = folder / "cams" / "saliency.h5.manifest.json"
    with pytest.raises(Exception, match="--backbone_weights"):
        module["find_backbone"](args, folder)
    manifest.write_text(json.dumps({"paths": {"ckpt_path": str(workspace / "classifier.ckpt")}}))
    try:
        assert module["find_backbone"](args, folder) == workspace / "classifier.ckpt"
        cached = workspace / "no_torch_cache" / "hub" / "checkpoints"
        cached.mkdir(parents=True)
        (cached / "resnet50-11ad3fa6.pth").touch()
        assert module["find_backbone"](args, folder) == cached / "resnet50-11ad3fa6.pth"
        (cached / "resnet50-11ad3fa6.pth").unlink()
    finally:
        manifest.unlink()


def naive_grid_labels(labels, side, place, crop):
    """Scale by nearest neighbours, crop with 255 around, take every fourth pixel from the second or so on."""
    size = labels.shape[-1]
    scaled = np.array([[[c[int((y + 0.5) * size / side), int((x + 0.5) * size / side)] for x in range(side)]
                        for y in range(side)] for c in labels])  # fmt: skip
    canvas = np.full((len(labels), crop, crop), 255, np.uint8)
    for y in range(crop):
        for x in range(crop):
            v, u = y + place[0], x + place[1]
            if 0 <= v < side and 0 <= u < side:
                canvas[:, y, x] = scaled[:, v, u]
    centres = [min(4 * i + 2, crop - 1) for i in range(-(-crop // 4))]
    return canvas[:, centres][:, :, centres]


@pytest.mark.parametrize(
    ("side", "place", "crop"),
    [(20, (0, 0), 20), (30, (7, 3), 20), (10, (-4, -9), 20), (13, (-2, 0), 9), (29, (9, 0), 21), (20, (3, 1), 17)],
)
def test_window_and_labels_against_loops(side, place, crop):
    labels = np.random.default_rng(0).integers(0, 256, (2, 20, 20)).astype(np.uint8)
    assert np.array_equal(grid_labels(labels, side, place, crop), naive_grid_labels(labels, side, place, crop))
    image = np.random.default_rng(1).integers(1, 256, (side, side)).astype(np.uint8)
    cut = window(image, place, crop)
    for y in range(crop):
        for x in range(crop):
            v, u = y + place[0], x + place[1]
            assert cut[y, x] == (image[v, u] if 0 <= v < side and 0 <= u < side else 0)


def test_draws_are_scaled_alike_and_repeatable(folder):
    dataset = RelationSet(hdf5_files.open_train_set(folder), hdf5_files.open_ir_labels(folder), SIZE)
    plain = dataset[Draw(3)]
    assert torch.equal(plain["image"], torch.from_numpy(dataset.images["cxr_images"][3]))
    assert np.array_equal(plain["labels"], dataset.labels["ir_labels"][3][:, 2::4, 2::4])
    shares, first_rows = [], []
    for key in range(40):
        draw = dataset[Draw(3, (17, 0, key))]
        again = dataset[Draw(3, (17, 0, key))]
        assert draw["image"].shape == (SIZE, SIZE) and draw["labels"].shape == (10, GRID, GRID)
        assert torch.equal(draw["image"], again["image"]) and torch.equal(draw["labels"], again["labels"])
        # Ignored in all tasks = outside the image, where it is black.
        outside = (draw["labels"][[int(t) for t in np.flatnonzero(present()[3])]] == 255).all(0)
        shares.append(float((draw["image"] > 0).float().mean()))
        first_rows.append(bool((draw["image"][0] == 0).all()))
        assert (draw["image"][2::4, 2::4][~outside] > 0).float().mean() > 0.9
    assert min(shares) < 0.5 and max(shares) > 0.95
    # A small image lies anywhere in the crop.
    assert 5 < sum(first_rows) < 25


def test_scale_range(folder, monkeypatch):
    sides = []

    def resize(image, size, **options):
        sides.append(size[0])
        return np.zeros(size[::-1], np.uint8)

    monkeypatch.setattr(cv2, "resize", resize)
    dataset = RelationSet(hdf5_files.open_train_set(folder), hdf5_files.open_ir_labels(folder), SIZE)
    for key in range(300):
        dataset[Draw(0, (key,))]
    assert SIZE * 0.5 <= min(sides) < SIZE * 0.53
    assert SIZE * 1.47 < max(sides) <= SIZE * 1.5
