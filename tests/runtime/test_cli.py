"""Every script: `--help` without any environment, wrong options end with status 2, wrong data with one line and 1."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chexseg.errors import DataError, MissingError, UsageError
from chexseg.runtime import cli

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    str(p.relative_to(ROOT))
    for folder in (ROOT, ROOT / "IRNet", ROOT / "localization_eval")
    for p in folder.glob("*.py")
    if p.name not in ("constants.py", "__init__.py")
)


def run_here(script, arguments, monkeypatch, capsys):
    """A script as `python script arguments` would run it, in this process: torch is loaded once, not thirty times."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return ended.value.code, capsys.readouterr()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    for name in ("CHEXPERT_DATA_DIR", "OBJ_EFFICIENCY_BASE_PATH", "TEST_SEG_LABELS_GT_BASE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_all_stages_are_here():
    assert {
        "make_synthetic_chexpert.py", "train.py", "test.py", "localization_eval/pred_segmentation.py",
        "localization_eval/gt_segmentation.py", "localization_eval/eval.py", "IRNet/convert_to_hdf5.py",
        "localization_eval/tune_thresholds.py", "localization_eval/chexlocalize.py", "IRNet/tune_random_walk.py",
        "IRNet/cam_to_ir_label_hdf5.py", "IRNet/train_irnet.py", "make_pseudo_seg_labels.py",
        "create_train_set_subsets.py", "segmentation_train.py", "segmentation_test.py", "make_tables.py",
        "pseudo_label_quality.py", "paper_tables.py",
        "doctor.py",
        "convert_masks.py", "segmentation_predict.py", "segmentation_distillation.py",
    } == set(SCRIPTS)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_environment_and_explains_every_option(script, monkeypatch, capsys, tmp_path):
    status, shown = run_here(script, ["--help"], monkeypatch, capsys)
    assert status == 0 and shown.err == ""
    assert f"python {script}" in shown.out or f"python {Path(script).name}" in shown.out
    assert list(tmp_path.iterdir()) == []
    module = runpy.run_path(str(ROOT / script), run_name="imported")
    for action in module["build_parser"]()._actions:
        assert action.help, f"{script}: {action.option_strings} has no help"
        assert action.type is not bool


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_option_is_wrong_usage(script, monkeypatch, capsys, tmp_path):
    status, shown = run_here(script, ["--no_such_option", "3"], monkeypatch, capsys)
    assert status == 2
    assert any(words in shown.err for words in ("--no_such_option", "required", "invalid choice"))
    assert list(tmp_path.iterdir()) == []


def booleans():
    for script in SCRIPTS:
        text = (ROOT / script).read_text()
        for line in text.splitlines():
            if "add_boolean(parser," in line:
                yield script, line.split('"')[1]


@pytest.mark.parametrize(("script", "option"), list(booleans()))
def test_booleans_refuse_what_is_neither(script, option, monkeypatch, capsys):
    status, shown = run_here(script, [option, "maybe"], monkeypatch, capsys)
    assert status == 2
    assert "expected True or False, got 'maybe'" in shown.err


@pytest.mark.parametrize(
    ("words", "value"),
    [([], False), (["--x"], True), (["--x", "True"], True), (["--x", "False"], False), (["--x", "no"], False)],
)
def test_boolean_forms(words, value):
    parser = cli.make_parser("doc")
    cli.add_boolean(parser, "--x", help="x")
    assert parser.parse_args(words).x is value


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.positive_int, "1", "0"),
        (cli.positive_int, "7", "1.5"),
        (cli.non_negative_int, "0", "-1"),
        (cli.fraction, "0.9", "1.1"),
        (cli.fraction, "0", "nan"),
        (cli.positive_float, "1e-4", "0"),
        (cli.positive_float, "1", "inf"),
        (cli.non_negative_float, "0", "ten"),
    ],
)
def test_numbers(kind, good, bad):
    import argparse

    assert kind(good) == float(good)
    with pytest.raises(argparse.ArgumentTypeError, match="expected .*, got"):
        kind(bad)


@pytest.mark.parametrize(
    ("error", "status"),
    [(DataError("a.csv: bad\nvalue"), 1), (UsageError("--x and --y exclude each other"), 2), (OSError("disk full"), 1)],
)
def test_errors_end_in_one_line(error, status, capsys):
    def fail(args):
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(fail, lambda: cli.make_parser("doc"), [])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == status and len(lines) == 1
    assert "error: " + " ".join(str(error).split()) in lines[0]


def test_an_error_in_a_loaders_worker_is_told_without_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(
            lambda args: list(torch.utils.data.DataLoader(Damaged(), num_workers=1)), lambda: cli.make_parser(""), []
        )
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1 and said.endswith(": error: a.jpg: ValueError: not an image; replace it")
    assert "Traceback" not in said


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError("a.jpg: ValueError: not an image;\nreplace it")


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError(), "memory ran out (MemoryError); try a smaller --batch_size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "memory ran out ([enforce",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            "(CUDA out of memory. Tried to allocate 2 GiB.)",
        ),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            "a data worker (pid 71) was killed, most likely because memory ran out",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 71, 72) exited unexpectedly"),
            "a data worker (pid 71, 72) was killed, most likely because memory ran out",
        ),
    ],
)
def test_what_ran_out_of_memory_is_told_in_one_line(error, said, capsys):
    def fail(args):
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(fail, lambda: cli.make_parser("doc"), [])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(
    "error, status, word", [(KeyboardInterrupt(), 130, "interrupted"), (SystemExit(143), 143, "stopped")]
)
def test_signals_end_in_one_line(error, status, word, capsys, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    with pytest.raises(SystemExit) as stop:
        cli.run(fail, lambda: cli.make_parser("doc"), [])
    assert stop.value.code == status
    assert capsys.readouterr().err.endswith(f": {word}; run the same command again to go on\n")


@pytest.mark.parametrize("status", [130, 143])
def test_a_signal_that_comes_as_a_class_is_made_is_one(status, capsys, monkeypatch):
    """Python 3.11 and before makes a RuntimeError of what is raised there."""
    monkeypatch.setattr(signal, "signal", lambda *given: None)

    class Interrupted:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt if status == 130 else SystemExit(143)

    with pytest.raises(SystemExit) as ended:
        cli.run(lambda args: type("Made", (), {"field": Interrupted()}), lambda: cli.make_parser("doc"), [])
    said = capsys.readouterr().err
    assert ended.value.code == status and len(said.splitlines()) == 1 and "run the same command again" in said


def test_a_cause_that_is_raised_again_stands_behind_itself_and_is_told(capsys):
    """As where a checkpoint may not be read: its error is put into words, then raised for what it is."""

    def unreadable(args):
        try:
            try:
                raise PermissionError(13, "Permission denied", "checkpoint.pt")
            except OSError as error:
                raise DataError("checkpoint.pt: damaged") from error
        except DataError as error:
            raise error.__cause__ from None

    with pytest.raises(SystemExit) as ended:
        cli.run(unreadable, lambda: cli.make_parser("doc"), [])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(said) == 1 and "Permission denied: 'checkpoint.pt'" in said[0]


def test_errors_that_cause_each_other_end_in_one_line(capsys):
    def main(args):
        first, second = DataError("a.json: damaged"), DataError("the other")
        first.__cause__, second.__cause__ = second, first
        raise first

    with pytest.raises(SystemExit) as ended:
        cli.run(main, lambda: cli.make_parser("doc"), [])
    assert ended.value.code == 1 and "a.json: damaged" in capsys.readouterr().err


def test_the_caller_gets_its_signal_handler_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        cli.run(lambda args: None, lambda: cli.make_parser("doc"), [])
    assert signal.getsignal(signal.SIGTERM) == before


def test_bugs_show_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 / 0, lambda: cli.make_parser("doc"), [])


def test_blank_words_of_a_pasted_command_are_dropped():
    seen = []

    def build():
        parser = cli.make_parser("doc")
        parser.add_argument("--weights", default="x", help="w")
        return parser

    with pytest.raises(SystemExit):
        cli.run(seen.append, build, ["--weights", "", " "])
    assert seen[0].weights == ""


@pytest.mark.parametrize("variable", ["CHEXPERT_DATA_DIR", "OBJ_EFFICIENCY_BASE_PATH"])
def test_variable_that_points_nowhere_is_named(variable, tmp_path):
    """As a process of its own, from another working directory."""
    environment = {**os.environ, variable: str(tmp_path / "nowhere")}
    done = subprocess.run(
        [sys.executable, ROOT / "test.py", "--ckpt_path", "none.ckpt", "--save_train_cams"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    wanted = f"{variable}={tmp_path}/nowhere: no such folder" if variable == "CHEXPERT_DATA_DIR" else "none.ckpt"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2
    assert wanted in done.stderr or "none.ckpt: no such checkpoint" in done.stderr


def test_errors_of_what_is_not_where_it_should_be_point_to_the_doctor(monkeypatch, capsys):
    """A file that is missing does, a file that is wrong does not: the doctor would say no more of it."""
    said = {}
    for error in (MissingError("a.csv: no such file"), DataError("a.csv: no number")):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda args, error=error: raises(error), lambda: cli.make_parser("doc"), [])
        said[type(error)] = capsys.readouterr().err.splitlines()
        assert ended.value.code == 1 and len(said[type(error)]) == 1
    assert said[MissingError][0].endswith("error: a.csv: no such file (python doctor.py looks at everything at once)")
    assert "doctor" not in said[DataError][0]
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", "/nowhere/at all")
    status, shown = run_here("IRNet/convert_to_hdf5.py", [], monkeypatch, capsys)
    assert status == 1 and "OBJ_EFFICIENCY_BASE_PATH=/nowhere/at all: no such folder" in shown.err.splitlines()[-1]
    assert shown.err.splitlines()[-1].endswith(f"({cli.DOCTOR} looks at everything at once)")


def raises(error: Exception) -> None:
    raise error
