"""Errors of predicted chunks along the recorded observations of held-out episodes.

Shapes: B windows, T horizon, To observations, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ebt_policy.data.episodes import Episodes
from ebt_policy.data.frame_cache import digest_of
from ebt_policy.data.joined_dataset import open_datasets
from ebt_policy.data.windows import Windows
from ebt_policy.errors import ConfigError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.entries import PolicyEntry
from ebt_policy.policies.held_out_figures import ChunkTrace
from ebt_policy.policies.task_config import PolicyTaskConfig

BATCH = 64  # windows that are predicted at once
MAX_WINDOWS = 400  # predicted windows of one episode


class HeldOutSet(NamedTuple):
    """Held-out episodes of a task.

    Attributes:
        task: the task.
        episodes: the held-out episodes.
        windows: windows of each episode.
        spread: (A,) standard deviation of each action entry over all episodes, 0 if constant.
        names: (A,) names of the action entries.
        identity: values that identify the data in the result cache.
    """

    task: PolicyTaskConfig
    episodes: Episodes
    windows: list[Windows]
    spread: np.ndarray
    names: list[str]
    identity: Mapping[str, Any]

    def each(self) -> list[dict[str, np.ndarray]]:
        """Return the arrays of each episode."""
        return [self.episodes.episode(i) for i in range(len(self.episodes))]


def load_held_out(entry: PolicyEntry) -> HeldOutSet:
    """Return the held-out episodes of a policy.

    Raises:
        ConfigError: there are none.
        EpisodeError: the data set is missing or damaged.
    """
    task = PolicyTaskConfig.from_config(entry.model.config)
    if not task.validation_episodes:
        raise ConfigError(
            f"{entry.name} was trained on all episodes of {listed(task.sources)}, so none are "
            "left to evaluate it on; train with task.validation_episodes=N, on two or more "
            "episodes."
        )
    episodes, _ = task.demonstrations()
    _, held_out = task.split(episodes, entry.model.config.get("seed", 0))
    assert held_out is not None
    actions = episodes.arrays["action"].astype(np.float64)
    spread = actions.std(axis=0)
    spread[spread <= 1e-6 * np.abs(actions).max(axis=0)] = 0.0
    if not spread.any():
        raise ConfigError(
            f"all entries of {task.action_key} are constant in {listed(task.sources)}; set "
            "task.action_key to another feature."
        )
    key = str(task.action_key)
    with open_datasets(task.sources) as dataset:
        digest = digest_of(dataset, [task.state_keys, key, task.image_size])
        names = list(dataset.features[key].entries) or [f"{key}[{i}]" for i in range(len(spread))]
    rows = held_out.arrays["row"]
    identity = {"data": digest, "rows": [int(rows[0]), int(rows[-1]), len(rows)]}
    windows = [task.windows(held_out.select([i])) for i in range(len(held_out))]
    return HeldOutSet(task, held_out, windows, spread, names, identity)


def listed(sources: str | Sequence[str]) -> str:
    """Return the paths of data sets, separated by commas."""
    return sources if isinstance(sources, str) else ", ".join(sources)


def measure_policy(policy: Policy, eval_set: HeldOutSet) -> dict[str, Any]:
    """Return the fields of a `held_out.HeldOutResult` of one training run, as lists."""
    varies = eval_set.spread > 0
    scale, shape = eval_set.spread[varies], policy.shape
    first, executed = shape.n_obs_steps - 1, slice(0, shape.n_action_steps)
    errors: dict[str, list[Any]] = {"error": [], "hold_error": [], "by_step": [], "gap": []}
    for episode, windows in zip(eval_set.each(), eval_set.windows, strict=True):
        index = chosen_windows(windows, shape.n_action_steps)
        predicted, recorded, gap = predict_windows(policy, windows, index)
        real = windows.is_real(index)[:, first:].cpu().numpy()
        square = (((predicted - recorded)[:, first:, varies] / scale) ** 2).mean(-1)
        # The newest observation of window i is row i, so the last action is that of row i - 1.
        last = episode["action"][np.maximum(index.numpy() - 1, 0), None]
        hold = (((last - recorded[:, first:])[..., varies] / scale) ** 2).mean(-1)
        later = index.numpy() > 0  # There is no action before the first row.
        if not later.any():
            later[:] = True
        errors["error"].append(root_mean(square[later, executed], real[later, executed]))
        errors["hold_error"].append(root_mean(hold[later, executed], real[later, executed]))
        errors["by_step"].append(
            [root_mean(square[:, [k]], real[:, [k]]) for k in range(square.shape[1])]
        )
        errors["gap"].append(gap)
    gaps = errors.pop("gap")
    return {**errors, "energy_gap": None if None in gaps else gaps}


def root_mean(square: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the root mean of the squares (B, K) where ``counts`` (B, K); None if nowhere."""
    return float(np.sqrt(square[counts].mean())) if counts.any() else None


def chosen_windows(windows: Windows, stride: int) -> torch.Tensor:
    """Return the indices of evenly spaced windows, at most `MAX_WINDOWS`."""
    stride = max(stride // 2, 1, -(-len(windows) // MAX_WINDOWS))
    return torch.arange(0, len(windows), stride)


@torch.no_grad()
def predict_windows(
    policy: Policy, windows: Windows, index: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Predict the chunks of windows.

    Returns:
        Predicted and recorded chunks (B, T, A) in env units, and the mean difference of their
        energies, recorded minus predicted; None without an energy.
    """
    predicted, recorded, gaps = [], [], []
    for part in index.split(BATCH):
        batch = {key: values.to(policy.device) for key, values in windows.gather(part).items()}
        actions = batch.pop("action")
        generators = [torch.Generator().manual_seed(int(i)) for i in part]
        chunk = policy.predict_chunk(batch, generator=generators)
        if isinstance(policy, EnergyPolicy):
            both = torch.stack([actions.to(chunk.actions), chunk.actions], dim=1)
            energies = policy.energies(batch, both.to(policy.device))
            gaps.append((energies[:, 0] - energies[:, 1]).cpu())
        predicted.append(chunk.actions.cpu().numpy())
        recorded.append(actions.cpu().numpy())
    gap = float(torch.cat(gaps).mean()) if gaps else None
    return np.concatenate(predicted), np.concatenate(recorded), gap


def trace_episode(policy: Policy, eval_set: HeldOutSet) -> ChunkTrace:
    """Return the recorded actions of the first held-out episode, and the chunks along it."""
    windows = eval_set.windows[0]
    first, ticks = policy.shape.n_obs_steps - 1, policy.shape.n_action_steps
    index = torch.arange(0, len(windows), ticks)  # window i has its newest observation in row i
    predicted, _, _ = predict_windows(policy, windows, index)
    frames = None
    if policy.shape.cameras:
        camera = next(iter(policy.shape.cameras))
        frames = windows.gather(index)[camera][:, -1].cpu().numpy()
    return ChunkTrace(
        recorded=eval_set.each()[0]["action"],
        starts=index.numpy(),
        chunks=predicted[:, first:],
        executed=ticks,
        names=eval_set.names,
        spread=eval_set.spread,
        frames=frames,
    )
