"""A stage whose output is up to date imports neither torch nor what rests on it, and touches nothing."""

import pytest

from tests.pipeline.test_finished_trainings import without_torch

STAGES = ("test", "pred_segmentation", "gt_segmentation", "convert_to_hdf5")


@pytest.mark.parametrize("stage", STAGES)
def test_an_output_that_is_up_to_date_costs_no_torch(tiny_run, stage):
    paths = [tiny_run.root / name for name in tiny_run.made[stage]]
    before = [path.stat().st_mtime_ns for path in paths]
    ended = without_torch(tiny_run, stage)
    assert ended.returncode == 0 and "up to date" in ended.stderr, ended.stderr
    assert [path.stat().st_mtime_ns for path in paths] == before
