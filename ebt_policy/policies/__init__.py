"""Policies of robots: all of them predict chunks of actions from observations."""

from ebt_policy.policies.base import POLICIES, Chunk, Policy, PolicyShape, build_policy, load_policy
from ebt_policy.policies.behavior_cloning import BehaviorCloning
from ebt_policy.policies.diffusion import DiffusionPolicy
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.flow_matching import FlowMatchingPolicy
from ebt_policy.policies.implicit_bc import ImplicitBC

__all__ = [
    "POLICIES",
    "BehaviorCloning",
    "Chunk",
    "DiffusionPolicy",
    "EnergyPolicy",
    "FlowMatchingPolicy",
    "ImplicitBC",
    "Policy",
    "PolicyShape",
    "build_policy",
    "load_policy",
]
