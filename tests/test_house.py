"""The house's order: rooms import downwards only, no file grows too long, and a start costs what it needs."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "chexseg"
# From the ground up: a room may import those in earlier rows.
FLOORS = (
    {"errors"},
    {"runtime"},
    {"data"},
    {"training", "evaluation"},
    {"classifier", "irnet", "segmentation", "phantom"},
)
SIDE_BY_SIDE = {("irnet", "classifier"), ("segmentation", "classifier")}  # a classifier's network is their backbone
ROOMS = set.union(*FLOORS) - {"errors"}
HEAVY = {"torch", "torchvision", "segmentation_models_pytorch", "pandas", "cv2", "matplotlib", "h5py", "numba", "PIL"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "localization_eval", ROOT / "IRNet")
    for path in folder.glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def imports(path: Path) -> frozenset[str]:
    """What a file imports, also inside functions: modules of ours by their full names, others by the first word."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    known = MODULES.keys() | {"constants"}
    return frozenset(name if name in known else name.split(".")[0] for name in names)


def room(module: str) -> str:
    return module.split(".")[1]


def test_rooms():
    inside = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert inside == ROOMS | {"errors.py", "__init__.py"}
    assert len(ROOMS) == 8


@pytest.mark.parametrize("module", sorted(MODULES))
def test_rooms_import_downwards_only(module):
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    assert "constants" not in imports(MODULES[module]), f"{module} imports constants: take what it needs as arguments"
    for other in sorted(imports(MODULES[module])):
        if other.startswith("chexseg.") and "." in module:
            here, there = room(module), room(other)
            allowed = here == there or floors[there] < floors[here] or (here, there) in SIDE_BY_SIDE
            assert allowed, f"{module} imports {other}: {there} is not below {here}"


def test_no_circle_between_modules():
    ours = {name: sorted(imports(path) & MODULES.keys()) for name, path in MODULES.items()}
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in ours[name]:
                follow(other, [*way, name])
            done.add(name)

    for name in ours:
        follow(name, [])


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_an_init_holds_a_docstring_only(path):
    assert ast.get_docstring(tree(path)) and len(tree(path).body) == 1


LIMITS = {name: (path, 350) for name, path in MODULES.items()}
LIMITS |= {name: (ROOT / name, 150) for name in SCRIPTS}
for folder in ("tests", "bench"):
    LIMITS |= {str(path.relative_to(ROOT)): (path, 350) for path in sorted((ROOT / folder).rglob("*.py"))}


@pytest.mark.parametrize("name", LIMITS)
def test_no_file_or_function_is_too_long(name):
    path, limit = LIMITS[name]
    assert len(path.read_text().splitlines()) <= limit
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 80, f"{path}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_the_same_skeleton_as_the_others(script):
    body = tree(ROOT / script).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert ast.get_docstring(tree(ROOT / script)) and "build_parser" in names and names[-1] == "main"
    assert ast.unparse(body[-1]) == "if __name__ == '__main__':\n    cli.run(main, build_parser)"


@pytest.mark.parametrize("script", SCRIPTS)
def test_main_only_reads_its_arguments(script):
    """Only `main` takes a namespace, and nothing changes it."""
    for node in ast.walk(tree(ROOT / script)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            assert ast.unparse(node.value) != "args", f"{script}:{node.lineno}: args.{node.attr} is changed"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_function_of_a_room_takes_a_namespace(module):
    if module in ("chexseg.runtime.cli",):  # which hands it to main
        return
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.arg) and node.annotation is not None:
            assert "Namespace" not in ast.unparse(node.annotation), f"{module}:{node.lineno}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_start_imports_nothing_heavy(script, tmp_path):
    """Importing a script and building its parser, in a process of its own, with no variable set."""
    code = (
        "import runpy, sys\n"
        "module = runpy.run_path(sys.argv[1], run_name='imported')\n"
        "module['build_parser']()\n"
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT / script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    assert list(tmp_path.iterdir()) == []
