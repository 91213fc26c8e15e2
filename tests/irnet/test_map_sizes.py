"""Stages 3 and 4 take maps of any size: of stride 32, 16 or 8, or averaged over scales."""

import pytest
import torch
import torch.nn.functional as F

from chexseg.irnet import crf, random_walk


def blob(side):
    """A smooth map (1, side, side) whose maximum is in the upper left quarter."""
    at = (torch.arange(side) + 0.5) / side
    return torch.exp(-((at[:, None] - 0.3) ** 2 + (at - 0.35) ** 2) / 0.03)[None]


@pytest.mark.parametrize("side", [2, 5, 8, 12, 32, 48])
def test_relation_labels_are_those_of_the_upsampled_map(side):
    image = (torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    large = F.interpolate(blob(side)[None], (32, 32), mode="bilinear")[0]
    assert torch.equal(crf.relation_labels(image, blob(side)), crf.relation_labels(image, large))


@pytest.mark.parametrize("side", [2, 5, 8, 12, 16, 24])
def test_a_walk_starts_from_a_map_of_any_size(side):
    boundary = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    present = torch.ones(1, 1, dtype=torch.bool)
    scores = random_walk.pseudo_scores(blob(side)[None], boundary, present, beta=5, exp_times=3, radius=3)
    on_grid = F.interpolate(blob(side)[None], (16, 16), mode="bilinear")
    expected = random_walk.pseudo_scores(on_grid, boundary, present, beta=5, exp_times=3, radius=3)
    torch.testing.assert_close(scores, expected)
    assert scores.isfinite().all() and scores.max() > 0
