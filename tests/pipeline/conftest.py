"""What several test modules share."""

import pytest

from tests.irnet.six_films import labelled_run, relation_run, six_films, six_films_environment  # noqa: F401
from tests.pipeline import stages
from tests.pipeline.segmentation_world import trained, world  # noqa: F401


@pytest.fixture(scope="session")
def warm():
    """A process with everything imported, to fork stages from."""
    stages.warm_up()


@pytest.fixture(scope="session")
def tiny_run(warm, tmp_path_factory):
    """Every stage of the pipeline, run undisturbed on 64-pixel phantoms. Read it, never write to it."""
    run = stages.TinyRun(tmp_path_factory.mktemp("tiny_run") / "workspace")
    for stage in stages.COMMANDS:
        run.add(stage)
    return run
