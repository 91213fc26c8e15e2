"""Options of a training run: from the command line or by hand, checked either way."""

import pytest

from chexseg.errors import UsageError
from chexseg.runtime import cli
from chexseg.training.options import RunOptions


def test_options_of_the_command_line_are_those_of_a_run():
    parser = cli.make_parser("")
    RunOptions.add_to(parser, num_epochs=20, batch_size=8, lr=1e-4, one_cycle=True)
    args = parser.parse_args(["--precision", "bf16", "--channels_last", "False", "--max_minutes", "3", "--one_cycle"])
    found = vars(RunOptions.of(vars(args)))
    assert found.items() >= {"precision": "bf16", "channels_last": False, "max_minutes": 3.0, "seed": 17}.items()
    assert found == vars(args)  # none is lost on the way


def test_one_cycle_is_offered_only_where_the_script_has_no_schedule_of_its_own():
    parser = cli.make_parser("")
    RunOptions.add_to(parser, num_epochs=5, batch_size=16, lr=0.01)
    assert not RunOptions.of(vars(parser.parse_args([]))).one_cycle
    with pytest.raises(SystemExit):
        parser.parse_args(["--one_cycle"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"precision": "fp8"}, "--precision fp8: choose from auto, fp32, bf16"),
        ({"num_epochs": 0}, "--num_epochs 0: expected a number above 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"max_minutes": -1}, "--max_minutes -1"),
        ({"ema": 1.0}, "--ema 1.0: expected a number from 0, and below 1"),
        ({"num_workers": -1}, "--num_workers -1: expected a whole number of at least 0"),
    ],
)
def test_values_that_no_run_could_have_are_named(change, named):
    with pytest.raises(UsageError, match=named):
        RunOptions(**({"num_epochs": 1, "batch_size": 4, "lr": 0.1} | change))
