"""Uses of a policy's energy: detecting failures and events, early exit, best of M.

- How well do signals of a chunk detect an episode that will fail, and an unexpected observation?
  Signals of the energy are compared with three that need no energy. Is a signal that is calibrated
  on half of the episodes reliable on the other half?
- How many steps does the early exit of straight descents save, and how does the score change?
- How do more candidates change score, success and latency?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed import interleaved_timing
from benchmarks.study import StudyContext
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.perturbations import Perturbation, sample_event
from ebt_policy.envs.rollout import RolloutPool, noise_seed
from ebt_policy.evaluation.detection import Samples, auroc, held_out_reliability
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.task_config import PolicyTaskConfig

CPU = torch.device("cpu")
# Perturbations of the observation: events in an episode, and some that last from its start.
EVENTS = (Perturbation("agent", 100), Perturbation("kick", 50), Perturbation("turn", 60),
          Perturbation("freeze", 8), Perturbation("delay", 4))  # fmt: skip
UNDISTURBED, ALL = "undisturbed", "all"
FIRST_CHUNKS = 9  # chunks of an episode whose signals count; all events happen before the last
SIGNAL_SAMPLES = 16  # candidates for the signals
ENERGY_SIGNALS = ("energy", "gradient norm", "energy drop", "surprise")
OTHER_SIGNALS = ("distance to the plan", "spread of samples", "distance to demonstrations")
ENTRY_KEYS = ("name", "score", "success", "steps_used")

Signals = dict[str, np.ndarray]  # (episodes, FIRST_CHUNKS) each; NaN for missing chunks


def energy_signals(context: StudyContext) -> dict[str, Any]:
    """Measure best of M, early exit, and signals of failures and unexpected observations.

    Groups of the part: ``candidates``; ``early_exit``, pairs of entries without and with early
    exit; and ``signals``, one entry. The study has the option ``episodes``.
    """
    config = EvalConfig(context.options.episodes, EVALUATION_SEED, videos=0, workers=20)
    candidates, early_exit = context.checkpoints("candidates"), context.checkpoints("early_exit")
    table = evaluate_policies(
        candidates + early_exit, config,
        output=context.output, device=CPU, command=context.command,
    )  # fmt: skip
    rows = [{key: entry[key] for key in ENTRY_KEYS} for entry in table["entries"]]
    exits = rows[len(candidates) :]
    names = [row["name"] for row in exits]
    compared = set(zip(names[::2], names[1::2], strict=True))
    counts = [parse_checkpoint(text)[1]["num_candidates"] for text in candidates]
    (checkpoint,) = context.checkpoints("signals")
    return {
        "command": context.command,
        "episodes": context.options.episodes,
        "candidates": [
            {"candidates": count, "chunk_ms": ms, **row}
            for count, ms, row in zip(counts, chunk_latency_ms(candidates), rows, strict=False)
        ],
        "landing": exits,
        "landing_paired": [pair for pair in table["paired"] if (pair["a"], pair["b"]) in compared],
        **signal_quality(*play_conditions(checkpoint, config)),
    }


class SignalRecord(NamedTuple):
    """Signals of one training run in one condition, and whether each episode failed (episodes,)."""

    signals: Signals
    failed: np.ndarray


class RecordingPolicy:
    """A policy that records its observations and plans, by episode."""

    def __init__(self, policy: EnergyPolicy) -> None:
        self.policy = policy
        self.history: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def predict_chunk(self, obs: dict[str, Tensor], *, generator: Any = None) -> Any:
        chunk = self.policy.predict_chunk(obs, generator=generator)
        for noise, window, actions in zip(generator, obs["obs"], chunk.actions, strict=True):
            steps = self.history.setdefault(noise.initial_seed(), [])
            steps.append((window.clone(), actions.clone()))
        return chunk

    def episode(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return observations (chunks, To, Do) and plans (chunks, T, A), in env units."""
        windows, plans = zip(*self.history[noise_seed(seed)][:FIRST_CHUNKS], strict=True)
        return torch.stack(windows), torch.stack(plans)


class TrainingObservations:
    """The observations that a policy was trained on, to measure distances to them."""

    def __init__(self, policy: EnergyPolicy) -> None:
        task = PolicyTaskConfig.from_config(policy.config)
        episodes, _ = task.split(task.demonstrations()[0], policy.config["seed"])
        windows = task.windows(episodes)
        rows = windows.gather(torch.arange(len(windows)))["obs"]
        self._rows = policy.normalizer.normalize("obs", rows).flatten(1)

    def distance(self, obs: Tensor) -> Tensor:
        """Return the distance (B,) of normalised observations (B, To, Do) to the nearest one."""
        return torch.cdist(obs.flatten(1), self._rows).amin(1)


def signals(
    policy: EnergyPolicy, training: TrainingObservations, obs: Tensor, before: Tensor
) -> dict[str, Tensor]:
    """Return signals (B,) of observations; high values should indicate failures.

    Args:
        training: training observations of the policy.
        obs: observations (B, To, Do) in env units.
        before: previous plans (B, T, A), of which Ta actions have been executed since.
    """
    num_planned = policy.shape.horizon - policy.shape.n_action_steps
    with torch.no_grad():
        normalised = policy.normalizer.normalize("obs", obs)
        descent = policy.descend(normalised, generator=torch.Generator().manual_seed(0))
    chosen, ends = policy.unnormalize_actions(obs, descent.candidate[:, 0]), descent.path[-1]
    last_plan = torch.cat([before[:, -num_planned:], chosen[:, num_planned:]], dim=1)
    # Energies for one observation are comparable: the rest of the last plan and the new plan.
    energies = policy.energies({"obs": obs}, torch.stack([last_plan, chosen], dim=1))
    plan_change = (last_plan - chosen)[:, :num_planned]
    return {
        "energy": descent.energies[-1, :, 0],
        "gradient norm": descent.grad_norms[-1, :, 0],
        "energy drop": -descent.energy_decrease[:, 0],
        "surprise": energies[:, 0] - energies[:, 1],
        "distance to the plan": plan_change.square().mean(dim=(1, 2)).sqrt(),
        "spread of samples": ends.var(dim=1).mean(dim=(1, 2)).sqrt(),
        "distance to demonstrations": training.distance(normalised),
    }


def record_signals(
    policy: EnergyPolicy, training: TrainingObservations, pool: RolloutPool, seeds: range
) -> SignalRecord:
    """Play episodes and compute the signals of the first chunks, except the very first.

    The very first chunk of an episode has no previous plan.
    """
    recorder = RecordingPolicy(policy)
    results = pool.rollout(recorder, seeds)
    table = {
        name: np.full((len(seeds), FIRST_CHUNKS), np.nan) for name in ENERGY_SIGNALS + OTHER_SIGNALS
    }
    for i, seed in enumerate(seeds):
        obs, plans = recorder.episode(seed)
        if len(obs) > 1:
            for name, values in signals(policy, training, obs[1:], plans[:-1]).items():
                table[name][i, 1 : len(obs)] = values.numpy()
    return SignalRecord(table, np.array([not result.success for result in results]))


def chunk_after_event(seed: int, n_action_steps: int) -> int:
    """Return the first chunk whose observation shows the event."""
    _, step = sample_event(seed)
    return step // n_action_steps + 1


def unexpected(undisturbed: Signals, perturbed: Signals, chunks: np.ndarray) -> dict[str, Samples]:
    """Return samples of the chunk after the event, and of the same chunk without an event.

    Args:
        undisturbed, perturbed: signals without and with events.
        chunks: (episodes,) the first chunk whose observation shows the event.
    """
    rows = np.arange(len(chunks))
    samples = {}
    for name in undisturbed:
        pair = [undisturbed[name][rows, chunks], perturbed[name][rows, chunks]]
        values = np.concatenate(pair)
        finite = np.isfinite(values)
        labels = np.repeat([False, True], len(rows))
        samples[name] = Samples(values[finite], labels[finite], np.tile(rows, 2)[finite])
    return samples


def play_conditions(
    checkpoint: str, config: EvalConfig
) -> tuple[dict[str, list[SignalRecord]], np.ndarray]:
    """Play every condition with every training run.

    Returns:
        Condition -> records of the runs, and the chunk after the event of each episode (episodes,).
    """
    (entry,) = load_policy_entries([checkpoint], CPU)
    spec = entry.env_spec
    policies = [policy for policy in entry.models if isinstance(policy, EnergyPolicy)]
    training = [TrainingObservations(policy) for policy in policies]
    records: dict[str, list[SignalRecord]] = {}
    with progress_bar() as bar:
        task = bar.add_task("signals", total=len(policies) * (1 + len(EVENTS)))
        for condition in (None, *EVENTS):
            perturbed = replace(spec, perturbation=condition)
            with RolloutPool(perturbed, config.processes) as pool:
                for policy, observations in zip(policies, training, strict=True):
                    record = record_signals(policy, observations, pool, config.seeds)
                    records.setdefault(str(condition or UNDISTURBED), []).append(record)
                    bar.advance(task)
    chunks = [chunk_after_event(seed, spec.n_action_steps) for seed in config.seeds]
    return records, np.array(chunks)


def signal_quality(
    records: Mapping[str, Sequence[SignalRecord]], chunks: np.ndarray
) -> dict[str, Any]:
    """Return areas under the ROC curve for failures and unexpected observations, and reliability.

    Args:
        records: condition, also `UNDISTURBED` -> the record of each training run.
        chunks: (episodes,) the first chunk whose observation shows the event.
    """
    undisturbed = records[UNDISTURBED]
    by_event = {
        condition: [
            unexpected(calm.signals, perturbed.signals, chunks)
            for calm, perturbed in zip(undisturbed, runs, strict=True)
        ]
        for condition, runs in records.items()
        if condition != UNDISTURBED
    }
    names = ENERGY_SIGNALS + OTHER_SIGNALS
    pooled = {
        n: [
            _concatenate([event[n] for event in run])
            for run in zip(*by_event.values(), strict=True)
        ]
        for n in names
    }
    calm_failures = {n: [_failures([run], n) for run in undisturbed] for n in names}
    failures = {
        n: [_failures(run, n) for run in zip(*records.values(), strict=True)] for n in names
    }

    def areas(samples: Mapping[str, list[Samples]]) -> dict[str, Any]:
        return {name: auroc(runs) for name, runs in samples.items()}

    return {
        "runs": len(undisturbed),
        "unexpected": {
            **{
                condition: areas({n: [run[n] for run in runs] for n in names})
                for condition, runs in by_event.items()
            },
            ALL: areas(pooled),
        },
        "failure": {UNDISTURBED: areas(calm_failures), ALL: areas(failures)},
        "failed": float(np.mean([run.failed for runs in records.values() for run in runs])),
        "reliability": {
            "unexpected": {n: held_out_reliability(runs) for n, runs in pooled.items()},
            "failure": {n: held_out_reliability(runs) for n, runs in failures.items()},
        },
    }


def _concatenate(samples: Sequence[Samples]) -> Samples:
    return Samples(*(np.concatenate(columns) for columns in zip(*samples, strict=True)))


def _failures(conditions: Sequence[SignalRecord], name: str) -> Samples:
    """Return the mean of a signal over the first chunks of an episode, and whether it failed."""
    samples = []
    for record in conditions:
        means = np.nanmean(record.signals[name], axis=1)
        finite = np.isfinite(means)
        samples.append(Samples(means[finite], record.failed[finite], np.flatnonzero(finite)))
    return _concatenate(samples)


def chunk_latency_ms(checkpoints: Sequence[str]) -> list[float]:
    """Return the median latency of a chunk at batch size 1 for each checkpoint, ms."""
    jobs = {}
    for checkpoint in checkpoints:
        (entry,) = load_policy_entries([checkpoint], CPU)
        shape = entry.model.shape
        obs = {"obs": torch.full((1, shape.n_obs_steps, shape.obs_dim), 256.0)}
        jobs[checkpoint] = lambda policy=entry.model, obs=obs: policy.predict_chunk(obs)
    return [float(np.median(times)) for times in interleaved_timing(jobs, 100).values()]
