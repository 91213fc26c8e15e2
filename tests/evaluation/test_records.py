"""The history of a report's files, followed backwards and never out of the named folders."""

import json
from pathlib import Path

import pytest

from chexseg.evaluation import records


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def manifest(path, inputs=(), **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    more = {"command": "stage.py", "inputs": {str(one): "0" * 64 for one in inputs}} | more
    write(path.with_name(path.name + ".manifest.json"), **more)


@pytest.fixture
def run(tmp_path):
    """Polygons -> truth; a classifier -> maps -> IRNet; a network on both, trained in two epochs -> masks."""
    truth, maps, ckpt = tmp_path / "truth.json", tmp_path / "run" / "cams" / "saliency.h5", tmp_path / "c.ckpt"
    manifest(truth)
    manifest(ckpt, command="train.py")
    manifest(maps, [ckpt], command="test.py")
    log = "\n".join(json.dumps({"epoch": e, "train_loss": 1 / e, "score": s}) for e, s in ((1, 0.5), (2, 0.25)))
    for place in ("c.ckpt.training", "ir_model", "trial"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "log.jsonl").write_text(log + '\n{"epoch": 3, "tra')  # the last line cut off by a kill
    irnet = tmp_path / "best_ir_model.pth"
    write(
        tmp_path / "ir_model" / "args.json",
        command="train_irnet.py",
        inputs={},
        paths={"map_dir": str(maps.parents[1])},
    )
    network = tmp_path / "trial" / "best_model.pth"
    arguments = {"seed": 17, "train_masks_path": str(truth), "resume": "auto"}
    write(
        tmp_path / "trial" / "args.json", command="segmentation_train.py", inputs={str(irnet): ""}, arguments=arguments
    )
    masks = tmp_path / "trial" / "masks.json"
    manifest(masks, [network], command="segmentation_test.py")
    (tmp_path / "trial" / "thresholds.txt").write_text("[0.5, 0.25]")
    return tmp_path


def test_the_last_epoch_is_the_kept_one_where_it_was_asked_for():
    log = [{"epoch": 1, "score": 0.9}, {"epoch": 2, "score": 0.1}]
    stage = records.Stage(Path("a"), {"arguments": {"keep_epoch": "last"}})
    assert records.Training("a", Path("a"), log).best == 1
    assert records.Training("a", Path("a"), log, stage).best == 2
    assert records.Training("a", Path("a"), [], stage).best is None


def test_stages_come_in_the_order_in_which_they_build_on_each_other(run):
    found = records.trace([run / "trial" / "masks.json"], [run])
    assert [stage.command for stage in found.stages] == [
        "train.py", "test.py", "train_irnet.py", "stage.py", "segmentation_train.py", "segmentation_test.py",
    ]  # fmt: skip
    assert [one.name for one in found.trainings] == ["c.ckpt", "best_ir_model.pth", "trial"]
    assert [len(one.log) for one in found.trainings] == [2, 2, 2] and found.trainings[0].best == 1
    assert found.stages[-2].seed == 17 and found.gaps == []
    assert records.thresholds(run / "trial" / "masks.json") == [0.5, 0.25]


def test_no_record_leads_out_of_the_named_folders(run):
    outside = records.trace([run / "trial" / "masks.json"], [run / "trial"])
    assert [stage.command for stage in outside.stages] == ["segmentation_train.py", "segmentation_test.py"]
    (run / "trial" / "link.json").symlink_to(run / "truth.json")
    assert records.trace([run / "trial" / "link.json"], [run / "trial"]).stages == []


def test_circles_damage_and_gaps(run, tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    manifest(a, [b])
    manifest(b, [a])
    assert len(records.trace([a], [tmp_path]).stages) == 2
    for text in ("", "{", "[1]", '{"inputs": [1]}', "null", "[" * 100_000):
        b.with_name("b.json.manifest.json").write_text(text)
        found = records.trace([b], [tmp_path])
        assert found.stages == [] and found.gaps == [b]
    manifest(b, arguments=[1], paths="x", versions=None, command=["rm"])
    (stage,) = records.trace([b], [tmp_path]).stages
    assert stage.values("arguments") == {} and stage.seed is None and stage.command == "['rm']"
    for text in ("{}", '["a"]', "0.5"):
        (run / "trial" / "thresholds.txt").write_text(text)
        assert records.thresholds(run / "trial" / "masks.json") is None


def test_drawn_films_are_known_by_their_folder(tmp_path):
    polygons = tmp_path / "labels" / "annotations.json"
    write(tmp_path / "labels" / "phantom.manifest.json", command="make_synthetic_chexpert.py", inputs={})
    manifest(tmp_path / "masks.json", [polygons, polygons.with_name("others.json")])
    found = records.trace([tmp_path / "masks.json"], [tmp_path])
    assert [stage.command for stage in found.stages] == ["make_synthetic_chexpert.py", "stage.py"]  # once
