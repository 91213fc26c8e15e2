"""What scripts make of a pasted command with a stray blank, and of names that were left out."""

import pytest

import constants
from chexseg.errors import DataError
from chexseg.irnet import options
from chexseg.runtime import cli


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(tmp_path))
    return tmp_path.resolve()


def build():
    parser = cli.make_parser("doc")
    parser.add_argument("--weights", required=True, help="w")
    return parser


def test_a_blank_behind_a_backslash_is_told_before_the_missing_option(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(print, build, [" "])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.index("did one follow a backslash") < shown.index("required: --weights")


def test_an_empty_word_is_a_value_and_no_stray_blank(capsys):
    with pytest.raises(SystemExit):
        cli.run(lambda args: None, build, ["--weights", ""])
    assert "backslash" not in capsys.readouterr().err


def test_the_default_run_is_the_published_one_else_the_only_one(base, capsys):
    runs = base / "train_cams"
    assert constants.run_dir() == runs / constants.MODEL_NAME
    (runs / "mine").mkdir(parents=True)
    assert constants.run_dir() == runs / "mine"
    assert f"using {runs / 'mine'}" in capsys.readouterr().err
    (runs / "other").mkdir()
    with pytest.raises(DataError, match="no such run; name one of mine, other"):
        constants.run_dir()
    (runs / constants.MODEL_NAME).mkdir()
    assert constants.run_dir() == runs / constants.MODEL_NAME


def test_the_originals_folder_of_runs_is_recognised(base):
    run = base / "train_cams_temp" / constants.MODEL_NAME
    run.mkdir(parents=True)
    assert constants.run_dir() == run
    (base / "train_cams").mkdir()
    assert constants.run_dir() == base / "train_cams" / constants.MODEL_NAME


def test_a_boundary_network_is_found_without_its_suffix(base):
    network = base / "weakly_supervised" / "saved_models" / "lr_0.01_weight_decay_0.0.pth"
    network.parent.mkdir(parents=True)
    network.touch()
    for name in (network.name, network.name.removesuffix(".pth"), str(network), str(network).removesuffix(".pth")):
        assert options.boundary_network(name, network.parent) == network
    assert options.boundary_network("none", network.parent) == network.with_name("none")


def test_folders_that_variables_name_are_made_for_a_script_that_writes_there(tmp_path, monkeypatch):
    for variable, folder in (
        ("CHEXPERT_DATA_DIR", constants.data_dir),
        ("TEST_SEG_LABELS_GT_BASE_PATH", constants.gt_dir),
    ):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        with pytest.raises(DataError, match="no such folder"):
            folder()
        assert folder(create=True).is_dir()
