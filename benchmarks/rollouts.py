"""Speed of policy evaluation: ``python -m benchmarks.rollouts [checkpoint=RUN]``.

Options: checkpoint (as for ``ebt_policy.eval``), episodes (50), workers (25), rounds (3). The same
policy plays the same episodes of Push-T with several methods, in turns within one run:

- one environment, with one policy call for each chunk;
- ours, `ebt_policy.envs.rollout.RolloutPool`;
- gymnasium's `AsyncVectorEnv` with all environments in lockstep, as Diffusion Policy evaluates;
- lerobot's `rollout` on a `SyncVectorEnv`, its default (0.4.4 fails on an `AsyncVectorEnv`). This
  is skipped if lerobot is not installed (``pip install "lerobot[pusht]"``, in its own environment).

The start of processes is not timed. The results are written to ``docs/results/rollouts.json``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, device_name
from benchmarks.results import store_json
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.rollout import RolloutPool, batch_observations, noise_seed
from ebt_policy.policies import Policy
from ebt_policy.policies.entries import load_policy_entries

Play = Callable[[Sequence[int]], list[float]]  # seeds -> scores
OBS = "environment_state"  # lerobot's name for an observation that is not an image
console = Console()


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return the noise generators that a `RolloutPool` uses, so that all episodes are the same."""
    return [torch.Generator().manual_seed(noise_seed(seed)) for seed in seeds]


def plain(policy: Policy, spec: EnvSpec, stack: ExitStack) -> Play:
    """Return a function that plays the episodes in one environment of this process."""
    env = stack.enter_context(spec.make())

    def episode(seed: int) -> float:
        obs, _ = env.reset(seed=seed)
        recent = deque([obs] * spec.n_obs_steps, maxlen=spec.n_obs_steps)
        noise, score, done = generators([seed]), 0.0, False
        while not done:
            chunk = policy.predict_chunk(
                batch_observations([spec.stack_history(recent)]), generator=noise
            )
            for action in spec.future_actions(chunk.actions[0].numpy())[: spec.n_action_steps]:
                obs, reward, terminated, truncated, _ = env.step(action)
                recent.append(obs)
                score, done = max(score, float(reward)), terminated or truncated
                if done:
                    break
        return score

    return lambda seeds: [episode(seed) for seed in seeds]


def with_rollout_pool(policy: Policy, spec: EnvSpec, workers: int, stack: ExitStack) -> Play:
    """Return a function that plays the episodes with a `RolloutPool`."""
    pool = stack.enter_context(RolloutPool(spec, workers))
    return lambda seeds: [episode.score for episode in pool.rollout(policy, seeds)]


class ActionQueuePolicy(torch.nn.Module):
    """A policy with the interface of lerobot's `rollout`, which is called at every step."""

    def __init__(self, policy: Policy, spec: EnvSpec):
        super().__init__()
        self._policy, self._spec = policy, spec
        self.seeds: Sequence[int] = ()

    def reset(self) -> None:
        self._noise = generators(self.seeds)
        self._recent: deque[torch.Tensor] = deque(maxlen=self._spec.n_obs_steps)
        self._planned: deque[torch.Tensor] = deque()

    def select_action(self, observation: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return one action for each environment, (B, A), for observations (B, Do)."""
        rows = observation[f"observation.{OBS}"].float()
        self._recent.extend([rows] * (1 if self._recent else self._spec.n_obs_steps))
        if not self._planned:
            obs = {"obs": torch.stack(list(self._recent), dim=1)}
            actions = self._policy.predict_chunk(obs, generator=self._noise).actions
            first = self._spec.n_obs_steps - 1
            self._planned.extend(
                actions[:, first : first + self._spec.n_action_steps].unbind(dim=1)
            )
        return self._planned.popleft()


class NamedObservations(gymnasium.ObservationWrapper):
    """A wrapper that returns observations under the names that lerobot expects."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        assert isinstance(env.observation_space, gymnasium.spaces.Box)
        agent = gymnasium.spaces.Box(0.0, 512.0, (2,), np.float32)
        spaces = {OBS: env.observation_space, "agent_pos": agent}
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {OBS: observation, "agent_pos": observation[-2:]}


def in_step(envs: Any, policy: ActionQueuePolicy, seeds: Sequence[int]) -> tuple[Any, Any]:
    """Step vectorised environments until all episodes end; return rewards and ends (B, T)."""
    policy.reset()
    obs, _ = envs.reset(seed=list(seeds))
    rewards, dones = [], [np.zeros(len(seeds), dtype=bool)]
    while not dones[-1].all():
        observation = {f"observation.{OBS}": torch.from_numpy(obs[OBS])}
        obs, reward, terminated, truncated, _ = envs.step(policy.select_action(observation).numpy())
        rewards.append(reward)
        dones.append(dones[-1] | terminated | truncated)
    return np.stack(rewards, axis=1), np.stack(dones[1:], axis=1)


def by_lerobot(envs: Any, policy: ActionQueuePolicy, seeds: Sequence[int]) -> tuple[Any, Any]:
    """Do the same as `in_step`, with lerobot's own loop."""
    rollout = importlib.import_module("lerobot.scripts.lerobot_eval").rollout
    result = rollout(envs, policy, *[lambda value: value] * 4, seeds=list(seeds))
    return result["reward"].numpy(), result["done"].numpy()


def vectorised(policy: Policy, envs: Any, spec: EnvSpec, play: Callable[..., Any]) -> Play:
    """Return a function that plays batches of episodes, each until its last episode ends.

    Args:
        envs: vectorised environments; their number is the size of a batch.
        play: `in_step` or `by_lerobot`.
    """
    queued = ActionQueuePolicy(policy, spec)

    def episodes(seeds: Sequence[int]) -> list[float]:
        scores: list[float] = []
        for first in range(0, len(seeds), envs.num_envs):
            batch = list(seeds[first : first + envs.num_envs])
            queued.seeds = batch + batch[:1] * (envs.num_envs - len(batch))
            rewards, dones = play(envs, queued, queued.seeds)
            # Rewards after the end of an episode do not count.
            after = np.roll(dones, 1, axis=1)
            after[:, 0] = False
            scores += np.where(after, 0.0, rewards).max(axis=1)[: len(batch)].tolist()
        return scores

    return episodes


def main() -> None:
    options = parse_options(
        checkpoint="runs/push_t/ebt-xs-seed0", episodes=50, workers=25, rounds=3
    )
    (entry,) = load_policy_entries([options.checkpoint], DEVICE)
    policy, spec = entry.model, entry.env_spec
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + options.episodes)
    try:
        version = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        version = None
        console.print("skipped lerobot: it is not installed")
    with ExitStack() as stack:
        workers, make = options.workers, lambda: NamedObservations(spec.make())
        ways = {
            "one environment": plain(policy, spec, stack),
            f"ours, {workers} workers": with_rollout_pool(policy, spec, workers, stack),
        }
        processes = gymnasium.vector.AsyncVectorEnv([make] * workers)
        stack.callback(processes.close)
        ways[f"AsyncVectorEnv, {workers} processes"] = vectorised(policy, processes, spec, in_step)
        for count in (workers, options.episodes) if version else ():
            one_process = gymnasium.vector.SyncVectorEnv([make] * count)
            stack.callback(one_process.close)
            name = f"lerobot, {count} environments"
            ways[name] = vectorised(policy, one_process, spec, by_lerobot)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        scores: dict[str, float] = {}
        for play in ways.values():
            play(seeds[:1])  # warm-up
        for _ in range(options.rounds):
            for name, play in ways.items():
                start = time.perf_counter()
                scores[name] = statistics.fmean(play(seeds))
                seconds[name].append(time.perf_counter() - start)
    report(seconds, scores, options, version)


def report(
    seconds: dict[str, list[float]], scores: dict[str, float], options: Any, version: str | None
) -> None:
    """Print the results as a table and store them as JSON."""
    rates = {name: options.episodes / statistics.median(times) for name, times in seconds.items()}
    first = next(iter(rates.values()))
    table = Table("method", "episodes/s", "speed-up over one environment", "mean score")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.2f}", f"{rate / first:.2f}", f"{scores[name]:.3f}")
    console.print(table)
    result = {
        "command": command_line("rollouts"),
        "policy": options.checkpoint,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lerobot": version,
        "episodes": options.episodes,
        "ways": {
            name: {
                "seconds": [round(value, 3) for value in seconds[name]],
                "episodes_per_second": round(rate, 3),
                "times_plain": round(rate / first, 3),
                "mean_score": round(scores[name], 4),
            }
            for name, rate in rates.items()
        },
    }
    store_json("rollouts", result)


if __name__ == "__main__":
    main()
