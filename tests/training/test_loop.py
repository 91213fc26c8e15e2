"""The training loop undisturbed: order, learning rate, sums of an epoch, the best epoch, evaluation, precision."""

import multiprocessing
import re

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from chexseg.training import draws, loop
from chexseg.training.loader import Loader
from tests.training.small import (
    BATCH,
    EPOCHS,
    IMAGES,
    STEPS,
    Noisy,
    assert_same_weights,
    build_model,
    compute_loss,
    log_of,
    tally,
    train,
)


def test_log_has_a_line_per_epoch_and_the_best_is_the_lowest_loss(undisturbed):
    assert [line["epoch"] for line in undisturbed.log] == [1, 2, 3]
    found = [line["train_loss"] for line in undisturbed.log]
    assert found[-1] < found[0]
    assert undisturbed.result.epoch == 1 + int(np.argmin(found))
    assert undisturbed.result.score == -min(found)
    assert undisturbed.saved["metrics"]["epoch"] == undisturbed.result.epoch
    assert [h["train_loss"] for h in undisturbed.result.history] == found


def test_mean_loss_and_tally_are_of_the_whole_epoch(tmp_path):
    model = build_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(tmp_path, model=model, num_epochs=1, schedule=lambda step, steps: 0.0)  # nothing is learnt
    reference = build_model().to(memory_format=torch.channels_last)  # dropout draws in the order of memory
    reference.load_state_dict(before)
    plan = draws.batches(draws.shuffled(IMAGES, 17)(0), BATCH, key=(17, 0), rank=0, world_size=1)
    total, counts = 0.0, torch.zeros(2, dtype=torch.int64)
    for step, batch in enumerate(Loader(Noisy())(plan)):
        loop.seed_everything(17, 0, step, 0)
        loss, logits = compute_loss(reference, batch)
        total += loss.item() * len(batch["id"])
        counts += tally(logits, batch)
    line = log_of(tmp_path)[0]
    assert line["train_loss"] == pytest.approx(total / IMAGES, rel=1e-6)
    assert line["predicted"] == counts.tolist()


class Recording(Noisy):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __getitem__(self, draw):
        self.seen.append(draw)
        return super().__getitem__(draw)


def test_each_epoch_has_its_own_order_and_augmentation(tmp_path):
    dataset, order = Recording(), draws.shuffled(IMAGES, 17)
    train(tmp_path, dataset=dataset)
    assert dataset.seen == [(i, (17, epoch, p)) for epoch in range(EPOCHS) for p, i in enumerate(order(epoch))]


def test_schedule_scales_the_learning_rate_of_each_step(tmp_path):
    seen = []
    train(tmp_path, lr=0.5, schedule=lambda step, steps: seen.append((step, steps)) or 1 - step / steps)
    assert seen == [(i, EPOCHS * STEPS) for i in range(EPOCHS * STEPS)]
    assert [line["lr"] for line in log_of(tmp_path)] == pytest.approx([0.5 * (1 - s / 18) for s in (5, 11, 17)])


def test_one_cycle_rises_over_a_fifth_and_falls_to_zero():
    found = [loop.one_cycle(step, 10) for step in range(10)]
    # cosine from 1 at step 2: (1 + cos(pi k / 8)) / 2
    assert found[:4] == pytest.approx([0.5, 1.0, 1.0, 0.9619398])
    assert found[6] == pytest.approx(0.5) and found[9] == pytest.approx(0.0380602)
    assert loop.one_cycle(0, 1) == 1.0


def test_a_log_file_gets_a_line_an_epoch(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    train(tmp_path)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    number = r"\d\.\d{4}"
    for epoch, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {epoch}/3: loss {number}, score -{number}, \d\.\d s, \d\.\d s left", line), line
    assert len(lines) == 3 and lines[2].endswith(", 0.0 s left")
    caplog.clear()
    shown = loop.tqdm
    monkeypatch.setattr(loop, "tqdm", lambda **options: shown(**options | {"disable": False}))
    train(tmp_path, resume="none")
    assert "epoch 1/3:" not in caplog.text


def test_highest_score_wins_and_the_earlier_of_equals(tmp_path):
    scores = iter([0.2, 0.7, float("nan"), 0.7, 0.1])
    saved = {}
    _, result = train(tmp_path, keep=saved, num_epochs=5, evaluate=None, score=lambda metrics: next(scores))
    assert (result.epoch, result.score, saved["metrics"]["epoch"]) == (2, 0.7, 2)


def test_the_last_epoch_is_kept_on_request_whatever_its_score(tmp_path):
    scores, saved = iter([0.7, 0.2, float("nan")]), {}
    _, result = train(tmp_path, keep=saved, keep_epoch="last", evaluate=None, score=lambda metrics: next(scores))
    assert (result.epoch, saved["metrics"]["epoch"]) == (3, 3)


def test_the_best_weights_are_those_of_their_epoch_though_saved_later(tmp_path):
    first, saved = build_model(), {}
    train(tmp_path / "first", model=first, num_epochs=1, schedule=None)
    train(tmp_path / "all", keep=saved, schedule=None, score=lambda metrics: -metrics["epoch"])
    assert saved["metrics"]["epoch"] == 1
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, saved["weights"][name]), name


def test_numpys_numbers_among_the_metrics_do_not_spoil_a_checkpoint(tmp_path):
    _, result = train(tmp_path, evaluate=lambda network, counts: {"value": np.float64(0.5)})
    _, again = train(tmp_path, evaluate=lambda network, counts: {"value": np.float64(0.5)})
    assert again == result and result.metrics["value"] == 0.5


def test_metrics_that_json_cannot_hold_fail_at_once(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        train(tmp_path, evaluate=lambda network, counts: {"predicted": counts})


def test_evaluation_is_in_eval_mode_without_gradients_and_training_goes_on(tmp_path):
    seen = []

    def evaluate(network, counts):
        seen.append((network.training, torch.is_grad_enabled()))
        return {}

    model, _ = train(tmp_path, evaluate=evaluate)
    assert seen == [(False, False)] * EPOCHS
    assert model[1].num_batches_tracked.item() == EPOCHS * STEPS


def test_workers_do_not_outlive_a_training_that_stops(tmp_path):
    with pytest.raises(SystemExit):  # as long as it is looked at, its frames hold the loader
        try:
            train(tmp_path, num_workers=2, max_minutes=1e-9)
        finally:
            assert not multiprocessing.active_children()


def test_workers_change_nothing(undisturbed, tmp_path):
    model, _ = train(tmp_path, num_workers=2)
    assert_same_weights(model, undisturbed.model)


def test_memory_layout_changes_only_rounding(tmp_path):
    weights = []
    for layout in (True, False):
        model, _ = train(tmp_path / str(layout), model=build_model(dropout=0.0), channels_last=layout)
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last) == layout
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_bf16_is_close_and_keeps_weights_in_float32(undisturbed, tmp_path):
    model, result = train(tmp_path, precision="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = [h["train_loss"] for h in result.history]
    assert found == pytest.approx([line["train_loss"] for line in undisturbed.log], abs=0.02)
    assert found != [line["train_loss"] for line in undisturbed.log]
