"""Which version of the code made a file: a hash of everything that the stage's script reaches by imports.

A reworded comment must not make a week of maps stale, and a changed formula always must. So the hash is of syntax trees
without what only people read: comments, docstrings, messages of errors, log lines, help texts, annotations, and the
order and place of imports. Code that decides no output takes no part: a script's command line, since the arguments
themselves are recorded, and the rooms `runtime` and `errors`, except for `distributed`, which sums over ranks.
"""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DECIDE_NOTHING = ("runtime", "errors")
BUT = ("runtime.distributed",)
LOGS = ("log", "logger", "logging", "warnings")
LEVELS = ("debug", "info", "warning", "warn", "error", "exception", "critical")


def code_version(start: Path, package: Path = PACKAGE) -> str:
    """16 hex digits for the script or module `start` with all modules of `package` that it reaches.

    Of `constants.py` beside the package only public assignments count: its functions say where files are.
    """
    closure, digest = _closure(start, package), hashlib.sha256()
    for path in sorted(closure):
        digest.update(closure[path].encode() + b"\0")
    return digest.hexdigest()[:16]


def import_closure(start: Path, package: Path = PACKAGE) -> set[Path]:
    """The files that `start` imports, at its top or inside functions, and what these import; itself among them."""
    return set(_closure(start, package))


def _closure(start: Path, package: Path) -> dict[Path, str]:
    """What decides results of each file that `start` reaches."""
    package, waiting = Path(package).resolve(), [Path(start).resolve()]
    modules = _modules(package)
    names_of = {path: name for name, path in modules.items()}
    closure: dict[Path, str] = {}
    while waiting:
        path = waiting.pop()
        if path not in closure:
            closure[path], imported = _decisive(path.read_bytes(), path.name == "constants.py")
            for name in imported:
                waiting += _meant(_absolute(name, names_of.get(path, ""), path.name == "__init__.py"), modules)
    return closure


def _modules(package: Path) -> dict[str, Path]:
    """The modules that decide results by their dotted names: `chexseg.data.rle`, `chexseg.data` (its __init__)."""
    constants = package.parent / "constants.py"
    found = {"constants": constants} if constants.is_file() else {}
    for path in package.rglob("*.py"):
        words = path.relative_to(package).with_suffix("").parts
        words = words[:-1] if words[-1] == "__init__" else words
        if decides(words):
            found[".".join([package.name, *words])] = path
    return found


def _absolute(name: str, importer: str, is_package: bool) -> str:
    """An imported name with its leading dots resolved against the module that imports it."""
    level = len(name) - len(name.lstrip("."))
    if level == 0:
        return name
    up = level - is_package
    words = importer.split(".")
    return ".".join([*words[: len(words) - up], name[level:]]) if up < len(words) else ""


def _meant(name: str, modules: dict[str, Path]) -> Iterator[Path]:
    """The files that an imported name may mean, with the packages on the way, which are imported too."""
    words = name.split(".")
    prefixes = (".".join(words[:count]) for count in range(1, len(words) + 1))
    yield from (modules[prefix] for prefix in prefixes if prefix in modules)


def decides(words: Sequence[str]) -> bool:
    """Whether a module of the package, by its dotted name's words, may change an output."""
    name = ".".join(words)
    excluded = any(f"{name}.".startswith(f"{other}.") for other in DECIDE_NOTHING)
    return not excluded or any(f"{name}.".startswith(f"{other}.") for other in BUT)


@cache
def _decisive(source: bytes, only_constants: bool) -> tuple[str, tuple[str, ...]]:
    """What of a file's text decides results, as a string to compare; and the names that it imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # it cannot run either, so all of it counts
        return hashlib.sha256(source).hexdigest(), ()
    body = tree.body
    if only_constants:
        body = [node for node in body if isinstance(node, (ast.Assign, ast.AnnAssign)) and not _is_private(node)]
    flat = _Flat()
    for node in body:
        if not _is_command_line(node):
            flat.add(node)
    return " ".join([*flat.words, *sorted(flat.imports)]), tuple(sorted(flat.imported))


def _is_private(node: ast.Assign | ast.AnnAssign) -> bool:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return isinstance(target, ast.Name) and target.id.startswith("_")


def _is_command_line(node: ast.stmt) -> bool:
    """A script's `build_parser`, and its guard."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Compare) and getattr(node.test.left, "id", "") == "__name__"
    return isinstance(node, ast.FunctionDef) and node.name == "build_parser"


class _Flat:
    """A syntax tree as a list of words, without what only people read. The same for every version of Python, as far as
    the syntax is the same: empty fields are left out."""

    SKIPPED: dict[type, tuple[str, ...]] = {
        ast.arg: ("annotation", "type_comment"),
        ast.FunctionDef: ("returns", "type_comment"),
        ast.AsyncFunctionDef: ("returns", "type_comment"),
        ast.Assert: ("msg",),
        ast.Constant: ("kind",),
    }

    def __init__(self) -> None:
        self.words: list[str] = []
        self.imports: set[str] = set()
        self.imported: set[str] = set()

    def add(self, node: ast.AST, in_class: bool = False) -> None:
        skipped = self.SKIPPED.get(type(node), ())
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._add_import(node)
            return
        if isinstance(node, ast.Expr) and _is_words(node.value):
            return
        if isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.AnnAssign) and not in_class:  # a dataclass reads its annotations, a function does not
            if node.value is None:
                return
            node = ast.Assign(targets=[node.target], value=node.value)
        elif isinstance(node, ast.Raise):  # the kind of error is enough
            node = ast.Raise(exc=node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        elif isinstance(node, ast.Call) and _declares_option(node):
            kept = [keyword for keyword in node.keywords if keyword.arg not in ("help", "metavar")]
            node = ast.Call(func=node.func, args=node.args, keywords=kept)
        elif isinstance(node, ast.ClassDef):
            in_class = True
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            in_class = False
        self._add_fields(node, skipped, in_class)

    def _add_fields(self, node: ast.AST, skipped: tuple[str, ...], in_class: bool) -> None:
        words = self.words
        words.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name == "ctx" or name in skipped:
                continue
            words.append(name)
            if isinstance(value, ast.AST):
                self.add(value, in_class)
            elif isinstance(value, list):
                for part in value:
                    if isinstance(part, ast.AST):
                        self.add(part, in_class)
                    else:
                        words.append(repr(part))
            else:
                words.append(repr(value))
        words.append(")")

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        origin = ""
        if isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            self.imported.add(origin)
            origin += "." if node.module else ""
        self.imported |= {origin + alias.name for alias in node.names}
        self.imports |= {f"{origin}:{alias.name}:{alias.asname or ''}" for alias in node.names}


def _is_words(value: ast.expr) -> bool:
    """A docstring, a log line, or something printed for people."""
    if isinstance(value, ast.Call):
        target = value.func
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            return target.value.id in LOGS and target.attr in LEVELS
        is_print = isinstance(target, ast.Name) and target.id == "print"
        return is_print and all(keyword.arg != "file" for keyword in value.keywords)
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _declares_option(node: ast.Call) -> bool:
    """Whether a call makes an option of a command line, `add("--name", ..., help="...")` or the like."""
    return any(
        isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.startswith("--")
        for value in node.args[:2]
    )
