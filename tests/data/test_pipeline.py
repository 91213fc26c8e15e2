"""The paper's stages: what is finished, begun and blocked, and what comes next."""

import json
import re
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from chexseg.data import pipeline, stage_states
from chexseg.data.pipeline import Counts, Places, Settings, Speed, Stage
from chexseg.data.stage_states import BEGUN, FINISHED, TO_DO, UNRECORDED
from chexseg.runtime.checks import BAD, Check

COUNTS, SPEED, SETTINGS = Counts(1000, 187, 500), Speed(0.04, 0.01, 2), Settings()


@pytest.fixture
def places(tmp_path):
    base = tmp_path / "base"
    run = base / "train_cams" / "mine_c.ckpt"
    runs = run, base / "test_cams" / run.name, base / "valid_cams" / run.name
    return Places(base, tmp_path / "labels", base / "c.ckpt", *runs, tmp_path / "gt.json", tmp_path / "report")


def stages(places, counts=COUNTS, speed=SPEED):
    return pipeline.paper_stages(places, counts, speed, SETTINGS)


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def finish(output):
    """As `shards.seal` and the end of a training leave it."""
    write(output, "made")
    record = {"output": {"size": 4}, "finished": {}}
    write(output.with_name(output.name + ".manifest.json"), json.dumps(record))


def test_a_stage_needs_what_stages_before_it_make(places):
    made, inputs = set(), set()
    for stage in stages(places):
        assert set(stage.needs) - made <= {
            "train", "valid", "test", "classifier", "classifier weights", "valid outlines", "test outlines",
            "expert set", "pseudo set", "encoder",
        }, stage.name  # fmt: skip
        made.add(stage.name)
        for word in stage.command.split():  # a file that a command reads is an output of an earlier stage
            if word.startswith(str(places.base)) and word.endswith((".json", ".pth")):
                assert word in inputs or any(word == str(output) for output in stage.outputs), (stage.name, word)
        inputs |= {str(output) for output in stage.outputs}


def test_commands_are_understood_by_the_scripts(places):
    root = Path(__file__).resolve().parents[2]
    for stage in stages(places):
        script, *words = stage.command.split()
        runpy.run_path(str(root / script), run_name="imported")["build_parser"]().parse_args(words)


def test_time_grows_with_images_epochs_and_the_network():
    nowhere = Places(*[Path("x")] * 8)

    def seconds(counts=COUNTS, speed=SPEED, settings=SETTINGS):
        return {stage.name: stage.seconds for stage in pipeline.paper_stages(nowhere, counts, speed, settings)}

    usual = seconds()
    assert usual["classifier"] == pytest.approx(1000 * (0.005 + 3 * 0.04 * 3))
    assert seconds(Counts(2000, 187, 500))["relation labels"] == 2 * usual["relation labels"]
    assert seconds(speed=Speed(0.08, 0.01, 2))["train full"] > 1.9 * usual["train full"]
    assert seconds(settings=replace(SETTINGS, epochs=40))["train chexseg"] > 1.9 * usual["train chexseg"]
    assert seconds(speed=Speed())["classifier"] == 0


def test_states(places, tmp_path):
    output = tmp_path / "out.json"
    stage = Stage("s", "", (output,))
    assert stage_states.state(stage) == TO_DO
    for i in range(3):
        write(tmp_path / ".out.json.parts" / f"{i:06d}-of-000012")
        write(tmp_path / ".out.json.parts" / f"{i:06d}-of-000012.json")
    assert stage_states.state(stage) == f"{BEGUN}: 3 of 12 shards"
    write(output, "by hand")
    assert stage_states.state(stage) == UNRECORDED
    finish(output)
    assert stage_states.state(stage) == FINISHED
    write(output, "changed since")
    assert stage_states.state(stage) == UNRECORDED
    assert stage_states.state(Stage("s", "", (output, tmp_path / "other"))) == TO_DO


def test_states_of_networks(tmp_path):
    for best, checkpoint, record in (
        ("c.ckpt", "c.ckpt.training/checkpoint.pt", "c.ckpt.manifest.json"),
        ("full/best_model.pth", "full/checkpoint.pt", "full/args.json"),
        ("best_ir_lr_0.01.pth", "ir_lr_0.01/checkpoint.pt", "ir_lr_0.01/args.json"),
    ):
        stage = Stage("s", "", (tmp_path / best,))
        assert stage_states.state(stage) == TO_DO
        write(tmp_path / checkpoint)
        assert stage_states.state(stage) == BEGUN
        write(tmp_path / best)
        assert stage_states.state(stage) == UNRECORDED
        write(tmp_path / record, "{}")
        assert stage_states.state(stage) == BEGUN
        write(tmp_path / record, '{"finished": {}}')
        assert stage_states.state(stage) == FINISHED


def test_what_is_missing_blocks_what_needs_it_and_nothing_else(places):
    made = stages(places)
    assert stage_states.blocked(made, []) == {}
    reasons = stage_states.blocked(made, [Check("data", "test outlines", BAD, "no such file")])
    assert reasons == dict.fromkeys(["test masks", "predicted masks", "tables"], "test outlines")
    reasons = stage_states.blocked(made, [Check("data", "train images", BAD, "gone")])
    assert "classifier" in reasons and "pseudo masks" in reasons and "expert masks" not in reasons
    reasons = stage_states.blocked(made, [Check("data", "pseudo set", BAD, "25 training images")])
    assert set(reasons) == {"pseudo subset", "train chexseg", "predicted masks", "tables"}
    shown = stage_states.table(made, reasons)
    assert shown.count("BLOCKED by pseudo set, see above") == 4


def test_a_finished_stage_is_not_blocked_and_blocks_nobody(places):
    made = stages(places)
    finish(places.checkpoint)
    reasons = stage_states.blocked(made, [Check("data", "classifier weights", BAD, "none")])
    assert reasons == {}
    assert stage_states.next_stage(made, reasons).name == "saliency maps"


def test_next_is_the_first_that_can_run(places):
    made = stages(places)
    assert stage_states.next_stage(made, {}).name == "classifier"
    reasons = stage_states.blocked(made, [Check("data", "classifier weights", BAD, "none")])
    assert stage_states.next_stage(made, reasons).name == "expert masks"
    for stage in made:
        for output in stage.outputs:
            finish(output)
    for method in (*pipeline.METHODS, pipeline.TEACHER):
        write(places.model(method).parent / "args.json", '{"finished": {}}')
    assert stage_states.next_stage(made, {}) is None
    assert "work left" not in stage_states.table(made, {})


def test_room_grows_with_the_set_and_shrinks_with_what_is_there(places):
    few, many = (stage_states.bytes_needed(stages(places, Counts(n, 0, 0))) for n in (1000, 191_000))
    assert 1e9 < few < 5e9 and 1e11 < many < 3e11
    large = next(stage for stage in stages(places, Counts(191_000, 0, 0)) if stage.name == "images and maps")
    finish(large.outputs[0])
    assert stage_states.bytes_needed(stages(places, Counts(191_000, 0, 0))) == pytest.approx(many - large.bytes)
    for stage in stages(places):
        for output in stage.outputs:
            finish(output)
    for method in (*pipeline.METHODS, pipeline.TEACHER):
        write(places.model(method).parent / "args.json", '{"finished": {}}')
    assert stage_states.bytes_needed(stages(places)) == 0


def test_every_step_of_reproduce_has_a_row(places):
    """Each script that reproduce.sh runs with the paper's settings is a stage's, as often."""
    text = (Path(__file__).resolve().parents[2] / "reproduce.sh").read_text()
    steps = re.findall(r'^ *step "?([\w$]+)"? "\$here/([\w/.]+)"', text, re.MULTILINE)
    trained = re.findall(r"^ *train (\w+) ", text, re.MULTILINE)
    wanted = Counter(script for name, script in steps if name not in ("train_$1", "phantom", "radiologist_masks"))
    wanted["segmentation_train.py"] += len(trained)
    assert Counter(stage.command.split()[0] for stage in stages(places)) == wanted
    write(places.truth / "human_annotations_test.json", "{}")
    assert "radiologist masks" in [stage.name for stage in stages(places)]
