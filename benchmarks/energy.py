"""What the energy tells: ``python -m benchmarks.energy [runs="runs/compare/ebt_12500-seed*"]``.

Asks three things of every training run, on the evaluation seeds:

- How well do signals of a chunk tell an episode that will fail, and an observation that is not
  what was expected? Those of the energy against three that need none. And does a signal, calibrated
  on half of the episodes, come true on the other half?
- How many steps does early landing save (`stop_change`), at what score?
- What do more candidates bring, at what cost?

Writes ``docs/results/energy.json``; half an hour on two cores for three runs. Settings: runs,
episodes (100), and folder (runs/energy) for the evaluation's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.settings import command, settings, store
from benchmarks.speed import in_turns
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.envs.perturbations import Perturbation, sample_event
from ebt_policy.envs.rollout import RolloutPool, noise_seed
from ebt_policy.evaluation.detection import Calibration, Samples, auroc, reliability
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.policies.demonstrations import PolicyTaskConfig
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies

CANDIDATES = (1, 2, 4, 8, 16, 32)
LANDING = ["steps=4,candidates=1", "steps=4,candidates=1,stop_change=0.5",
           "steps=4,candidates=8", "steps=4,candidates=8,stop_change=0.5"]  # fmt: skip
# What goes wrong with the observation: events in an episode, and what lasts from its start.
EVENTS = (Perturbation("agent", 100), Perturbation("kick", 50), Perturbation("turn", 60),
          Perturbation("freeze", 8), Perturbation("delay", 4))  # fmt: skip
CALM, ALL = "undisturbed", "all"
EARLY = 9  # chunks of an episode that are looked at: the last event has happened by then
SAMPLES = 16  # candidates for the signals
ENERGY = ("energy", "gradient norm", "energy drop", "surprise")
SIMPLE = ("distance to the plan", "spread of samples", "distance to demonstrations")
console = Console()

Signals = dict[str, np.ndarray]  # each (episodes, EARLY); NaN where there is no such chunk


class SignalRecord(NamedTuple):
    """What one training run saw in one condition, and (episodes,) which of its episodes failed."""

    signals: Signals
    failed: np.ndarray


class Recorder:
    """A policy that keeps what it saw and planned, by episode."""

    def __init__(self, policy: EnergyPolicy) -> None:
        self.policy = policy
        self.seen: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def predict_chunk(self, obs: dict[str, Tensor], *, generator: Any = None) -> Any:
        chunk = self.policy.predict_chunk(obs, generator=generator)
        for one, window, actions in zip(generator, obs["obs"], chunk.actions, strict=True):
            self.seen.setdefault(one.initial_seed(), []).append((window.clone(), actions.clone()))
        return chunk

    def episode(self, seed: int) -> tuple[Tensor, Tensor]:
        """Observations (chunks, To, Do) and plans (chunks, T, A), both in env units."""
        windows, plans = zip(*self.seen[noise_seed(seed)][:EARLY], strict=True)
        return torch.stack(windows), torch.stack(plans)


class Demonstrations:
    """The observations that a policy was trained on, to measure distances from."""

    def __init__(self, policy: EnergyPolicy) -> None:
        task = PolicyTaskConfig.of(policy.config)
        training, _ = task.split(task.demonstrations()[0], policy.config["seed"])
        windows = task.windows(training)
        seen = windows.gather(torch.arange(len(windows)))["obs"]
        self._seen = policy.normalizer.normalize("obs", seen).flatten(1)

    def distance(self, obs: Tensor) -> Tensor:
        """From normalised observations (B, To, Do) to the nearest, (B,)."""
        return torch.cdist(obs.flatten(1), self._seen).amin(1)


def signals(
    policy: EnergyPolicy, known: Demonstrations, obs: Tensor, before: Tensor
) -> dict[str, Tensor]:
    """Signals (B,) for observations (B, To, Do), env units; high should be bad.

    Args:
        before: (B, T, A) the plan of the chunk before, of which Ta actions were executed since.
    """
    ahead = policy.shape.horizon - policy.shape.n_action_steps
    with torch.no_grad():
        normalised = policy.normalizer.normalize("obs", obs)
        found = policy.descend(normalised, generator=torch.Generator().manual_seed(0))
    chosen, ends = policy.unnormalize_actions(obs, found.candidate[:, 0]), found.path[-1]
    kept = torch.cat([before[:, -ahead:], chosen[:, ahead:]], dim=1)
    # Energies of one observation compare: what is left of the old plan against the new one.
    energies = policy.energies({"obs": obs}, torch.stack([kept, chosen], dim=1))
    return {
        "energy": found.energies[-1, :, 0],
        "gradient norm": found.grad_norms[-1, :, 0],
        "energy drop": -found.drop[:, 0],
        "surprise": energies[:, 0] - energies[:, 1],
        "distance to the plan": (kept - chosen)[:, :ahead].square().mean(dim=(1, 2)).sqrt(),
        "spread of samples": ends.var(dim=1).mean(dim=(1, 2)).sqrt(),
        "distance to demonstrations": known.distance(normalised),
    }


def watch(
    policy: EnergyPolicy, known: Demonstrations, pool: RolloutPool, seeds: range
) -> SignalRecord:
    """Play and compute the signals of the first chunks; the first of all has no plan before it."""
    recorder = Recorder(policy)
    results = pool.rollout(recorder, seeds)
    table = {name: np.full((len(seeds), EARLY), np.nan) for name in ENERGY + SIMPLE}
    for i, seed in enumerate(seeds):
        obs, plans = recorder.episode(seed)
        if len(obs) > 1:
            for name, values in signals(policy, known, obs[1:], plans[:-1]).items():
                table[name][i, 1 : len(obs)] = values.numpy()
    return SignalRecord(table, np.array([not result.success for result in results]))


def chunk_after_event(seed: int, n_action_steps: int) -> int:
    """The first chunk whose observation shows what happened."""
    _, step = sample_event(seed)
    return step // n_action_steps + 1


def unexpected(calm: Signals, wrong: Signals, chunks: np.ndarray) -> dict[str, Samples]:
    """The chunk after the event, and the same one where nothing happened."""
    rows = np.arange(len(chunks))
    found = {}
    for name in calm:
        values = np.concatenate([calm[name][rows, chunks], wrong[name][rows, chunks]])
        there = np.isfinite(values)
        happened = np.repeat([False, True], len(rows))
        found[name] = Samples(values[there], happened[there], np.tile(rows, 2)[there])
    return found


def play(checkpoint: str, protocol: EvalConfig) -> tuple[dict[str, list[SignalRecord]], np.ndarray]:
    """Every condition with every training run; and of each episode the chunk after its event."""
    (one,) = load_policy_entries([f"{checkpoint}@candidates={SAMPLES}"], torch.device("cpu"))
    spec = one.env_spec
    policies = [policy for policy in one.models if isinstance(policy, EnergyPolicy)]
    known = [Demonstrations(policy) for policy in policies]
    played: dict[str, list[SignalRecord]] = {}
    with progress_bar() as bar:
        task = bar.add_task("signals", total=len(policies) * (1 + len(EVENTS)))
        for what in (None, *EVENTS):
            with RolloutPool(replace(spec, perturbation=what), protocol.processes) as pool:
                for policy, demonstrations in zip(policies, known, strict=True):
                    watched = watch(policy, demonstrations, pool, protocol.seeds)
                    played.setdefault(str(what or CALM), []).append(watched)
                    bar.advance(task)
    return played, np.array([chunk_after_event(s, spec.n_action_steps) for s in protocol.seeds])


def judge(played: Mapping[str, Sequence[SignalRecord]], chunks: np.ndarray) -> dict[str, Any]:
    """Areas under the ROC curve for failures and unexpected observations, and reliability.

    Args:
        played: condition -> what each training run saw, `CALM` among them.
        chunks: (episodes,) where an event shows first.
    """
    wrong = {
        what: [
            unexpected(c.signals, w.signals, chunks)
            for c, w in zip(played[CALM], runs, strict=True)
        ]
        for what, runs in played.items()
        if what != CALM
    }
    names = ENERGY + SIMPLE
    pooled = {
        n: [_together([one[n] for one in run]) for run in zip(*wrong.values(), strict=True)]
        for n in names
    }
    calm = {n: [_failures([run], n) for run in played[CALM]] for n in names}
    failures = {n: [_failures(run, n) for run in zip(*played.values(), strict=True)] for n in names}

    def areas(samples: Mapping[str, list[Samples]]) -> dict[str, Any]:
        return {name: auroc(runs) for name, runs in samples.items()}

    by_event = {what: {n: [run[n] for run in runs] for n in names} for what, runs in wrong.items()}
    return {
        "runs": len(played[CALM]),
        "unexpected": {
            **{what: areas(samples) for what, samples in by_event.items()},
            ALL: areas(pooled),
        },
        "failure": {CALM: areas(calm), ALL: areas(failures)},
        "failed": float(np.mean([run.failed for runs in played.values() for run in runs])),
        "reliability": {
            "unexpected": {n: _reliability(runs) for n, runs in pooled.items()},
            "failure": {n: _reliability(runs) for n, runs in failures.items()},
        },
    }


def _together(parts: Sequence[Samples]) -> Samples:
    return Samples(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _failures(conditions: Sequence[SignalRecord], name: str) -> Samples:
    """The mean of a signal over the first chunks of an episode, and whether the episode failed."""
    found = []
    for one in conditions:
        means = np.nanmean(one.signals[name], axis=1)
        there = np.isfinite(means)
        found.append(Samples(means[there], one.failed[there], np.flatnonzero(there)))
    return _together(found)


def _reliability(runs: list[Samples]) -> dict[str, Any]:
    """Calibrated on episodes of even numbers, tried on odd ones, each run by itself."""
    predicted, happened = [], []
    for run in runs:
        learn = run.episode % 2 == 0
        calibrated = Calibration(run.signal[learn], run.happened[learn])
        predicted.append(calibrated(run.signal[~learn]))
        happened.append(run.happened[~learn])
    return reliability(np.concatenate(predicted), np.concatenate(happened).astype(float))


def cost(checkpoint: str) -> list[float]:
    """Median milliseconds of a chunk at batch size 1 for each of `CANDIDATES`, timed in turns."""
    jobs = {}
    for m in CANDIDATES:
        (one,) = load_policy_entries([f"{checkpoint}@steps=2,candidates={m}"], torch.device("cpu"))
        obs = {"obs": torch.full((1, one.model.shape.n_obs_steps, one.model.shape.obs_dim), 256.0)}
        jobs[str(m)] = lambda policy=one.model, obs=obs: policy.predict_chunk(obs)
    return [float(np.median(times)) for times in in_turns(jobs, 100, torch.device("cpu")).values()]


def main() -> None:
    given = settings(runs="runs/compare/ebt_12500-seed*", episodes=100, folder="runs/energy")
    protocol = EvalConfig(given.episodes, EVALUATION_SEED, videos=0, workers=20)
    entries = [f"{given.runs}@steps=2,candidates={m}" for m in CANDIDATES]
    entries += [f"{given.runs}@{how}" for how in LANDING]
    table = evaluate_policies(
        entries,
        protocol,
        output=Path(given.folder),
        device=torch.device("cpu"),
        command=command("energy"),
    )
    kept = ("name", "score", "success", "steps_used")
    landing = table["entries"][len(CANDIDATES) :]
    names = [entry["name"] for entry in landing]
    compared = set(zip(names[::2], names[1::2], strict=True))  # without landing early, and with
    result = {
        "command": command("energy"),
        "episodes": given.episodes,
        "candidates": [
            {"candidates": m, "chunk_ms": ms, **{k: entry[k] for k in kept}}
            for m, ms, entry in zip(CANDIDATES, cost(given.runs), table["entries"], strict=False)
        ],
        "landing": [{k: entry[k] for k in kept} for entry in landing],
        "landing_paired": [p for p in table["paired"] if (p["a"], p["b"]) in compared],
        **judge(*play(given.runs, protocol)),
    }
    store("energy.json", json.dumps(result, indent=2) + "\n")
    console.print("written to docs/results/energy.json; make results draws it")


if __name__ == "__main__":
    main()
