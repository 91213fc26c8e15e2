"""Errors a user can cause. `cli.run` prints each as one line; any other exception is a bug and shows a traceback."""

MAX_MESSAGE = 4000  # characters


class DataError(ValueError):
    """Bad or missing data: names the file, the value and the way out. Exit status 1.

    What a file says stands in the message: it is shortened, and control characters, which a terminal would obey, are
    written as \\x1b.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
        return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


class MissingError(DataError):
    """Something is not where a stage looks for it: a variable's folder, a file, a column, a run, an image, its labels,
    masks or maps. `cli.run` adds that doctor.py looks at all of these."""


class UsageError(ValueError):
    """Options that are wrong together. Exit status 2, like argparse's own."""
