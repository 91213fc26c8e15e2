"""The figures that a paper shows: written beside the report, and the workflow of all methods, from its own names."""

import runpy

import numpy as np
import pytest
from PIL import Image

from chexseg.evaluation import charts, comparison, figure, report
from tests.evaluation.masks import METHODS, TASKS, TRUTH, name
from tests.pipeline.scripts import ROOT

workflow = runpy.run_path(str(ROOT / "docs" / "workflow.py"))


def test_figures_stand_beside_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "DPI", 50)
    found = comparison.compare(TRUTH, METHODS, TASKS, num_replicates=20)
    (tmp_path / "quality.csv").write_text("source,gate,task,iou,lower,upper\ncams,none,Edema,0.2,0.1,0.3\n")
    (tmp_path / "label_budget.csv").write_text("method,n_expert,iou\nfull,10,0.2\nfull,20,0.3\n")
    written = report.write_figures(tmp_path, found, "dark")
    names = [f"{kind}_{protocol}" for protocol in found.scores for kind in ("miou", "differences")]
    assert written == [f"figures/{one}.{end}" for one in (*names, "quality", "label_budget") for end in ("png", "pdf")]
    assert all((tmp_path / one).stat().st_size > 1000 for one in written)
    with Image.open(tmp_path / "figures" / "miou_pooled.png") as picture:
        assert np.median(np.asarray(picture.convert("L"))) < 40  # dark ground


@pytest.mark.parametrize("style,kind", [("light", "png"), ("dark", "png"), ("light", "pdf")])
def test_the_sheet_on_light_and_dark_ground(tmp_path, style, kind):
    images = {name(1): np.full((30, 40), 128, np.uint8)}
    columns = [figure.Column("Fully supervised", METHODS["full"], against_truth=True)]
    figure.draw(tmp_path / "sheet", images, TRUTH, columns, TASKS, style=style, kind=kind)
    if kind == "pdf":
        assert (tmp_path / "sheet").read_bytes().startswith(b"%PDF")
        return
    with Image.open(tmp_path / "sheet") as picture:
        corner = picture.convert("L").getpixel((2, 2))
        assert corner > 250 if style == "light" else corner < 20


def test_the_workflow_shows_every_step_of_the_reproduction():
    steps = workflow["steps"]((ROOT / "reproduce.sh").read_text())
    assert {"classifier", "train_weak_cam", "train_weak_irnet", "train_full", "train_chexseg", "table"} <= set(steps)
    assert all((ROOT / path).is_file() for path in steps.values())
    words = " ".join(text.get_text() for text in workflow["draw"](steps).axes[0].texts)
    for step, path in steps.items():
        assert path.rpartition("/")[2] in words, step
    assert set(workflow["METHODS"]) == {"weak_cam", "weak_irnet", "full", "chexseg"}
    placed = {step for box in workflow["BOXES"].values() for step in box.steps}
    assert not placed - set(steps)  # no box of a step that is gone
    more = workflow["draw"](steps | {"new_step": "new.py"}).axes[0].texts
    assert any("new_step (new.py)" in text.get_text() for text in more)
