"""make_pseudo_seg_labels.py on six small images: the masks against a slow version, the gates, and what it refuses."""

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from chexseg.classifier import saliency_masks, saliency_store
from chexseg.data import rle
from chexseg.data.images import normalise
from chexseg.data.mask_files import MaskFile
from chexseg.irnet import boundary_net, pseudo_masks, random_walk
from chexseg.irnet.films import TrainFilms
from chexseg.irnet.gates import OpenGate
from chexseg.irnet.pseudo_masks import Walk
from tests.irnet.six_films import GRID, IDS, MODEL, SIZE, TASKS, assert_light, assert_one_line, present, run

pytestmark = pytest.mark.usefixtures("six_films_environment")


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
        boundary = ((model(image) + model(image.flip(-1)).flip(-1)) / 2).sigmoid()
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


def test_pseudo_masks_of_the_seeds_command(relation_run):
    words = (f"{relation_run.parent}/", relation_run.name)
    assert (
        pseudo("--irn_pseudo_labels_save_dir", *words, "--irn_best_model_name", MODEL, "--irn_is_training", "True") == 0
    )
    walked, plain = (entries(relation_run / f"pseudo_seg_labels_encoded_{kind}.json") for kind in ("irnet", "cams"))
    assert list(walked) == list(plain) == IDS
    stored = saliency_store.open_maps(relation_run)
    for i, name in enumerate(IDS):
        assert list(walked[name]) == list(plain[name]) == list(TASKS)
        assert_nearly_equal(walked[name], naive_masks(relation_run, i, present()[i]))
        maps = stored[name]["maps"][stored.task_rows(TASKS)]
        expected = saliency_masks.threshold_maps(maps, (SIZE, SIZE), network_size=(SIZE, SIZE))
        assert np.array_equal(rle.decode([plain[name][t] for t in TASKS]), expected)
    assert rle.decode(list(walked[IDS[0]].values())).sum() == 0
    assert rle.decode(list(walked[IDS[1]].values())).sum((1, 2)).min() > 0
    assert rle.decode(list(plain[IDS[0]].values())).sum() > 0


def test_gates_and_options(relation_run):
    path = relation_run / "pseudo_seg_labels_encoded_irnet.json"
    assert pseudo("--gate", "none", "--radius", 2, "--beta", 2, "--exp_times", 1) == 0
    for i in (0, 3):
        everything = np.ones(10, bool)
        assert_nearly_equal(
            entries(path)[IDS[i]], naive_masks(relation_run, i, everything, radius=2, beta=2.0, exp_times=1)
        )
    assert pseudo("--uncertain_is_present", "False", "--batch_size", 4) == 0
    for i in (2, 5):
        assert_nearly_equal(entries(path)[IDS[i]], naive_masks(relation_run, i, present(uncertain=False)[i]))
    assert pseudo("--gate", "probability", "--gate_probability", "0.6") == 0
    stored = saliency_store.open_maps(relation_run)
    for i in (0, 4):
        likely = stored[IDS[i]]["probabilities"][stored.task_rows(TASKS)] >= 0.6
        assert 0 < likely.sum() < 10
        assert_nearly_equal(entries(path)[IDS[i]], naive_masks(relation_run, i, likely))
    assert pseudo("--threshold", "1") == 0
    assert rle.decode(list(entries(path)[IDS[1]].values())).sum() == 0


def test_unknown_findings_are_left_out(relation_run):
    path, plain = relation_run / "pseudo_seg_labels_encoded_irnet.json", {}
    assert pseudo() == 0
    plain = entries(path)
    assert pseudo("--uncertain", "unknown") == 0
    found = entries(path)
    for i, name in enumerate(IDS):  # Airspace Opacity is uncertain from the third image on
        assert [task for task in TASKS if task not in found[name]] == (["Airspace Opacity"] if i > 1 else [])
        assert found[name] == {task: mask for task, mask in plain[name].items() if task in found[name]}
    assert pseudo("--contradiction", "unknown") == 0
    found = entries(path)
    missing = {(i, task) for i, name in enumerate(IDS) for task in TASKS if task not in found[name]}
    assert present()[2, TASKS.index("Atelectasis")]  # labelled, and its map is zero
    assert missing == {(2, "Atelectasis")}


def test_masks_of_a_training_set_are_made_a_batch_at_a_time(relation_run, monkeypatch):
    (relation_run / "pseudo_seg_labels_encoded_irnet.json").unlink(missing_ok=True)
    shapes, plain = [], random_walk.masks_from_scores
    monkeypatch.setattr(
        random_walk, "masks_from_scores", lambda s, *args, **more: shapes.append(s.shape) or plain(s, *args, **more)
    )
    assert pseudo("--batch_size", 4, "--shard_size", 6) == 0
    assert shapes == [(4, 10, GRID, GRID), (2, 10, GRID, GRID)]


def test_bytes_do_not_depend_on_shards(relation_run):
    path, found = relation_run / "pseudo_seg_labels_encoded_irnet.json", []
    for options in ((), ("--shard_size", 1), ("--shard_size", 4)):
        path.unlink(missing_ok=True)
        assert pseudo(*options) == 0
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]


def test_masks_of_the_training_run_are_not_overwritten(relation_run, capsys):
    before = {path: path.read_bytes() for path in relation_run.glob("pseudo*.json")}
    assert pseudo("--irn_is_training", "False") == 2
    assert "--irn_is_training True" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in relation_run.glob("pseudo*.json")} == before


def test_another_set_at_its_own_size(relation_run, six_films):
    """A run without hdf5_files and labels: images from CheXpert's relation_run, masks of the originals' size."""
    other = six_films / "base" / "test_cams"
    (other / "cams").mkdir(parents=True, exist_ok=True)
    (other / saliency_store.STORE).write_bytes((relation_run / saliency_store.STORE).read_bytes())
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
        square = naive_masks(relation_run, i, likely)
        back = np.stack([cv2.resize(m.astype(np.uint8), (52, 40), interpolation=cv2.INTER_NEAREST) for m in square])
        assert (back != found).mean() < 0.02
        maps = stored[IDS[i]]["maps"][stored.task_rows(TASKS)]
        expected = saliency_masks.threshold_maps(maps, (40, 52), network_size=(SIZE, SIZE))
        assert np.array_equal(rle.decode([plain[IDS[i]][t] for t in TASKS]), expected)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--irn_pseudo_labels_save_dir", "a", "b", "c"], 2, "one or two words"),
        (["--irn_pseudo_labels_save_dir", "nowhere"], 1, "nowhere/hdf5_files/train_set"),
        (["--irn_best_model_name", "none.pth"], 1, "none.pth: no such"),
        (["--gate", "hope"], 2, "--gate"),
        (["--threshold", "1.5"], 2, "--threshold"),
        (["--csv_path", "none.csv"], 1, "none.csv: no such"),
    ],
)
def test_wrong_input_ends_in_one_line(relation_run, options, status, words, capsys):
    assert_one_line(run("make_pseudo_seg_labels.py", *options), status, words, capsys)


def test_labels_of_other_images_are_refused(relation_run, six_films, tmp_path, capsys):
    frame = pd.read_csv(six_films / "data" / "CheXpert" / "CheXpert-v1.0" / "train.csv").iloc[:-1]
    frame.to_csv(tmp_path / "short.csv", index=False)
    assert pseudo("--csv_path", tmp_path / "short.csv") == 1
    assert f"{IDS[-1]}: no labels" in capsys.readouterr().err


@pytest.mark.parametrize("gate", ["labels", "probability", "none"])
def test_up_to_date_it_needs_no_torch(relation_run, gate):
    assert pseudo("--gate", gate) == 0
    assert_light("make_pseudo_seg_labels.py", "--gate", gate)


def test_an_opened_gate_lets_findings_through_that_no_label_has(relation_run, six_films):
    """The stage's function as a notebook calls it, for some rows only."""
    films, path = TrainFilms(relation_run), six_films / "base" / "weakly_supervised" / "saved_models" / MODEL
    options = {"films": films, "weights": path, "walk": Walk(radius=2), "device": torch.device("cpu"), "batch_size": 4}
    found = dict(pseudo_masks.walk_masks([0, 5], gate=OpenGate(), **options))
    everything = dict(pseudo_masks.walk_masks(range(6), gate=OpenGate(), **options))
    assert list(found) == [IDS[0], IDS[5]]
    assert all(found[name] == everything[name] for name in found)  # to the last bit, whatever the batch holds
    assert_nearly_equal(found[IDS[5]], naive_masks(relation_run, 5, np.ones(10, bool), radius=2))


def test_each_task_from_its_best_source(relation_run, tmp_path):
    """Atelectasis from the walk, Edema from the maps, all others unknown; gated by labels; no torch is needed."""
    assert pseudo() == 0
    walked, plain = (entries(relation_run / f"pseudo_seg_labels_encoded_{kind}.json") for kind in ("irnet", "cams"))
    rows = ["walk,label,Atelectasis,0.3", "map_otsu,label,Atelectasis,0.2", "map_otsu,label,Edema,0.4"]
    (tmp_path / "quality.csv").write_text("\n".join(["source,gate,task,iou", *rows]) + "\n")
    assert_light("make_pseudo_seg_labels.py", "--choose_by", tmp_path / "quality.csv")
    found, here = entries(relation_run / "pseudo_seg_labels_encoded_chosen.json"), present()
    for i, name in enumerate(IDS):
        assert list(found[name]) == ["Edema", "Atelectasis"]
        for task, source in (("Edema", plain), ("Atelectasis", walked)):
            expected = source[name][task] if here[i, TASKS.index(task)] else rle.empty((SIZE, SIZE))
            assert found[name][task] == expected
    (relation_run / "pseudo_seg_labels_encoded_chosen.json").unlink()


def test_counts_are_told(relation_run, caplog):
    (relation_run / "pseudo_seg_labels_encoded_irnet.json").unlink(missing_ok=True)
    with caplog.at_level("INFO"):
        assert pseudo() == 0
    masks = present().sum(0)
    masks[TASKS.index("Atelectasis")] -= 1  # one has a map without anything in it
    for task, count in zip(TASKS, masks, strict=True):
        assert f"{task:26s}  {count} with, {6 - count} without" in caplog.text
