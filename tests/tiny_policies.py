"""Tiny policies of every kind and input for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY, compose_config

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.policies import Policy, build_policy

QUICK_DIFFUSION = ("model=diffusion", "model.inference.steps=4")
KINDS = {
    "flow": ("objective=flow",),
    "flow without level": ("objective=flow", "objective.condition_on_noise_level=false"),
    "equilibrium": ("objective=equilibrium",),
    "s1": ("objective=s1",),
    "s2": ("objective=s2",),
    "contrastive": ("objective=contrastive",),
    "ebt_policy": ("objective=ebt_policy", "model.energy=mean"),
    "diffusion": QUICK_DIFFUSION,
    "diffusion ddim": (*QUICK_DIFFUSION, "model.inference.scheduler=ddim"),
    "unet": (*QUICK_DIFFUSION, "model.network=unet"),
    "flow_matching": ("model=flow_matching",),
    "bc": ("model=bc",),
    "ibc": ("model=ibc", "model.inference.samples=32"),
}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
ENERGIES = (
    "flow", "flow without level", "equilibrium", "s1", "s2", "contrastive", "ebt_policy",
)  # fmt: skip
SHAPE = {"obs_dim": 20, "action_dim": 2, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8}
LOW, HIGH = torch.tensor([10.0, 100.0]), torch.tensor([500.0, 400.0])
NORMALIZER = Normalizer.fit(
    {"obs": torch.tensor([[0.0] * 20, [512.0] * 20]), "action": torch.stack([LOW, HIGH])}
)


def build(kind: str, *overrides: str, **shape: Any) -> Policy:
    """Return an untrained policy of one of the `KINDS`."""
    torch.manual_seed(0)
    config = compose_config(*TINY, *KINDS[kind], *overrides)
    return build_policy({**config, "shape": SHAPE | shape}, NORMALIZER).eval()


def observe(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"obs": torch.rand(rows, 2, 20, generator=generator) * 512}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def training_batch(rows: int = 4) -> dict[str, Any]:
    torch.manual_seed(1)
    return {"obs": torch.rand(rows, 2, 20) * 2 - 1, "action": torch.rand(rows, 16, 2) * 2 - 1}


def build_relative(kind: str) -> Policy:
    """Return a policy with actions relative to the last two entries of the observation."""
    torch.manual_seed(0)
    config = compose_config(*TINY, *KINDS[kind])
    limits = {"obs": torch.tensor([[0.0] * 20, [512.0] * 20]), "action": torch.randn(99, 2) * 60}
    normalizer = Normalizer.fit(limits, standardized=("action",))
    return build_policy({**config, "shape": {**SHAPE, "relative_to": [18, 19]}}, normalizer).eval()
