import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexseg.data import mask_files, rle
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import figure, tables

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("Edema", "Airspace Opacity", "Fracture")


def name(i):
    return f"patient{i:05d}_study1_view1_frontal"


def entry(*areas, size=(30, 40), tasks=TASKS):
    """Masks of `areas` pixels, filled row by row from the top."""
    stack = np.zeros((len(areas), size[0] * size[1]), np.uint8)
    for row, count in zip(stack, areas, strict=True):
        row[:count] = 1
    return dict(zip(tasks, rle.encode(stack.reshape(-1, *size)), strict=False))


# Pooled IoU by hand: Edema, Airspace Opacity of 100 + 300 and 200 true pixels; Fracture never occurs.
TRUTH = {name(1): entry(100, 200, 0), name(2): entry(300, 0, 0), name(3): entry(0, 0, 0)}
METHODS = {
    "weak_cam": {i: entry(40, 20, 7) for i in TRUTH},  # 80/440, 20/240 -> mean 0.132576
    "weak_irnet": {name(1): entry(50, 100, 0), name(2): entry(150, 0, 0), name(3): entry(0, 0, 0)},  # 0.5, 0.5
    "full": {name(1): entry(100, 150, 0), name(2): entry(200, 0, 0), name(3): entry(0, 0, 0)},  # 0.75, 0.75
    "chexseg": {name(1): entry(100, 200, 0), name(2): entry(300, 0, 0), name(3): entry(0, 50, 0)},  # 1, 0.8
    "radiologist": dict(TRUTH),
}


@pytest.fixture(scope="module")
def comparison():
    return tables.compare(TRUTH, METHODS, TASKS, num_replicates=60, seed=3)


def miou(found, method, protocol="pooled"):
    return found.scores[protocol][method].values[0, -1]


def test_scores_by_hand(comparison):
    expected = {
        "weak_cam": (80 / 440 + 20 / 240) / 2,
        "weak_irnet": 0.5,
        "full": 0.75,
        "chexseg": 0.9,
        "radiologist": 1,
    }
    assert {method: miou(comparison, method) for method in METHODS} == pytest.approx(expected)
    assert miou(comparison, "full", "per_image") == pytest.approx(((1 + 2 / 3) / 2 + 0.75) / 2)
    assert miou(comparison, "chexseg", "per_image") == 1  # the false positive is no true positive
    assert miou(comparison, "chexseg", "per_image_all") == pytest.approx((1 + 1 / 2) / 2)
    assert comparison.never_occur() == ["Fracture"]


def test_long_table(comparison):
    table = tables.long_table(comparison)
    assert list(table) == ["method", "protocol", "task", "iou", "lower", "upper", "n_images", "n_positive"]
    assert len(table) == 5 * 3 * 4
    rows = table[(table.method == "full") & (table.protocol == "pooled")].set_index("task")
    assert list(rows.index) == [*TASKS, "mIoU"]
    assert rows["n_images"].tolist() == [3, 3, 3, 3] and rows["n_positive"].tolist() == [2, 1, 0, 2]
    assert rows.loc["Fracture", ["iou", "lower", "upper"]].isna().all()
    scored = table[table.task != "Fracture"]
    assert ((scored.lower <= scored.iou + 1e-12) & (scored.iou <= scored.upper + 1e-12)).all()


def cells(text, first, section="## Protocol `pooled`"):
    """The cells of the rows that begin with `first`, in a section of the report."""
    lines = text.split(section)[1].split("\n## ")[0].splitlines()
    return [[c.strip() for c in line.strip("| ").split(" | ")] for line in lines if line.startswith(f"| {first} |")]


def test_markdown_by_hand(comparison):
    text = tables.markdown(comparison)
    assert cells(text, "Edema")[0] == ["Edema", "2", "0.182", "0.500", "0.750", "**1.000**", "1.000"]
    assert cells(text, "Fracture")[0] == ["Fracture", "0", "–", "–", "–", "–", "–"]
    assert cells(text, "**mIoU** (95% interval)")[0][4].startswith("0.750 (")
    (ratio,) = cells(text, "CheXseg")
    assert (
        ratio[1] == "0.900" and ratio[2].startswith("1.80 (") and ratio[3].startswith("6.79 (") and ratio[4] == "1.73"
    )
    papers = [cells(text, tables.NAMES[m])[0][-1] for m in METHODS]
    assert papers == ["1", "1", "1.58", "1.73", "2.28"]
    (difference,) = cells(text, "CheXseg − fully supervised")
    assert difference[1].startswith("+0.150 (")
    assert "never in the ground truth, so shown but not scored: Fracture" in text
    assert all(f"## Protocol `{protocol}`" in text for protocol in ("pooled", "per_image", "per_image_all"))
    assert "3 images of 3 patients" in text and "60 bootstrap replicates" in text and "## Time" not in text


def test_difference_is_paired():
    # b misses what a misses and a little more, in every image alike: the interval of the difference excludes 0 although
    # those of the methods overlap widely.
    rng = np.random.default_rng(0)
    truth = {name(i): entry(1000, tasks="E") for i in range(30)}
    found = {i: int(rng.integers(100, 900)) for i in truth}
    methods = {
        "chexseg": {i: entry(n + 60, tasks="E") for i, n in found.items()},
        "full": {i: entry(n, tasks="E") for i, n in found.items()},
    }
    scores = tables.compare(truth, methods, "E", num_replicates=200).scores["pooled"]
    a, b = (scores[m].values[:, -1] for m in methods)
    assert np.quantile(a, 0.025) < np.quantile(b, 0.975)
    assert np.allclose(a - b, 0.06)
    (row,) = cells(tables.markdown(tables.compare(truth, methods, "E")), "CheXseg − fully supervised")
    assert row[1] == "+0.060 (+0.060 to +0.060)" and row[2] == "100.0%"


def test_what_is_missing_is_left_out_for_all_but_the_second_reader():
    methods = {
        "full": {i: e for i, e in METHODS["full"].items() if i != name(2)} | {name(9): entry(1)},
        "chexseg": METHODS["chexseg"],
        "radiologist": {i: e for i, e in TRUTH.items() if i != name(1)},
    }
    found = tables.compare(TRUTH, methods, TASKS, num_replicates=5)
    assert found.images == [name(1), name(3)]
    scores = found.scores["pooled"]
    assert scores["chexseg"].n_images[0] == 2 and scores["radiologist"].n_images[0] == 1
    assert miou(found, "full") == pytest.approx((1 + 0.75) / 2)
    text = tables.markdown(found)
    assert f"1 images have no prediction of full and are left out of every row: {name(2)}" in text
    assert f"1 images of full have no ground truth and are not scored: {name(9)}" in text
    assert f"radiologist: no prediction of 1 images, not scored: {name(1)}" in text
    assert np.isnan(miou(found, "radiologist"))  # nothing is positive in the image it has left


def test_what_the_second_reader_is_compared_with_is_scored_on_the_images_that_he_has():
    truth = {name(i): entry(100, tasks=["Edema"]) for i in (1, 2, 3)}
    methods = {
        "weak_irnet": {name(1): entry(100), name(2): entry(10), name(3): entry(20)},
        "chexseg": {name(1): entry(0), name(2): entry(50), name(3): entry(70)},
        "radiologist": {name(2): entry(90), name(3): entry(100)},
    }
    found = tables.compare(truth, methods, ["Edema"], num_replicates=40)
    assert miou(found, "chexseg") == pytest.approx(120 / 300) and miou(found, "radiologist") == pytest.approx(190 / 200)
    text = tables.markdown(found)
    (row, *_) = cells(text, "radiologist − CheXseg")
    assert row[1].startswith(f"{0.95 - 0.6:+.3f} (")
    (row,) = (r for r in cells(text, "radiologist")[:3] if r[1] == "0.950" and "(" in r[2])
    assert row[2].startswith(f"{0.95 / 0.15:.2f} (")
    first, second = found.paired("chexseg", "weak_irnet", "pooled")  # both have all
    assert first is found.scores["pooled"]["chexseg"] and second is found.scores["pooled"]["weak_irnet"]


def test_compare_refuses_what_has_nothing_in_common():
    with pytest.raises(DataError, match="full: no image is left"):
        tables.compare(TRUTH, {"full": {}}, TASKS)
    with pytest.raises(DataError, match="radiologist: none of its images"):
        tables.compare(TRUTH, {"full": METHODS["full"], "radiologist": {}}, TASKS)
    with pytest.raises(DataError, match="no method"):
        tables.compare(TRUTH, {}, TASKS)


def test_one_method_with_a_name_of_its_own():
    found = tables.compare(TRUTH, {"mine": METHODS["full"]}, TASKS, num_replicates=5)
    text = tables.markdown(found)
    assert "No weakly supervised method is given" in text
    assert cells(text, "Edema")[0] == ["Edema", "2", "0.750"]


def test_timings(tmp_path, comparison):
    path = tmp_path / "timings.csv"
    assert tables.read_timings(path) is None
    path.write_text("stage,seconds\nphantom,30.5\nclassifier,100\n")
    text = tables.markdown(comparison, tables.read_timings(path))
    assert cells(text, "phantom", "## Time of each stage") == [["phantom", "30.5 s"]]
    assert cells(text, "**all**", "## Time of each stage") == [["**all**", "**2 min 10 s**"]]
    for bad in ("step,seconds\na,1\n", "stage,seconds\na,fast\n", ""):
        path.write_text(bad)
        with pytest.raises(DataError, match="timings.csv: expected the columns"):
            tables.read_timings(path)


# The picture


def test_choose_shows_as_many_tasks_as_it_can():
    truth = {
        name(1): entry(9, 9, 0),
        name(2): entry(9, 9, 0),
        name(3): entry(0, 0, 9),
        name(4): entry(0, 0, 0),
        name(5): {"Edema": entry(9)["Edema"]},
    }
    assert figure.choose(truth, list(truth), TASKS, 2) == [name(1), name(3)]
    chosen = figure.choose(truth, list(truth), TASKS, 9)
    assert sorted(chosen) == list(truth) and chosen[-1] == name(4)


def test_choose_takes_another_patient_while_there_is_one():
    second = name(1).replace("study1", "study2")
    truth = {name(1): entry(9, 9, 9), second: entry(9, 9, 9), name(2): entry(0, 0, 9)}
    assert figure.choose(truth, list(truth), TASKS, 3) == [name(1), name(2), second]


def test_outlines_and_tints():
    base = np.full((40, 40, 3), 0.5)
    square, same, none = np.zeros((3, 40, 40), np.uint8)
    square[10:31, 10:31] = same[10:31, 10:31] = 1
    red, blue = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    picture = figure._outlined(base, {"a": square}, {"a": red})
    np.testing.assert_allclose(picture[20, 20], (1 - figure.FILL) * 0.5 + figure.FILL * red)
    np.testing.assert_allclose(picture[10, 20], red, atol=1e-6)
    np.testing.assert_array_equal(picture[35, 35], base[35, 35])
    both = figure._outlined(base, {"a": square, "b": same}, {"a": red, "b": blue})
    edge = both[10, 12:29]
    assert (edge[:, 0] > 0.9).any() and (edge[:, 2] > 0.9).any()  # dashes: both colours are seen
    np.testing.assert_array_equal(figure._outlined(base, {"a": none}, {"a": red}), base)


def test_panels_say_what_there_is_not():
    base = np.full((30, 40, 3), 0.5)
    colours = {task: np.ones(3) for task in TASKS}
    truth = {task: coded for task, coded in entry(400, 200, 0).items() if rle.area([coded])[0]}
    column = figure.Column("x", {name(1): entry(200, 200, 90), name(2): entry(0, 0, 0)}, against_truth=True)
    panel = figure._panel(column, name(1), base, truth, colours)
    assert panel.note == "IoU 0.75" and panel.tasks == set(TASKS)
    assert figure._panel(column, name(2), base, truth, colours).note == "IoU 0.00"
    larger = figure.Column("x", {name(1): entry(400 * 4, 200 * 4, size=(60, 80))}, against_truth=True)
    assert figure._panel(larger, name(1), base, truth, colours).note == "IoU 1.00"  # scored at the truth's size
    wire = {"Edema": rle.encode(np.eye(1, 1200, 7, dtype=np.uint8).repeat(1200, 0)[None])[0]}  # lost at the panel's
    column_of_wires = figure.Column("x", {name(1): wire}, against_truth=True)
    assert figure._panel(column_of_wires, name(1), base, wire, colours).note == "IoU 1.00"
    assert figure._panel(figure.Column("x", {name(2): entry(0)}), name(2), base, truth, colours).note == "empty"
    missing = figure._panel(column, name(3), base, truth, colours)
    assert missing.note == "no mask" and not missing.tasks and missing.picture.max() < 0.2
    assert figure._panel(figure.Column("x", maps={}), name(1), base, truth, colours).note == "no map"


def test_thin_structures_survive_the_reduction():
    wire = np.zeros((2400, 2000), np.uint8)
    wire[:, 1000:1003] = 1  # 0.6 pixels of the panel
    small = figure._resized(rle.encode(wire[None])[0], (480, 400))
    assert small.any(1).all() and small.sum() < 480 * 4


# make_tables.py


def run(*arguments):
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(module.build_parser().parse_args([str(a) for a in arguments]))


@pytest.fixture
def files(tmp_path):
    """Masks of each method, X-rays below CheXpert/test and a saliency store."""
    mask_files.write(tmp_path / "truth.json", TRUTH.items())
    for method, content in METHODS.items():
        mask_files.write(tmp_path / f"{method}.json", content.items())
    rng = np.random.default_rng(0)
    for i in range(1, 4):
        folder = tmp_path / "CheXpert" / "test" / f"patient{i:05d}" / "study1"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(folder / "view1_frontal.jpg")
    (tmp_path / "run" / "cams").mkdir(parents=True)
    with h5py.File(tmp_path / "run" / "cams" / "saliency.h5", "w") as file:
        file.attrs["tasks"], file.attrs["image_size"], file["ids"] = json.dumps(TASKS), 8, [name(1)]
        file["maps"], file["sizes"] = rng.random((1, 3, 2, 2), dtype=np.float32), np.int32([[30, 40]])
        file["probabilities"] = np.ones((1, 3), np.float32)
    return tmp_path


def arguments(files):
    methods = [x for m in METHODS if m != "radiologist" for x in ("--method", f"{m}={files / m}.json")]
    return [
        "--ground_truth", files / "truth.json", *methods, "--human", files / "radiologist.json", "--image_dir", files,
        "--maps", files / "run", "--pseudo", files / "weak_irnet.json", "--num_replicates", 20, "--tasks", *TASKS,
    ]  # fmt: skip


def test_make_tables_writes_the_same_report_twice(files, capsys):
    made = []
    for folder in ("a", "b"):
        run(*arguments(files), "--output_dir", files / folder, "--num_examples", 2)
        made.append([(files / folder / n).read_bytes() for n in ("table.csv", "table.md", "sheet.png")])
    assert made[0] == made[1]
    table = pd.read_csv(files / "a" / "table.csv").set_index(["method", "protocol", "task"])
    assert table.loc[("full", "pooled", "mIoU"), "iou"] == 0.75
    assert made[0][1].decode() in capsys.readouterr().out
    with Image.open(files / "a" / "sheet.png") as picture:
        width, height = picture.size
        assert width > 9 * 250 and height > 2 * 200  # X-ray, expert, map, pseudo, four methods, reader; two rows
        assert np.asarray(picture.convert("L")).std() > 20
    manifest = json.loads((files / "a" / "table.manifest.json").read_text())
    assert manifest["arguments"]["num_replicates"] == 20 and len(manifest["inputs"]) == 6


def test_make_tables_without_pictures_needs_no_image(files):
    run(*arguments(files), "--output_dir", files / "out", "--num_examples", 0, "--image_dir", files / "none")
    assert sorted(p.name for p in (files / "out").iterdir()) == ["table.csv", "table.manifest.json", "table.md"]


def test_make_tables_names_what_is_wrong(files):
    for wrong, error, message in [
        (["--method", f"full={files / 'full.json'}"], UsageError, "each name once"),
        (["--method", "radiologist=x.json"], UsageError, "--human"),
        (["--method", "new=none.json"], DataError, "none.json: no such masks file"),
        (["--examples", "nobody"], DataError, "--examples nobody"),
        (["--image_dir", files / "run"], DataError, "no image"),
    ]:
        with pytest.raises(error, match=message):
            run(*arguments(files), "--output_dir", files / "out", *wrong)
    with pytest.raises(UsageError, match="at least one --method"):
        run("--ground_truth", files / "truth.json")
    for text in ("full", "=x", "full="):
        with pytest.raises(SystemExit) as ended:
            run("--method", text)
        assert ended.value.code == 2
