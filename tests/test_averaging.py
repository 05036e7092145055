"""Averages of weights during training."""

from __future__ import annotations

import torch
from torch import nn

from ebt_policy.training.averaging import averaged_copy, weight_average


def test_averaged_copy_follows_the_weight_average():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average, copy = weight_average(model, 0.75), averaged_copy(model, 0.75)
    assert not any(p.requires_grad for p in copy.parameters())
    for _ in range(5):
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn_like(weight)
        average.step(model.parameters())
        copy.update_parameters(model)
        for a, b in zip(average.shadow_params, copy.module.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    restored = averaged_copy(nn.Linear(3, 2), 0.75)
    restored.load_state_dict(copy.state_dict())
    assert int(restored.n_averaged) == 5
    assert not torch.equal(restored.module.weight, model.weight)
