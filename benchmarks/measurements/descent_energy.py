"""Energies, gradients and errors of policies over a long descent, without an environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.device import DEVICE
from benchmarks.study import StudyContext
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.policies import EnergyPolicy
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.task_config import PolicyTaskConfig

WINDOWS = 512  # windows of the demonstrations


def descent_energy(context: StudyContext) -> dict[str, Any]:
    """Return energies and gradient norms before each step, and errors after it.

    Entries of the part are energy policies with many steps and one candidate. The observations are
    evenly spaced windows of the demonstrations; the error is the root mean square difference from
    the demonstrated chunk, in standard deviations.
    """
    entries = []
    for entry in load_policy_entries(context.checkpoints(), DEVICE):
        runs = [descend_windows(policy) for policy in entry.models]
        entries.append(
            {
                "name": entry.name,
                **{
                    key: [mean_ci(np.array([[run[key][k]] for run in runs])) for k in range(count)]
                    for key, count in ((key, len(values)) for key, values in runs[0].items())
                },
            }
        )
    return {"command": context.command, "windows": WINDOWS, "entries": entries}


@torch.no_grad()
def descend_windows(policy: Any) -> dict[str, list[float]]:
    """Return mean energies and gradient norms before each of N steps, and N + 1 errors.

    The energies are relative to the last of them. They are the heights at the points at which the
    descent evaluates its gradient; for the flow objective, each at a level of its own.
    """
    assert isinstance(policy, EnergyPolicy)
    task = PolicyTaskConfig.from_config(policy.config)
    windows = task.windows(task.demonstrations()[0])
    index = torch.linspace(0, len(windows) - 1, WINDOWS).long()
    batch = windows.gather(index)
    target = policy.normalize_actions(batch["obs"], batch["action"]).unsqueeze(1)
    features = policy.encode_observation({"obs": batch["obs"]})
    result = policy.descend(features, generator=torch.Generator().manual_seed(0))
    errors = [float((x - target).square().mean().sqrt()) for x in result.path]
    energies = result.energies[:-1].mean(dim=(1, 2))  # The last one scores the candidates.
    return {
        "energy": (energies - energies[-1]).tolist(),
        "grad_norm": result.grad_norms.mean(dim=(1, 2)).tolist(),
        "error": errors,
    }
