"""The moving average of weights: by hand, evaluated and saved in their place, and resumed exactly."""

import pytest
import torch
from torch import nn

from chexseg.training.averaging import Average
from tests.training.small import (
    EPOCHS,
    IMAGES,
    STEPS,
    Fatal,
    Killed,
    assert_same_weights,
    build_model,
    log_of,
    train,
)


def test_average_by_hand():
    model = nn.BatchNorm1d(1)
    average = Average(model, 0.5)
    assert not average.model.training
    for step, value in enumerate((2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked += 1
        average.update(model, step)
        if step == 0:
            assert average.model.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)  # (1 + 0) / (10 + 0) is kept
        if step == 1:
            assert average.model.weight.item() == pytest.approx(2 / 11 * 1.9 + 9 / 11 * 4)
    before = average.model.weight.item()
    average.update(model, 100)  # 101 / 110 is more than 0.5
    assert average.model.weight.item() == pytest.approx((before + 8) / 2)
    assert average.model.num_batches_tracked.item() == 9 and model.weight.item() == 8


def test_the_average_is_what_is_evaluated_and_saved_and_training_is_as_without(undisturbed, tmp_path):
    seen, saved, states = [], {}, []

    def evaluate(model, counts):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {}

    model, result = train(tmp_path, keep=saved, ema=0.9, evaluate=evaluate)
    assert_same_weights(model, undisturbed.model)  # the average changes no step
    assert [h["train_loss"] for h in result.history] == [h["train_loss"] for h in undisturbed.result.history]
    best = seen[result.epoch - 1]
    assert all(torch.equal(tensor, best[name]) for name, tensor in saved["weights"].items())
    # Recomputed from the weights after each step, which a run that stops everywhere leaves in its checkpoints.
    average = Average(build_model(), 0.9)
    for step in range(EPOCHS * STEPS):
        try:
            train(tmp_path / "steps", max_minutes=1e-9, save_every=1e9)
        except SystemExit:
            pass
        states.append(torch.load(tmp_path / "steps" / "checkpoint.pt", weights_only=True)["model"])
        now = build_model()
        now.load_state_dict(states[-1])
        average.update(now, step)
    for name, tensor in average.model.state_dict().items():
        torch.testing.assert_close(tensor, seen[-1][name], rtol=0, atol=0)


def test_killed_it_ends_with_the_same_average(tmp_path):
    whole, parts = {}, {}
    train(tmp_path / "whole", keep=whole, ema=0.8)
    for samples in (5, IMAGES, IMAGES + 3):
        with pytest.raises(Killed):
            train(tmp_path / "parts", dataset=Fatal(samples), keep=parts, ema=0.8, save_every=1e-9)
    train(tmp_path / "parts", keep=parts, ema=0.8)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert whole["metrics"] == parts["metrics"]
    for name, tensor in whole["weights"].items():
        assert torch.equal(tensor, parts["weights"][name]), name


def test_without_it_nothing_is_kept(undisturbed):
    checkpoint = torch.load(undisturbed.folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["average"] is None
