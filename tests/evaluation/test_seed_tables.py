"""Tables of networks that were trained several times: figures by hand, the best in bold, LaTeX's characters."""

import numpy as np
import pandas as pd
import pytest

from chexseg.data import mask_files
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.evaluation import charts, seed_tables
from chexseg.evaluation.seed_tables import Cell
from tests.pipeline.scripts import TASKS, entry, name


@pytest.fixture
def files(tmp_path):
    """Truth of 4 pixels of one task in three films; predictions of 2 of them, of 3, and of all."""
    mask_files.write(tmp_path / "truth.json", [(name(i), entry(4)) for i in range(3)])
    for found in (2, 3, 4):
        mask_files.write(tmp_path / f"{found}.json", [(name(i), entry(found)) for i in range(3)])
    return tmp_path


def scored(files, cells):
    return seed_tables.score(cells, MaskFile(files / "truth.json"), TASKS[:1], {}, num_replicates=20)


def test_a_cell_is_the_mean_of_its_seeds(files):
    two = Cell("budget", "4", "a_b", (files / "2.json", files / "3.json"))
    scores = scored(files, [two, Cell("budget", "10", "a_b", (files / "4.json",))])
    assert scores["task"].tolist() == [TASKS[0], "mIoU"] * 2
    assert scores["iou"].tolist() == [0.625, 0.625, 1, 1] and scores["n_seeds"].tolist() == [2, 2, 1, 1]
    spread = np.std([0.5, 0.75], ddof=1)
    assert scores["sd_seeds"].tolist()[:2] == pytest.approx([spread] * 2) and scores["sd_seeds"][2:].isna().all()
    assert scores["lower"].tolist() == pytest.approx(scores["iou"].tolist())  # every patient scores the same


def test_all_films_must_be_predicted(files):
    mask_files.write(files / "part.json", [(name(0), entry(2))])
    with pytest.raises(DataError, match="part.json: no prediction of patient00001"):
        scored(files, [Cell("budget", "4", "a", (files / "part.json",))])


def test_every_form_shows_the_same_and_is_the_same_twice(files, monkeypatch):
    monkeypatch.setattr(charts, "DPI", 40)
    cells = [Cell("budget", str(n), column, (files / "2.json", files / f"{m}.json"))
             for n, column, m in ((10, "a_b", 3), (4, "a_b", 2), (10, "c%", 4))]  # fmt: skip
    scores = scored(files, cells)
    folder = files / "tables"
    (text,) = seed_tables.write(folder, scores, {"budget": "Films & outlines"}, "light")
    assert text.splitlines()[2:] == [
        "|  | a_b | c% |",
        "| --- | ---: | ---: |",
        "| 10 | 0.625 (0.625 to 0.625) ± 0.177 | **0.750** (0.750 to 0.750) ± 0.354 |",
        "| 4 | 0.500 (0.500 to 0.500) ± 0.000 |  |",
    ]
    tex = (folder / "budget.tex").read_text()
    assert r" & a\_b & c\% \\" in tex and r"10 & 0.625 (0.625--0.625) $\pm$ 0.177 & \textbf{0.750} (0" in tex
    assert r"Films \& outlines" in tex and r"4 & 0.500 (0.500--0.500) $\pm$ 0.000 &  \\" in tex
    curve = pd.read_csv(folder / "label_budget.csv")
    assert curve[["method", "n_expert", "iou"]].to_numpy().tolist() == [
        ["a_b", 10, 0.625],
        ["a_b", 4, 0.5],
        ["c%", 10, 0.75],
    ]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert {path.name for path in before} == {"tables.md", "label_budget.csv"} | {
        f"{stem}.{end}"
        for stem, ends in (("budget", "csv md tex png pdf"), ("label_budget", "png pdf"))
        for end in ends.split()
    }
    seed_tables.write(folder, scores, {"budget": "Films & outlines"}, "light")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
