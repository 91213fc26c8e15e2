"""Paired differences of every two methods, with p and Holm's correction."""

import numpy as np
import pytest

from chexseg.evaluation import bootstrap, comparison
from tests.evaluation.masks import METHODS, TASKS, TRUTH, entry, name


def test_paired_table_by_hand():
    found = comparison.compare(TRUTH, METHODS, TASKS, num_replicates=99, seed=3)
    table = comparison.paired_table(found)
    assert list(table) == ["a", "b", "protocol", "task", "difference", "lower", "upper", "p", "p_holm"]
    assert len(table) == 10 * 3 * 4  # pairs, protocols, tasks and their mean
    row = table.set_index(["protocol", "a", "b", "task"]).sort_index().loc[("pooled", "weak_irnet", "full")]
    assert row["difference"].to_dict() == pytest.approx(
        {"Edema": -0.25, "Airspace Opacity": -0.25, "Fracture": np.nan, "mIoU": -0.25}, nan_ok=True
    )
    pair = (found.scores["pooled"][name] for name in ("weak_irnet", "full"))
    replicates = bootstrap.difference(*pair)[:, -1]
    assert np.isnan(row.loc["Fracture", "p"]) and row.loc["mIoU", "p"] == bootstrap.p_value(replicates)
    assert tuple(row.loc["mIoU", ["lower", "upper"]]) == bootstrap.interval(replicates)[1:]
    # Of the ten mIoU: a family of its own. Of the two tasks that occur: too.
    means = table[(table.protocol == "pooled") & (table.task == "mIoU")]
    np.testing.assert_allclose(means["p_holm"], bootstrap.holm(means["p"]))
    np.testing.assert_allclose(row.loc[list(TASKS), "p_holm"], bootstrap.holm(row.loc[list(TASKS), "p"]))
    assert ((table["p_holm"] >= table["p"]) | table["p"].isna()).all()


def test_p_and_interval_say_the_same():
    rng = np.random.default_rng(0)
    truth = {name(i): entry(1000, tasks="E") for i in range(25)}
    for shift in (0, 30, 80, 200):
        first = {i: int(n) for i, n in zip(truth, rng.integers(300, 700, 25), strict=True)}
        second = {i: int(np.clip(n + shift + rng.integers(-150, 150), 0, 1000)) for i, n in first.items()}
        methods = {m: {i: entry(n, tasks="E") for i, n in c.items()} for m, c in (("x", first), ("y", second))}
        row = comparison.paired_table(comparison.compare(truth, methods, "E", num_replicates=999)).iloc[0]
        excludes = row["lower"] > 0 or row["upper"] < 0
        assert excludes == (row["p"] < 0.05) or abs(row["p"] - 0.05) < 0.005
