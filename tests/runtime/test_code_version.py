"""Which changes of the code make outputs stale: all that may change a result, and nothing that only people read."""

import ast
import shutil
from functools import cache
from pathlib import Path

import pytest

from chexseg.runtime.code_version import PACKAGE, code_version, import_closure

ROOT = PACKAGE.parent
STAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "localization_eval", ROOT / "IRNet")
    for path in folder.glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the scripts and the package, to be changed."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, root / "chexseg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in [*STAGES, "constants.py"]:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


def version(house: Path, stage: str) -> str:
    return code_version(house / stage, house / "chexseg")


def modules(house: Path, stage: str) -> list[Path]:
    return sorted(import_closure(house / stage, house / "chexseg"))


def changed(texts: dict[Path, str], versions) -> object:
    """What `versions()` gives while the files hold these texts."""
    before = {path: path.read_text() for path in texts}
    for path, text in texts.items():
        path.write_text(text)
    try:
        return versions()
    finally:
        for path, text in before.items():
            path.write_text(text)


@cache  # most stages reach the same modules
def numbers(text: str) -> list[ast.Constant]:
    """The numbers in a file that a result may depend on: not those of messages, types, and the command line."""
    tree, skip = ast.parse(text), (ast.Raise, ast.Assert)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def decides(node: ast.AST) -> bool:
        while node in parents:
            child, node = node, parents[node]
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            is_words = called.startswith(("log.", "add", "parser.add")) or called == "print"
            is_type = child is getattr(node, "annotation", None) or child is getattr(node, "returns", None)
            if isinstance(node, skip) or is_words or is_type or getattr(node, "name", "") == "build_parser":
                return False
        return True

    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) in (int, float))
    return [node for node in found if decides(node)]


def with_other_number(text: str, node: ast.Constant) -> str:
    lines = text.encode().splitlines(keepends=True)
    line = lines[node.lineno - 1]
    other = str(node.value + 3).encode()
    lines[node.lineno - 1] = line[: node.col_offset] + other + line[node.end_col_offset :]
    return b"".join(lines).decode()


@pytest.mark.parametrize("stage", STAGES)
def test_a_changed_number_in_any_module_that_a_stage_reaches_makes_it_stale(house, stage):
    fresh, tried = version(house, stage), 0
    for path in modules(house, stage):
        text = path.read_text()
        nodes = [] if path.name == "constants.py" else numbers(text)
        for node in [*nodes[:1], *nodes[-1:]]:
            stale = changed({path: with_other_number(text, node)}, lambda: version(house, stage))
            assert stale != fresh, f"{path}:{node.lineno}: {node.value}"
            tried += 1
        if not nodes:
            assert changed({path: text + "\nADDED = 1\n"}, lambda: version(house, stage)) != fresh, path
    assert tried or len(modules(house, stage)) < 8


@pytest.mark.parametrize("stage", STAGES)
def test_what_only_people_read_keeps_a_stage_fresh(house, stage):
    fresh = version(house, stage)
    texts = {path: path.read_text().split('"""', 2)[2] for path in modules(house, stage)}
    others = {path: f'"""Other words."""\n\n# A comment.\n{text}\n\n# The end.\n' for path, text in texts.items()}
    assert changed(others, lambda: version(house, stage)) == fresh


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_does_not_reach_keeps_it_fresh(house, stage):
    fresh, reached = version(house, stage), set(modules(house, stage))
    others = [path for path in house.rglob("*.py") if path.resolve() not in reached]
    assert others
    texts = {path: path.read_text() + "\nADDED = 1\n" for path in others}
    assert changed(texts, lambda: version(house, stage)) == fresh


def test_stages_reach_what_they_should(house):
    def rooms(stage):
        folder = house / "chexseg"
        inside = (path.relative_to(folder) for path in modules(house, stage) if path.is_relative_to(folder))
        return {path.parts[0] for path in inside if len(path.parts) > 1}

    assert "phantom" in rooms("make_synthetic_chexpert.py")
    assert not any("phantom" in rooms(stage) for stage in STAGES if stage != "make_synthetic_chexpert.py")
    assert {"data", "segmentation", "training"} <= rooms("segmentation_train.py")
    assert not {"segmentation", "irnet"} & rooms("test.py")
    assert "segmentation" not in rooms("make_pseudo_seg_labels.py")
    for stage in STAGES:
        runtime = {path.name for path in modules(house, stage) if path.parent.name == "runtime"}
        assert runtime <= {"__init__.py", "distributed.py"}


@pytest.fixture
def small(tmp_path):
    """A package of a few files: `small({"stage": "...", "chexseg/data/rle": "..."})` writes them, and gives the version
    of the stage (or of `start`) and what it reaches."""

    def write(files, start="stage"):
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        stage, package = tmp_path / f"{start}.py", tmp_path / "chexseg"
        reached = import_closure(stage, package)
        return code_version(stage, package), {str(path.relative_to(tmp_path).with_suffix("")) for path in reached}

    return write


RLE, IMAGES = "chexseg/data/rle", "chexseg/data/images"


@pytest.mark.parametrize(
    "line",
    [
        "import chexseg.data.rle",
        "import chexseg.data.rle as other",
        "from chexseg.data import rle",
        "from chexseg.data import rle as other",
        "from chexseg.data.rle import encode",
        "from chexseg.data.rle import *",
        "def late():\n    from chexseg.data.rle import encode",
        "if x:\n    import json, chexseg.data.rle",
        "from chexseg.irnet.crf import y",
    ],
)
def test_every_way_to_import(small, line):
    """The last through a relative import."""
    made, reached = small({"stage": line, RLE: "x = 1", IMAGES: "", "chexseg/irnet/crf": "from ..data import rle"})
    assert RLE in reached and IMAGES not in reached
    assert small({RLE: "x = 2"})[0] != made


def test_relative_imports_stay_in_the_package(small):
    files = {
        RLE: "from . import images, formats\nfrom .formats import png\nfrom ... import beyond\nfrom .... import far",
        IMAGES: "from ..training.losses import dice",
        "chexseg/data/formats/png": "",
        "chexseg/data/formats/__init__": "from .jpg import x",
        "chexseg/data/formats/jpg": "",
        "chexseg/training/losses": "",
    }
    assert small(files | {"chexseg/data/other": "", "beyond": ""}, start=RLE)[1] == set(files)


def test_code_in_an_init_counts_when_a_module_below_is_reached(small):
    inits = {"chexseg/__init__": "'doc'", "chexseg/data/__init__": "'doc'"}
    made = small(inits | {"stage": "import chexseg.data.rle", RLE: ""})[0]
    for name in inits:
        assert small({name: "'other doc'"})[0] == made
        assert small({name: "'doc'\nx = 1"})[0] != made
        small(inits)


def test_a_file_that_does_not_parse_counts_as_it_is(small):
    made = small({"stage": "from chexseg.data import rle", RLE: "def ("})[0]
    assert small({RLE: "def ( "})[0] != made
    assert small({"stage": "'not (closed"})[1] == {"stage"}


def test_circles_end(small):
    files = {"stage": "import chexseg.x", "chexseg/x": "import chexseg.y", "chexseg/y": "import chexseg.x"}
    assert small(files)[1] == set(files)


BEFORE = '''
"""Doc."""
import logging
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from chexseg.data import rle
log = logging.getLogger(__name__)
LIMIT = 3

def half(x: int) -> float:
    """Half."""
    import math
    y: float = x / 2
    if y > LIMIT:
        log.warning("large: %s", y)
        raise ValueError(f"{y}: too large")
    assert y, "zero"
    print("half of", x)
    parser.add_argument("--x", default=1, help="an x", metavar="X")
    log.append(y)
    print(y, file=out)
    return math.floor(y)

class A:
    """A."""
    x: int = 1

def build_parser():
    return 1

if __name__ == "__main__":
    run(1)
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Half."""', '"""The half."""'),
        ('    """Half."""\n', ""),
        ('"""A."""', "# A"),
        ('"large: %s"', '"too large: %s"'),
        ('        log.warning("large: %s", y)\n', ""),
        ("too large", "above the limit"),
        ('assert y, "zero"', "assert y"),
        ('    print("half of", x)\n', ""),
        ("x: int) -> float", "x)"),
        ("y: float = x", "y = x"),
        ("help=", "  help="),
        ('help="an x", metavar="X"', 'help="the x"'),
        ("    import math\n", "    # at the top\n"),
        ("import logging\n", "import math\nimport logging\n"),
        ("from chexseg.data import rle", "from chexseg.data import images"),
        ("    return 1", "    return 2"),
        ("run(1)", "run(2)"),
        ("x / 2", "x/2"),
        ("x / 2", "(x / 2)"),
        ('"""Doc."""', "'''Doc.'''\n\n\n\n"),
    ],
)
def test_words_and_layout_keep_it_fresh(small, old, new):
    keep = "\nimport math" if old.endswith("math\n") else ""  # moved, not dropped
    assert old in BEFORE
    made = small({"stage": BEFORE + keep, RLE: "", IMAGES: ""})
    assert small({"stage": BEFORE.replace(old, new, 1) + keep}) == made
    assert made[1] == {"stage"}  # what is imported for types alone is not reached


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("x / 2", "x // 2"),
        ("y > LIMIT", "y >= LIMIT"),
        ("y > LIMIT", "LIMIT > y"),
        ("ValueError", "TypeError"),
        ("assert y", "assert x"),
        ("default=1", "default=2"),
        ("log.append(y)", "log.append(x)"),
        ("print(y, file", "print(x, file"),
        ("x: int = 1", "x: float = 1"),
        ("x: int = 1", "x: int = 2"),
        ("math.floor", "math.ceil"),
        ("    import math\n", "    from numpy import math\n"),
        ("def half(x: int)", "def half(x: int = 0)"),
    ],
)
def test_formulas_make_it_stale(small, old, new):
    assert old in BEFORE
    made = small({"stage": BEFORE})[0]
    assert small({"stage": BEFORE.replace(old, new, 1)})[0] != made


def test_of_constants_only_what_is_public_counts(tmp_path):
    for name, text in (("stage.py", "import constants"), ("chexseg/__init__.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def version(text):
        (tmp_path / "constants.py").write_text(text)
        return code_version(tmp_path / "stage.py", tmp_path / "chexseg")

    made = version('import os\nTASKS = ("Edema",)\n_FOLDER = 1\ndef folder(): return 1')
    assert version('TASKS = ("Edema",)\n_FOLDER = 2\ndef folder(): return 2') == made
    assert version('TASKS = ("Edema", "Fracture")\n_FOLDER = 1') != made


def test_it_is_the_same_wherever_the_package_lies(house, tmp_path):
    shutil.copytree(house, tmp_path / "elsewhere")
    for stage in STAGES:
        assert version(tmp_path / "elsewhere", stage) == version(house, stage) == code_version(ROOT / stage)
