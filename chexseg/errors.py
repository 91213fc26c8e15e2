"""Errors a user can cause. `cli.run` prints each as one line; any other exception is a bug and shows a traceback."""


class DataError(ValueError):
    """Bad or missing data: names the file, the value and the way out. Exit status 1."""


class UsageError(ValueError):
    """Options that are wrong together. Exit status 2, like argparse's own."""
