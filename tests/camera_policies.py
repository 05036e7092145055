"""Tiny camera policies, and random observations for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY, compose_config

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.policies import Policy, build_policy

SIDE = 96
SHAPE = {
    "obs_dim": 2,
    "action_dim": 2,
    "horizon": 16,
    "n_obs_steps": 2,
    "n_action_steps": 8,
    "relative_to": [0, 1],
    "cameras": {"image": [SIDE, SIDE]},
}
NORMALIZER = Normalizer.fit(
    {"obs": torch.tensor([[0.0, 0.0], [512.0, 512.0]]), "action": torch.randn(99, 2) * 60},
    standardized=("action",),
)
KINDS = {
    "flow": ("model=ebt",),
    "s2": ("model=ebt", "objective=s2"),
    "diffusion": ("model=diffusion", "model.inference.steps=3"),
    "unet": ("model=diffusion", "model.inference.steps=3", "model.network=unet"),
    "flow_matching": ("model=flow_matching",),
    "bc": ("model=bc",),
    "ibc": ("model=ibc", "model.inference.samples=32"),
}
IMAGE = ("task=push_t_image", "vision.keypoints=4")


def build(kind: str = "flow", *overrides: str, shape: dict[str, Any] = SHAPE) -> Policy:
    """Return an untrained policy of one of the `KINDS`."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = compose_config(*TINY, *IMAGE, *KINDS[kind], *overrides)
    return build_policy({**config, "shape": shape}, NORMALIZER).eval()


def observe(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random observations of two steps, with images of SIDE x SIDE pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, 2, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return {"obs": torch.rand(rows, 2, 2, generator=generator) * 512, "image": image}


def training_batch(policy: Policy, rows: int = 3) -> dict[str, torch.Tensor]:
    action = 256 + 60 * torch.randn(rows, 16, 2, generator=torch.Generator().manual_seed(1))
    return policy.normalize({**observe(rows), "action": action})


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
