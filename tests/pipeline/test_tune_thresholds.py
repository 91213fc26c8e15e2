"""localization_eval/tune_thresholds.py on six small images: what it writes is what stage 2 reads and scores best."""

import numpy as np
import pytest

import constants
from chexseg.classifier import saliency_masks, saliency_store
from chexseg.data import leak_guard, mask_files, rle
from chexseg.data.chexpert import patient_of
from chexseg.data.mask_files import MaskFile
from chexseg.evaluation import bootstrap, metrics, tuning
from tests.irnet.six_films import IDS, SIZE, TASKS, assert_light, assert_one_line, run

pytestmark = pytest.mark.usefixtures("six_films_environment")
SCRIPT = "localization_eval/tune_thresholds.py"


@pytest.fixture
def setting(six_films, tmp_path):
    """The run folder, and expert masks of five films: blobs where maps are high; one task unknown."""
    folder = six_films / "base" / "train_cams" / constants.MODEL_NAME
    maps, rng, entries = saliency_store.open_maps(folder), np.random.default_rng(0), {}
    for i, name in enumerate(IDS[:5]):
        stack = np.stack([rng.random((SIZE, SIZE)) < 0.2 for _ in TASKS]).astype(np.uint8)
        large = saliency_masks.upsample(maps[name]["maps"][maps.task_rows(TASKS)], (SIZE, SIZE))
        stack |= large > 0.6 * large.max((1, 2), keepdims=True)
        stack[i % 3 :: 3] = 0
        entries[name] = dict(zip(TASKS, rle.encode(stack), strict=True))
    del entries[IDS[1]]["Edema"]
    mask_files.write(tmp_path / "expert.json", entries.items())
    return folder, maps, tmp_path / "expert.json"


def scores_of(masks_path, truth_path):
    truth = MaskFile(truth_path)
    found = metrics.overlap(MaskFile(masks_path), truth, TASKS, list(truth))
    return bootstrap.score(found, bootstrap.Resamples(found.images, 0), "pooled").values[0]


def test_what_is_chosen_is_what_scores_best(setting, tmp_path):
    folder, maps, expert = setting
    files = ("--threshold_path", tmp_path / "t.csv", "--prob_cutoff_path", tmp_path / "c.csv")
    assert run(SCRIPT, "--map_dir", folder, "--gt_path", expert, *files) == 0
    thresholds = saliency_masks.read_task_values(tmp_path / "t.csv", "threshold", TASKS, {})
    cutoffs = saliency_masks.read_task_values(tmp_path / "c.csv", "prob_threshold", TASKS, {})
    assert not np.isnan(thresholds).any() and not np.isnan(cutoffs).any()

    def masks(thresholds, cutoffs):
        """Stage 2 itself, at the network's size."""
        command = ("localization_eval/pred_segmentation.py", "--map_dir", folder, "--protocol", "chexlocalize")
        for name, column, values in (("t", "threshold", thresholds), ("c", "prob_threshold", cutoffs)):
            rows = [f"{value},{task}" for task, value in zip(TASKS, values, strict=True)]
            (tmp_path / f"try_{name}.csv").write_text("\n".join([f"{column},task", *rows]) + "\n")
        tried = ("--threshold_path", tmp_path / "try_t.csv", "--prob_cutoff_path", tmp_path / "try_c.csv")
        assert run(*command, *tried, "--output_path", tmp_path / "masks.json") == 0
        return scores_of(tmp_path / "masks.json", expert)

    none = np.zeros(len(TASKS))
    best = masks(thresholds, none)
    for step in (-0.01, 0.01, 0.2, -0.2):
        assert (best[:-1] >= masks(np.clip(thresholds + step, 0, 0.99), none)[:-1]).all()
    gated = masks(thresholds, cutoffs)
    assert (gated >= best).all() and gated[-1] > best[-1]
    for step in (-0.05, 0.05):
        assert (gated[:-1] >= masks(thresholds, np.clip(cutoffs + step, 0, 0.95))[:-1]).all()


def test_patients_are_recorded_and_nothing_is_done_twice(setting, tmp_path):
    folder, _, expert = setting
    files = ("--threshold_path", tmp_path / "t.csv", "--prob_cutoff_path", tmp_path / "c.csv")
    given = ("--map_dir", folder, "--gt_path", expert, *files)
    assert run(SCRIPT, *given) == 0
    patients = sorted(leak_guard.hashed(patient_of(name)) for name in IDS[:5])
    assert leak_guard.read(tmp_path / "t.csv") == {"t.csv": {"thresholds": patients}}
    assert leak_guard.read(tmp_path / "c.csv") == {"c.csv": {"cut-offs": patients}}
    before = (tmp_path / "t.csv").stat().st_mtime_ns
    assert_light(SCRIPT, *given)
    assert (tmp_path / "t.csv").stat().st_mtime_ns == before
    csv = tmp_path / "all.csv"
    csv.write_text("".join(f"{line}\n" for line in ["Path", "x/train/patient00006/study1/view1_frontal.jpg"]))
    assert run(SCRIPT, *given, "--all_images", csv) == 0  # the sixth film shows nothing
    assert len(leak_guard.read(tmp_path / "t.csv")["t.csv"]["thresholds"]) == 6


def test_a_film_whose_label_has_a_finding_is_not_taken_for_one_without(setting, tmp_path, caplog):
    """The other part of a split, for example: nobody says that nothing is to be outlined there."""
    folder, _, expert = setting
    csv, film = tmp_path / "all.csv", "x/train/patient00006/study1/view1_frontal.jpg"
    given = ("--map_dir", folder, "--gt_path", expert, "--threshold_path", tmp_path / "t.csv", "--all_images", csv)
    given += ("--prob_cutoff_path", tmp_path / "c.csv")
    csv.write_text(f"Path,Lung Opacity,Fracture\n{film},1.0,\n")
    assert run(SCRIPT, *given) == 0
    assert len(leak_guard.read(tmp_path / "t.csv")["t.csv"]["thresholds"]) == 5
    assert "1 films have a finding by their labels but no expert mask; they are left out: patient00006" in caplog.text
    csv.write_text(f"Path,Lung Opacity,Fracture\n{film},0.0,1.0\n")
    assert run(SCRIPT, *given) == 0
    assert len(leak_guard.read(tmp_path / "t.csv")["t.csv"]["thresholds"]) == 6


def test_cutoffs_of_predicted_masks(setting, tmp_path):
    folder, maps, expert = setting
    lines = [",".join(["image_id", *TASKS])]
    for name in IDS:
        row = maps[name]["probabilities"][maps.task_rows(TASKS)]
        lines.append(",".join([name, *map(str, row)]))
    (tmp_path / "predictions.csv").write_text("\n".join(lines) + "\n")
    assert run("localization_eval/pred_segmentation.py", "--map_dir", folder, "--output_path", tmp_path / "p.json") == 0
    given = ("--pred_path", tmp_path / "p.json", "--predictions", tmp_path / "predictions.csv", "--gt_path", expert)
    assert run(SCRIPT, *given) == 0
    assert not (tmp_path / "thresholds.csv").exists()
    truth = MaskFile(expert)
    overlap = metrics.overlap(MaskFile(tmp_path / "p.json"), truth, TASKS, list(truth))
    probabilities = maps.probabilities(list(truth))[:, maps.task_rows(TASKS)]
    expected = tuning.best(tuning.cutoff_scores(overlap, probabilities))
    found = saliency_masks.read_task_values(tmp_path / "prob_cutoffs.csv", "prob_threshold", TASKS, {})
    np.testing.assert_array_equal(found, np.array(tuning.CUTOFFS)[expected])


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ([], 2, "give --map_dir"),
        (["--pred_path", "p.json"], 2, "--pred_path needs --predictions"),
        (["--map_dir", "nowhere", "--gt_path", "expert.json"], 1, "no saliency maps here"),
        (["--criterion", "luck"], 2, "--criterion"),
    ],
)
def test_wrong_input_ends_in_one_line(setting, options, status, words, capsys):
    assert_one_line(run(SCRIPT, *options), status, words, capsys)
