"""The table as CSV and Markdown, by hand."""

import numpy as np
import pytest

from chexseg.errors import DataError
from chexseg.evaluation import comparison as comparisons
from chexseg.evaluation import methods, tables, timings
from tests.evaluation.masks import METHODS, TASKS, TRUTH, entry, name


@pytest.fixture(scope="module")
def comparison():
    return comparisons.compare(TRUTH, METHODS, TASKS, num_replicates=60, seed=3)


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
    papers = [cells(text, methods.title(m))[0][-1] for m in METHODS]
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
    scores = comparisons.compare(truth, methods, "E", num_replicates=200).scores["pooled"]
    a, b = (scores[m].values[:, -1] for m in methods)
    assert np.quantile(a, 0.025) < np.quantile(b, 0.975)
    assert np.allclose(a - b, 0.06)
    (row,) = cells(tables.markdown(comparisons.compare(truth, methods, "E")), "CheXseg − fully supervised")
    assert row[1] == "+0.060 (+0.060 to +0.060)" and row[2] == "100.0%"


def test_what_is_missing_is_left_out_for_all_but_the_second_reader():
    methods = {
        "full": {i: e for i, e in METHODS["full"].items() if i != name(2)} | {name(9): entry(1)},
        "chexseg": METHODS["chexseg"],
        "radiologist": {i: e for i, e in TRUTH.items() if i != name(1)},
    }
    found = comparisons.compare(TRUTH, methods, TASKS, num_replicates=5)
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
    found = comparisons.compare(truth, methods, ["Edema"], num_replicates=40)
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
        comparisons.compare(TRUTH, {"full": {}}, TASKS)
    with pytest.raises(DataError, match="radiologist: none of its images"):
        comparisons.compare(TRUTH, {"full": METHODS["full"], "radiologist": {}}, TASKS)
    with pytest.raises(DataError, match="no method"):
        comparisons.compare(TRUTH, {}, TASKS)


def test_one_method_with_a_name_of_its_own():
    found = comparisons.compare(TRUTH, {"mine": METHODS["full"]}, TASKS, num_replicates=5)
    text = tables.markdown(found)
    assert "No weakly supervised method is given" in text
    assert cells(text, "Edema")[0] == ["Edema", "2", "0.750"]


def test_timings(tmp_path, comparison):
    path = tmp_path / "timings.csv"
    assert timings.read(path) is None
    path.write_text("stage,seconds\nphantom,30.5\nclassifier,100\n")
    text = timings.with_section(tables.markdown(comparison), timings.read(path))
    assert cells(text, "phantom", "## Time of each stage") == [["phantom", "30.5 s"]]
    assert cells(text, "**all**", "## Time of each stage") == [["**all**", "**2 min 10 s**"]]
    for bad in ("step,seconds\na,1\n", "stage,seconds\na,fast\n", ""):
        path.write_text(bad)
        with pytest.raises(DataError, match="timings.csv: (no column 'stage'|seconds: could not|not a CSV file)"):
            timings.read(path)
