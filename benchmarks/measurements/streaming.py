"""Planning at every control tick: keeping the last plan, correlated noise, warm starts.

The policies are trained as usual. The methods differ in what they predict at a tick:

- ``chunked``: nothing, until the first Ta actions of the last chunk are executed.
- ``resampled``: a new chunk, the best of eight.
- ``kept``: the best of eight new chunks and the rest of the last plan.
- ``correlated noise``: a chunk from the noise of the last tick, shifted by one action.
- ``warm start``: the rest of the last plan, corrupted to level 0.8, after one step.

Chunks are compared by energy, or by the line integral of flow matching's field.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.measurements.judging import own_judge
from benchmarks.study import StudyContext
from ebt_policy.energy.candidate_space import corrupt
from ebt_policy.energy.sampling import draw_normal
from ebt_policy.envs.rollout import RolloutPool, noise_seed
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import mean_ci, percentiles
from ebt_policy.policies import Chunk, EnergyPolicy
from ebt_policy.policies.entries import PolicyEntry, load_policy_entries
from ebt_policy.policies.metrics import METRICS, entry_summary, pair_entries
from ebt_policy.policies.robustness import known_perturbations, parse_perturbations

METHODS = ("chunked", "resampled", "kept", "correlated noise", "warm start")
CANDIDATES = 8
WARM_LEVEL = 0.8
ENTRY_KEYS = ("name", "episodes", *METRICS, "jerk", "batch_ms_per_tick")
EPISODE_KEYS = ("seed", "score", "success", "length")


class StreamingPolicy:
    """A policy that plans at every tick with one of the `METHODS` (not ``chunked``).

    Args:
        policy: an energy policy or flow matching.
        method: one of `METHODS`.

    Attributes:
        actions: executed actions of each episode, by the seed of its noise.
    """

    def __init__(self, policy: Any, method: str) -> None:
        self._policy, self._method, self._judge = policy, method, own_judge(policy)
        self._plans: dict[int, Tensor] = {}  # (T, A) in env units, by the seed of the noise
        self._noise: dict[int, Tensor] = {}  # (T, A)
        self.actions: dict[int, list[np.ndarray]] = {}

    @torch.no_grad()
    def predict_chunk(self, obs: dict[str, Tensor], *, generator: Any = None) -> Chunk:
        policy, shape = self._policy, self._policy.shape
        keys = [g.initial_seed() for g in generator]
        features = policy.encode_observation(obs)
        last, has_plan = self._last_plans(keys)
        plan = policy.normalize_actions(obs["obs"], last).unsqueeze(1)
        if self._method == "correlated noise":
            noise = self._shifted_noise(keys, generator)
        else:
            count = 1 if self._method == "warm start" else CANDIDATES
            empty = features.new_empty(len(keys), count, shape.horizon, shape.action_dim)
            noise = draw_normal(empty, generator)
        x = plan
        is_warm = has_plan & (self._method == "warm start")
        if not is_warm.all():
            x = policy.transport(features, noise)
        if is_warm.any():
            warm = self._one_step(features, corrupt(plan, noise, self._levels(noise)))
            x = torch.where(is_warm[:, None, None, None], warm, x)
        if self._method == "kept":
            x = torch.cat([x, plan], dim=1)
        chunks = policy.unnormalize_actions(obs["obs"], policy.normalizer.clamp("action", x))
        chosen = chunks[:, 0]
        if chunks.shape[1] > 1:
            scores = self._judge(obs, chunks, generator)
            if self._method == "kept":
                scores[:, -1].masked_fill_(~has_plan, torch.inf)
            best = scores.argmin(1)
            chosen = chunks[torch.arange(len(keys)), best]
        first = shape.n_obs_steps - 1
        for key, chunk in zip(keys, chosen, strict=True):
            self._plans[key] = chunk
            self.actions.setdefault(key, []).append(chunk[first].numpy())
        return Chunk(chosen, torch.ones(len(keys), dtype=torch.long))

    def _last_plans(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        """Return the last plans (B, T, A), one action later, and which episodes have one (B,).

        An episode has none in its first tick; its row is zero.
        """
        shape = self._policy.shape
        none = torch.zeros(shape.horizon, shape.action_dim)
        plans = torch.stack([self._plans.get(key, none) for key in keys])
        has_plan = torch.tensor([key in self._plans for key in keys])
        return torch.cat([plans[:, 1:], plans[:, -1:]], dim=1), has_plan

    def _shifted_noise(self, keys: list[int], generators: Any) -> Tensor:
        """Return noise (B, 1, T, A) that moves with the time of the actions."""
        shape = self._policy.shape
        for key, generator in zip(keys, generators, strict=True):
            if key in self._noise:
                new = torch.randn(1, shape.action_dim, generator=generator)
                self._noise[key] = torch.cat([self._noise[key][1:], new])
            else:
                self._noise[key] = torch.randn(shape.horizon, shape.action_dim, generator=generator)
        return torch.stack([self._noise[key] for key in keys]).unsqueeze(1)

    def _levels(self, noise: Tensor) -> Tensor:
        return noise.new_full(noise.shape[:2], WARM_LEVEL)

    def _one_step(self, features: Tensor, x: Tensor) -> Tensor:
        """Return candidates x (B, 1, T, A) at the warm level after one step to level 1."""
        policy, context = self._policy, self._policy.net.encode(features)
        if isinstance(policy, EnergyPolicy):
            descent = policy.objective.descent(1, level=WARM_LEVEL, device=x.device)
            descent = replace(descent, final_energy=False)
            return descent(partial(policy.net, context), x).candidate
        return x + (1 - WARM_LEVEL) * policy.net(context, x, self._levels(x))


def streaming(context: StudyContext) -> dict[str, Any]:
    """Play episodes with every policy, method, condition and training seed.

    Entries of the part are the policies. The study has the options ``episodes``, ``first_seed`` and
    ``perturb``, perturbations separated by commas.
    """
    options = context.options
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    cache = ResultCache(context.output / "streaming.jsonl", "result")
    entries = load_policy_entries(context.checkpoints(), DEVICE)
    kinds = known_perturbations(entries[0].env_spec)
    conditions = parse_perturbations(options.perturb.split(","), kinds)
    results = []
    for condition in conditions:
        summaries = []
        for entry in entries:
            for method in METHODS:
                name = f"{entry.name.split(' ')[0]}, {method}"
                rows, jerks, times = [], [], []
                runs = list(zip(entry.runs, entry.models, strict=True))
                for run, policy in track(runs, f"{name} {condition or 'undisturbed'}"):
                    identity = {
                        "key": f"{name} | {run.name} | {condition}",
                        "checkpoint": fingerprint(run),
                        "inference": asdict(policy.inference),
                        "seeds": [seeds.start, seeds.stop],
                    }
                    play = partial(_play, entry, policy, method, condition, seeds)
                    result = cache.get_or_compute(identity, play)
                    seed = policy.config.get("seed")
                    rows += [row | {"train_seed": seed} for row in result["episodes"]]
                    jerks.append(result["jerk"])
                    times += result["latency_ms"]
                summary = entry_summary(name, entry.metadata(), rows, context.command)
                ticks = entry.models[0].shape.n_action_steps if method == "chunked" else 1
                summary |= {
                    "jerk": mean_ci(np.array(jerks)),
                    "batch_ms_per_tick": percentiles(times)["p50"] / ticks,
                }
                summaries.append((summary, rows))
        results.append(
            {
                "condition": str(condition or "undisturbed"),
                "entries": [{key: summary[key] for key in ENTRY_KEYS} for summary, _ in summaries],
                "paired": pair_entries(
                    summaries, [tuple(entry.runs) for entry in entries for _ in METHODS]
                ),
            }
        )
    return {"command": context.command, "episodes": options.episodes, "conditions": results}


def _play(
    entry: PolicyEntry, policy: Any, method: str, condition: Any, seeds: range
) -> dict[str, Any]:
    """Return the episodes of one training run, their mean jerks (px) and latencies (ms)."""
    is_chunked = method == "chunked"
    ticks = policy.shape.n_action_steps if is_chunked else 1
    spec = replace(entry.env_spec, n_action_steps=ticks, perturbation=condition)
    streamed = ChunkedPolicy(policy, ticks) if is_chunked else StreamingPolicy(policy, method)
    with RolloutPool(spec, workers=25) as pool:
        results = pool.rollout(streamed, seeds)
    rows = [{k: v for k, v in asdict(r).items() if k in EPISODE_KEYS} for r in results]
    jerks = []
    for result in results:
        actions = streamed.actions[noise_seed(result.seed)][: result.length]
        if len(actions) > 3:
            third = np.diff(np.stack(actions), n=3, axis=0)
            jerks.append(float(np.linalg.norm(third, axis=-1).mean()))
    times = [chunk.latency_ms for result in results for chunk in result.chunks]
    return {
        "episodes": [row | {"chunks": [], "video": None} for row in rows],
        "jerk": jerks,
        "latency_ms": times,
    }


class ChunkedPolicy:
    """A policy that executes the first actions of each chunk, and stores them for the jerk."""

    def __init__(self, policy: Any, ticks: int) -> None:
        self._policy, self._ticks = policy, ticks
        self.actions: dict[int, list[np.ndarray]] = {}

    def predict_chunk(self, obs: dict[str, Tensor], *, generator: Any = None) -> Chunk:
        chunk = self._policy.predict_chunk(obs, generator=generator)
        first = self._policy.shape.n_obs_steps - 1
        for g, actions in zip(generator, chunk.actions, strict=True):
            executed = actions[first : first + self._ticks].numpy()
            self.actions.setdefault(g.initial_seed(), []).extend(executed)
        return chunk
