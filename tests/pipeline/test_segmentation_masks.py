"""segmentation_test.py: masks at the original size, the printed IoU, thresholds."""

import runpy

import pytest

from chexseg.data import mask_files, rle
from chexseg.data.mask_files import MaskFile
from tests.irnet.six_films import assert_light
from tests.pipeline.segmentation_world import (
    ROOT,
    TASKS,
    TEST,
    arguments,
    environment,  # noqa: F401
    run_script,
)


def test_predictions_are_of_the_original_size_and_complete(world, trained):
    predicted, truth = MaskFile(trained / "predicted.json"), MaskFile(world / "labels" / "test_encoded.json")
    assert list(predicted) == sorted(truth)
    for name, record in predicted.items():
        assert list(record) == list(TASKS)
        assert {tuple(m["size"]) for m in record.values()} == {tuple(truth[name]["Cardiomegaly"]["size"])}
    assert any(rle.area(list(record.values())).any() for record in predicted.values())


def test_the_printed_iou_is_pooled(world, trained, tmp_path, capsys):
    (trained / "predicted.json").rename(tmp_path / "predicted.json")
    try:
        mask_files.write(trained / "predicted.json", MaskFile(world / "labels" / "test_encoded.json").items())
        module = runpy.run_path(str(ROOT / "segmentation_test.py"), run_name="imported")
        truth = MaskFile(world / "labels" / "test_encoded.json")
        module["report"](MaskFile(tmp_path / "predicted.json"), truth)
    finally:
        (tmp_path / "predicted.json").rename(trained / "predicted.json")
    shown = capsys.readouterr().out
    intersection = union = 0
    predicted = MaskFile(trained / "predicted.json")
    for name in truth:
        ours, true = (rle.decode([found[name]["Atelectasis"]])[0] for found in (predicted, truth))
        intersection, union = intersection + (ours & true).sum(), union + (ours | true).sum()
    line = next(line for line in shown.splitlines() if line.startswith("Atelectasis"))
    assert line.split()[1:] == [f"{intersection / union:.4f}", "5", "images"]
    assert "does not occur" in next(line for line in shown.splitlines() if line.startswith("Edema"))


def test_up_to_date_predictions_need_no_torch(world, trained):
    assert_light("segmentation_test.py", *arguments(world, TEST.format(run=trained / "run", out=trained)))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[0.5]", "a list of 10"),
        ("[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]", "from 0 to 1"),
        ("{", "JSON"),
        (None, "no such"),
    ],
)
def test_wrong_thresholds_are_named(world, trained, tmp_path, capsys, content, named):
    path = tmp_path / "thresholds.txt"
    if content is not None:
        path.write_text(content)
    given = arguments(world, TEST.format(run=trained / "run", out=tmp_path), f"--thresholds_path {path}")
    status, err = run_script("segmentation_test.py", given, capsys)
    assert status == 1 and "thresholds.txt" in err and named in err
    assert not (tmp_path / "predicted.json").exists()
