"""Robot policies, which predict action chunks from observations."""

from ebt_policy.policies.acting import evaluate
from ebt_policy.policies.base import Policy
from ebt_policy.policies.behavior_cloning import BehaviorCloning
from ebt_policy.policies.chunk import Chunk, ChunkPredictor, PolicyUnavailable
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.policies.costs import (
    Cost,
    CostError,
    KeepIn,
    KeepOut,
    MaxTravel,
    Nudge,
    Smoothness,
    Waypoint,
)
from ebt_policy.policies.diffusion import DiffusionPolicy
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.flow_matching import FlowMatchingPolicy
from ebt_policy.policies.implicit_bc import ImplicitBC
from ebt_policy.policies.loading import load_policy
from ebt_policy.policies.mixtures import mixture
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.products import product, without
from ebt_policy.policies.registry import POLICIES, build_policy

__all__ = [
    "POLICIES",
    "BehaviorCloning",
    "Chunk",
    "ChunkConstraints",
    "ChunkPredictor",
    "Cost",
    "CostError",
    "DiffusionPolicy",
    "EnergyPolicy",
    "FlowMatchingPolicy",
    "ImplicitBC",
    "KeepIn",
    "KeepOut",
    "MaxTravel",
    "Nudge",
    "Policy",
    "PolicyShape",
    "PolicyUnavailable",
    "Smoothness",
    "Waypoint",
    "build_policy",
    "evaluate",
    "load_policy",
    "mixture",
    "product",
    "without",
]
