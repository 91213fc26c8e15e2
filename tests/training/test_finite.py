"""A loss or a weight that is not finite stops a training by name, and is never saved."""

import math

import pytest
import torch

from chexseg.errors import DataError
from chexseg.training import finite
from tests.training.small import STEPS, Noisy, compute_loss, train


@pytest.mark.parametrize("late", [0, 1], ids=["checked at once", "checked a step late, as on a GPU"])
def test_a_loss_that_is_not_finite_names_the_images_and_saves_nothing(tmp_path, monkeypatch, late):
    build = finite.LossCheck.__init__
    monkeypatch.setattr(finite.LossCheck, "__init__", lambda c, d: build(c, d) or setattr(c, "_late", late))
    with pytest.raises(DataError, match="became nan in epoch 1 on the images .*patient00007"):
        train(tmp_path, dataset=Noisy(bad=7), save_every=1e-9)
    if (tmp_path / "checkpoint.pt").exists():
        weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values())


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "sent 1, read 1, sent 2, read 2, sent 3, read 3, end"),
        ("cuda", "sent 1, sent 2, read 1, sent 3, read 2, end, read 3"),
    ],
)
def test_a_loss_is_sent_when_made_and_on_a_gpu_read_a_step_later(device, expected, monkeypatch):
    happened = []

    def send(loss):
        happened.append(f"sent {loss:.0f}")
        return lambda: happened.append(f"read {loss:.0f}") or loss.item()

    monkeypatch.setattr(finite, "read_later", send)
    check = finite.LossCheck(torch.device(device))
    for loss in (1.0, 2.0, 3.0):
        check.add(torch.tensor(loss), ["patient00001"], 0)
    happened.append("end")
    check.all()
    assert ", ".join(happened) == expected


def test_a_bad_loss_names_its_own_images_though_read_later():
    check = finite.LossCheck(torch.device("cuda"))
    check.add(torch.tensor(math.inf), ["first", "second"], 4)
    with pytest.raises(DataError, match="became inf in epoch 5 on the images first, second;"):
        check.add(torch.tensor(1.0), ["third"], 4)


@pytest.mark.parametrize(("first", "save_every"), [(0, 1e-9), (STEPS - 1, 1e9)], ids=["in mid-epoch", "at its end"])
def test_weights_that_are_not_finite_are_not_saved_though_the_loss_is(tmp_path, first, save_every):
    steps = []

    def flat(network, batch):
        loss, logits = compute_loss(network, batch)
        steps.append(loss)
        root = (logits * 0).abs().sqrt().sum() if len(steps) > first else 0  # 0, and its gradient is not
        return loss + root, logits

    saved = {}
    with pytest.raises(DataError, match=r"weights became infinite or nan in epoch 1 \(.*\); lower --lr"):
        train(tmp_path, save_every=save_every, keep=saved, compute_loss=flat)
    assert len(steps) == first + 1 and saved == {} and not (tmp_path / "checkpoint.pt").exists()
