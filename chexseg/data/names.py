"""What a file may call an image, a task or the place of an image: one rule for each, for every format that we read.

An image id is any text: whoever makes a file name of it asks `image_folder.file_stem`. A task stands in file names,
tables and options as it is, so that less is allowed.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chexseg.errors import DataError

MAX_ID, MAX_TASK, MAX_PATH, MAX_TASKS = 1000, 200, 4000, 1000  # characters; tasks of one file
# Control characters and halves of characters that UTF-8 does not know.
NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_TASK = re.compile(r"[/\\]|^[.\s-]|\s$")


def check_id(name: Any, where: object) -> str:
    """The image id `name`, which stands in the file `where`. DataError for one that is no text, empty or too long, or
    that has control characters."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID or NO_TEXT.search(name):
        raise DataError(
            f"{where}: {shown(name)} is no image id: expected 1 to {MAX_ID} characters, none of them a "
            "control character; rename it in the file"
        )
    return name


def check_task(name: Any, where: object) -> str:
    """The task `name`, which stands in the file `where`. DataError, beyond that of an id, for a name that holds a path
    separator or begins like a hidden file or an option."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TASK or NO_TEXT.search(name) or _NO_TASK.search(name):
        raise DataError(
            f"{where}: {shown(name)} is no task's name: expected 1 to {MAX_TASK} characters without / and "
            "\\, control characters and a leading dot; rename it in the file"
        )
    return name


def check_tasks(names: Any, where: object) -> tuple[str, ...]:
    """All tasks of a file, each once."""
    if not isinstance(names, (list, tuple)) or len(names) > MAX_TASKS:
        raise DataError(f"{where}: {shown(names)} is no list of at most {MAX_TASKS} tasks")
    tasks = tuple(check_task(name, where) for name in names)
    if len(set(tasks)) < len(tasks):
        raise DataError(f"{where}: the task {twice(tasks)!r} occurs twice")
    return tasks


def check_path(text: Any, where: object, folder: Path | None = None) -> Path:
    """The path of an image as a file names it. DataError for what is no path, and for one with "..": it leads to no
    other folder than the one that it is looked for in. With `folder` an absolute path must lie below that, too."""
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_PATH or NO_TEXT.search(text):
        raise DataError(f"{where}: {shown(text)} is no path of an image; correct the file")
    path = Path(text)
    outside = folder is not None and path.is_absolute() and not path.is_relative_to(folder.absolute())
    if outside or ".." in path.parts or "\\" in text:
        raise DataError(f"{where}: {shown(text)} does not lie below the data folder; correct the file")
    return path


def twice(names: Iterable[str]) -> str:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def shown(value: Any) -> str:
    """A value of a file as an error shows it: short, whatever it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    text = str(value) if isinstance(value, (int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text
