"""The two errors a user can cause. `chexseg.cli.run` prints either as one line; anything else is a bug and shows its traceback."""


class DataError(ValueError):
    """Bad or missing data: names the file, the value and the way out. Exit status 1."""


class UsageError(ValueError):
    """Options that are wrong together. Exit status 2, like argparse's own."""
