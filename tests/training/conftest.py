"""What the tests of the training loop compare with."""

from types import SimpleNamespace

import pytest

from tests.training.small import log_of, train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A small training that nothing interrupted."""
    folder, saved = tmp_path_factory.mktemp("undisturbed"), {}
    model, result = train(folder, keep=saved)
    return SimpleNamespace(model=model, result=result, log=log_of(folder), saved=saved, folder=folder)
