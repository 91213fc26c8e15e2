"""How the tests are shared among processes."""

import pytest


def pytest_collection_modifyitems(items):
    """A file's tests stay in one process, and all tests that read the tiny run in the one that makes it."""
    for item in items:
        group = "tiny_run" if "tiny_run" in item.fixturenames else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
