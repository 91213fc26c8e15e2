"""The world, made once, and how each command ends with it."""

import pytest

from tests.hostile import cases, sandbox
from tests.hostile import world as worlds


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    sandbox.warm()
    return worlds.make(tmp_path_factory.mktemp("hostile") / "world")


@pytest.fixture(scope="session")
def valid(world, tmp_path_factory):
    """How a command ends with valid files: a function, which remembers."""
    known: dict[str, cases.Valid] = {}

    def of(command):
        if command not in known:
            folder = sandbox.copied(world, tmp_path_factory.mktemp("valid") / "world")
            result = cases.run(command, folder)
            assert result.status == worlds.COMMANDS[command].status and not result.did, (result.did, result.said)
            known[command] = cases.Valid(cases.outputs(command, folder), result.grown)
            assert len(known[command].outputs) >= len(worlds.COMMANDS[command].outputs)
        return known[command]

    return of
