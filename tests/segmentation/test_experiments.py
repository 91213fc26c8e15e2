"""The list of the tables' networks: each is one network, at equal draws, and its command one that its script takes."""

import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from chexseg.segmentation import experiment_plan as plans
from chexseg.segmentation.experiments import SWITCHES, TITLES, Network, networks, recipe

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = list(networks(60, 100, 700))
NAMES = "ckpt experts rest run trials pool imagenet"
PLACES = {name: Path("/a b") / name for name in NAMES.split()} | {"scripts": ROOT}
DRAWS = {name: f"--num_epochs {n} --epoch_len 40" for name, n in (("full", 8), ("teacher", 4), ("student", 4))}
PRESET = plans.Preset("--lr 1e-3 --augment", "--encoder resnet10w32 --image_size 64", DRAWS, PLACES)


def parse(words):
    return runpy.run_path(words[0], run_name="parsed")["build_parser"]().parse_args(words[1:])


def test_every_table_has_rows_and_a_network_one_name():
    assert {table for table, *_ in ENTRIES} == set(TITLES)
    assert max(Counter((table, row, column) for table, row, column, _ in ENTRIES).values()) == 1
    every = {network for *_, network in ENTRIES}
    every |= {network.teacher for network in every if network.teacher}
    assert len({network.name for network in every}) == len(every)
    assert len({replace(network, name="") for network in every if network.kind != "full"}) == len(
        [network for network in every if network.kind != "full"]
    )


def test_rows_are_those_that_the_data_has():
    def rows(table, *sizes, **more):
        return list(dict.fromkeys(row for name, row, *_ in networks(*sizes, **more) if name == table))

    assert rows("budget", 147, 100, 9000) == ["10", "25", "50", "100", "147"]
    assert rows("budget", 60, 100, 700) == ["10", "25", "50", "60"]
    assert rows("budget", 10, 20, 80, budgets=[5]) == ["5", "10"]
    assert rows("length", 60, 100, 700) == ["25", "50", "100", "200", "500", "700"]
    assert rows("length", 10, 20, 80) == ["20", "25", "50", "80"]
    assert rows("weight", 60, 100, 700) == [f"0.{i}" for i in range(1, 10)] + ["concatenated"]
    assert rows("encoder", 60, 100, 700) == ["random", "imagenet", "classifier"]


def test_each_switch_is_alone_once_and_left_out_once():
    options = {(row, column): set(network.options.split(" --")) for table, row, column, network in ENTRIES
               if table == "switches"}  # fmt: skip
    none, every = options["none", "this alone"], options["all", "all"]
    for name, switch in SWITCHES.items():
        words = set(switch.removeprefix("--").split(" --"))
        assert options[name, "this alone"] - none == words and every - options[name, "all but this"] == words
    assert recipe().options.replace("--rounds 2", "") == recipe().options


@pytest.mark.parametrize("network", {n for *_, n in ENTRIES} | {n.teacher for *_, n in ENTRIES if n.teacher})
def test_a_command_is_one_that_its_script_takes_and_draws_are_equal(network):
    args = parse(PRESET.train_command(network, 18))
    assert args.seed == 18 and args.save_dir / args.experiment_name == PRESET.folder(network, 18)
    draws = args.num_epochs * args.epoch_len * getattr(args, "rounds", 1)
    assert draws == (320 if network.kind not in ("teacher", "student") else 160)
    for path, words in PRESET.subset_command(network, 18):
        given = parse(words)
        made = [given.output_path, given.map_dir and PRESET.pseudo(given.pseudo_labels_type, given.subset_len)]
        assert path in made and str(path) in PRESET.train_command(network, 18)
    if network.teacher:
        assert args.teacher_path == [PRESET.folder(network.teacher, 18) / "best_model.pth"]
        assert (network.teacher.experts, args.loss) == (
            network.experts,
            parse(PRESET.train_command(network.teacher, 18)).loss,
        )


def test_what_reproduce_trains_is_not_trained_again():
    network = Network("full", "full")
    assert PRESET.folder(network, 17) == Path("/a b/trials/full")
    assert PRESET.folder(network, 18) == Path("/a b/trials/tables/full_seed_18")
    assert PRESET.folder(Network("switch_none", "student"), 17).parent == Path("/a b/trials/tables")


def test_lanes_are_balanced_and_hold_every_step():
    steps = [plans.Step(str(i), ["x"], seconds) for i, seconds in enumerate((5, 1, 1, 1, 9, 3))]
    one, other = plans.lanes(steps)
    assert sorted(step.name for step in (*one, *other)) == list("012345")
    assert abs(sum(s.seconds for s in one) - sum(s.seconds for s in other)) <= 2


def test_a_training_takes_as_long_as_the_one_like_it():
    times = {
        "train_full": 10.0,
        "train_full_plus": 11,
        "train_teacher": 6,
        "train_chexseg": 12,
        "train_chexseg_plus": 7,
    }
    kinds = {"full": 10, "teacher": 6, "alone": 12, "chexseg": 12, "student": 7}
    assert {kind: plans.seconds_of(Network("x", kind), times) for kind in kinds} == kinds
    assert plans.seconds_of(Network("x", "full", "--batch_size 4"), times) == 11
    assert plans.seconds_of(Network("x", "full"), {}) is None
