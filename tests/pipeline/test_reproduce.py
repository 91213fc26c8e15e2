"""reproduce.sh: which commands it runs, and that all of it ends; a stand-in for Python writes down what it is asked."""

import os
import runpy
import signal
import subprocess
import sys
import time

import pytest

from tests.pipeline.scripts import ROOT

STUB = """#!/usr/bin/env bash
if [ "$2" = chexseg.runtime.preloaded ]; then # its protocol: see there
  while IFS= read -r -d '' count; do
    words=()
    for ((i = 0; i < count; i++)); do IFS= read -r -d '' word; words+=("$word"); done
    "$0" "${words[@]}" && echo 0 >&3 || echo 1 >&3
  done
  exit
fi
[ "$1" != -c ] || exec python3 "$@" # a path, not a stage
[ "$1" != -m ] || shift 5
script=${1##*/}
shift
line=$(printf '%s' "$script"; printf '|%s' "$RANKS" "$@")
echo "$line" >>"$LOG" # at once: the other lane writes there too
if [ "$script" = "${STOPS_AT:-}" ]; then exit 1; fi
if [ "$script" = "${SLEEPS_AT:-}" ]; then echo $$ >>"$LOG.asleep"; exec sleep 60; fi
if [ "$script" = make_tables.py ]; then mkdir -p "$REPORT"; echo table >"$REPORT/table.md"; fi
"""


@pytest.fixture
def world(tmp_path):
    """A folder with blanks and with the name of a run's folder in its path, and the environment of a run there."""
    root = tmp_path / "my train_cams"
    for name in ("data", "truth", "work"):
        (root / name).mkdir(parents=True)
    stub = root / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    own = {
        "PYTHON": stub,
        "LOG": root / "log",
        "REPORT": root / "work" / "report",
        "CHEXSEG_CKPT": root / "m" / "c.ckpt",
    }
    data = {"CHEXPERT_DATA_DIR": "data", "OBJ_EFFICIENCY_BASE_PATH": "base", "TEST_SEG_LABELS_GT_BASE_PATH": "truth"}
    own |= {variable: root / name for variable, name in data.items()}
    return root, {"PATH": os.environ["PATH"], **{key: str(value) for key, value in own.items()}}


def command(root, *words):
    return ["bash", str(ROOT / "reproduce.sh"), *words, "--workspace", str(root / "work")]


def asked(root):
    return [line.split("|") for line in (root / "log").read_text().splitlines()]


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_papers_run_asks_the_doctor_first_and_once(world):
    root, environment = world
    done = subprocess.run(command(root, "paper"), env=environment | {"STOPS_AT": "doctor.py"}, capture_output=True)
    assert done.returncode != 0 and [words[0] for words in asked(root)] == ["doctor.py"]
    given = asked(root)[0]
    assert given[given.index("--ckpt_path") + 1] == str(root / "m" / "c.ckpt")
    assert given[given.index("--expert_len") + 1] == "147" and given[given.index("--subset_len") + 1] == "100"
    for _ in range(2):
        done = subprocess.run(command(root, "paper"), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    names = [words[0] for words in asked(root)]
    assert names.count("doctor.py") == 2 and names[1] == "doctor.py" and names.count("segmentation_train.py") == 12


def test_maps_of_other_sets_are_looked_for_where_they_were_written(world):
    root, environment = world
    assert subprocess.run(command(root, "paper"), env=environment, capture_output=True).returncode == 0
    written = [words[words.index("--save_dir_predictions") + 1] for words in asked(root) if words[0] == "test.py"]
    assert written == [f"{root}/base/{split}_cams" for split in ("test", "valid", "train")]
    table = next(words for words in asked(root) if words[0] == "make_tables.py")
    assert table[table.index("--maps") + 1] == f"{root}/base/test_cams/m_c.ckpt"


def test_no_training_gets_more_processes_than_its_batches_have_images(world):
    root, environment = world
    stub = root / "python"
    stub.write_text(STUB.replace("shift 5", "{ RANKS=$5; shift 5; }"))
    done = subprocess.run(command(root, "paper", "--processes", "8"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ranks = {(words[0], words[1]) for words in asked(root)}
    assert {("test.py", "8"), ("train_irnet.py", "8"), ("segmentation_distillation.py", "2")} <= ranks
    assert {number for name, number in ranks if name == "segmentation_train.py"} == {"2", "4"}


def test_tables_go_on_from_the_very_networks_of_the_pipeline(world):
    """paper_tables.py plans for real; every network that the pipeline has trained is asked for with its own options."""
    root, environment = world
    (root / "python").write_text(
        STUB.replace("script=$", "full=$1 script=$")
        + '[[ "$script" != paper_tables.py || " $* " != *" --plan "* ]] || exec "$REAL" "$full" "$@"\n'
    )
    run = root / "work/tiny/base/train_cams/m_c.ckpt"
    run.mkdir(parents=True)
    (run / "pseudo_seg_labels_encoded_irnet.json").write_text('{"a": {}}')
    given = environment | {"REAL": sys.executable, "REPORT": str(root / "work/tiny/report"), "PYTHONPATH": str(ROOT)}
    asking = command(root, "tiny", "tables", "--only", "budget", "switches", "--seeds", "17")
    done = subprocess.run(asking, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trainings with the seeds 17; 0 of them ended before" in done.stdout
    words = asked(root)
    first = [line[0] for line in words].index("paper_tables.py")
    assert words[-1][0] == "paper_tables.py" and "--plan" not in words[-1] and words[-1][-5:] == asking[4:9]

    def trainings(lines):
        parsed = {}
        for script, _, *options in lines:
            if script in ("segmentation_train.py", "segmentation_distillation.py"):
                args = runpy.run_path(str(ROOT / script), run_name="parsed")["build_parser"]().parse_args(options)
                parsed[args.save_dir / args.experiment_name] = vars(args)
        return parsed

    pipeline, tables = trainings(words[:first]), trainings(words[first:])
    shared = pipeline.keys() & tables.keys()
    assert {path.name for path in shared} == {"full", "chexseg", "full_plus", "teacher", "chexseg_plus"}
    assert all(pipeline[path] == tables[path] for path in shared)
    assert len(tables) > 20 and {args["seed"] for args in tables.values()} == {17}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor runs one lane after the other")
def test_a_signal_ends_both_lanes(world):
    root, environment = world
    given = environment | {"SLEEPS_AT": "test.py"}
    (root / "python").write_text(
        STUB.replace('"${SLEEPS_AT:-}" ]', '"${SLEEPS_AT:-}" ] || [ "$script" = segmentation_train.py ]')
    )
    run = subprocess.Popen(command(root, "tiny"), env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asleep, deadline = root / "log.asleep", time.monotonic() + 30
    while not (asleep.is_file() and len(asleep.read_text().split()) == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = [int(number) for number in asleep.read_text().split()]
    run.send_signal(signal.SIGTERM)
    assert run.wait(20) == 143 and len(processes) == 2
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, processes))
