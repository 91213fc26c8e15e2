"""IRNet/tune_random_walk.py on six small images: its best setting is what make_pseudo_seg_labels.py makes of it."""

import numpy as np
import pandas as pd
import pytest

from chexseg.data import leak_guard, mask_files, rle
from chexseg.data.chexpert import patient_of
from chexseg.data.mask_files import MaskFile
from chexseg.evaluation import bootstrap, metrics
from tests.irnet.six_films import IDS, SIZE, TASKS, assert_light, assert_one_line, run

pytestmark = pytest.mark.usefixtures("six_films_environment")
SCRIPT = "IRNet/tune_random_walk.py"


@pytest.fixture
def given(six_films, relation_run, tmp_path):
    """The command's options for expert masks of five of the films, at the size of the network's input."""
    rng = np.random.default_rng(0)
    entries = {name: dict(zip(TASKS, rle.encode(rng.random((10, SIZE, SIZE)) < 0.3), strict=True)) for name in IDS[:5]}
    mask_files.write(tmp_path / "expert.json", entries.items())
    labels = six_films / "data" / "CheXpert" / "CheXpert-v1.0" / "train.csv"
    grid = ("--radii", 2, 3, "--betas", 2, "--exp_times", 1, 3, "--thresholds", 0.3, 0.6)
    options = ("--map_dir", relation_run, "--gt_path", tmp_path / "expert.json", "--csv_path", labels, *grid)
    yield options
    for path in relation_run.glob("walk_tuning*"):
        path.unlink()


def test_the_table_says_what_stage_4_would_score(given, relation_run, tmp_path, capsys):
    assert run(SCRIPT, *given) == 0
    said = capsys.readouterr().out
    rows = pd.read_csv(relation_run / "walk_tuning.csv")
    assert len(rows) == 2 * 1 * 2 * 2 * 11
    assert (relation_run / "walk_tuning.png").stat().st_size > 1000
    assert "mIoU" in said and leak_guard.read(relation_run / "walk_tuning.csv") == {
        "walk_tuning.csv": {"random walk": sorted(leak_guard.hashed(patient_of(name)) for name in IDS[:5])}
    }
    setting = ("--radius", 3, "--beta", 2, "--exp_times", 3, "--threshold", 0.6)
    assert run("make_pseudo_seg_labels.py", *setting) == 0
    truth, walked = MaskFile(tmp_path / "expert.json"), MaskFile(relation_run / "pseudo_seg_labels_encoded_irnet.json")
    overlap = metrics.overlap(walked, truth, TASKS, list(truth))
    expected = bootstrap.score(overlap, bootstrap.Resamples(overlap.images, 0), "pooled").values[0]
    mine = rows[(rows["radius"] == 3) & (rows["exp_times"] == 3) & (rows["threshold"] == 0.6)]
    assert mine["task"].tolist() == [*TASKS, "mIoU"]
    np.testing.assert_allclose(mine["iou"], expected, atol=2e-3)  # the network saw the films in other batches


def test_up_to_date_or_with_another_grid(given, relation_run):
    assert run(SCRIPT, *given) == 0
    made = (relation_run / "walk_tuning_boundaries.npz").stat().st_mtime_ns
    first = (relation_run / "walk_tuning.csv").read_bytes()
    assert_light(SCRIPT, *given)
    assert run(SCRIPT, *given, "--betas", 3, 7) == 0
    assert (relation_run / "walk_tuning_boundaries.npz").stat().st_mtime_ns == made
    assert (relation_run / "walk_tuning.csv").read_bytes() != first
    (relation_run / "walk_tuning_counts.npz").unlink()
    assert run(SCRIPT, *given, "--shard_size", 1, "--num_workers", 1) == 0
    assert (relation_run / "walk_tuning.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ([], 2, "--map_dir"),
        (["--map_dir", "nowhere", "--gt_path", "none.json"], 1, "none.json: no such masks file"),
        (["--map_dir", "nowhere", "--betas", "0"], 2, "--betas"),
    ],
)
def test_wrong_input_ends_in_one_line(given, options, status, words, capsys):
    assert_one_line(run(SCRIPT, *options), status, words, capsys)


def test_a_missing_network_is_named(given, capsys):
    assert_one_line(run(SCRIPT, *given, "--irn_best_model_name", "none.pth"), 1, "none.pth: no such file", capsys)
