"""Robustness evaluation: all policies under the same perturbations, each at several strengths.

``python -m ebt_policy.eval perturb=all checkpoint=...`` writes into its output folder

    recovery.jsonl   one line for each training run and condition, written once it is played
    recovery.json    {"entries": [...], "paired": [...], ...}: means with intervals
    recovery.md      the same as Markdown tables
    recovery.svg     success over strength, one panel for each perturbation

If the robot grasps objects, ``retries`` counts its grasps after the perturbation.

A condition is a perturbation, or None for undisturbed episodes, which are strength 0 of each curve.
Episodes in ``recovery.jsonl`` are not played again (see `cached_rollouts`).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import Perturbation, PerturbationKind, perturbation_kinds
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.statistics import mean_ci, paired_difference, success_rate
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.evaluation.terminal import print_markdown
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.policies.cached_rollouts import RolloutJob, play_jobs, rollout_jobs
from ebt_policy.policies.entries import PolicyEntry, check_envs, load_policy_entries, share_env
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.figures import robustness_curves
from ebt_policy.policies.metrics import METRICS

console = Console()
Condition = Perturbation | None
Outcomes = dict[str, np.ndarray]  # metric -> (training runs, episodes)
CACHE = "recovery.jsonl"
UNDISTURBED = "undisturbed"
OVERALL = "all"  # the mean over all conditions with a perturbation


def evaluate_robustness(
    checkpoints: list[str],
    config: EvalConfig,
    perturbations: str | Sequence[str],
    *,
    output: Path,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Evaluate every policy under the same perturbations, and write the results.

    Args:
        checkpoints, config, output, device, command: as in `evaluate_policies`.
        perturbations: see `parse_perturbations`.

    Returns:
        The content of ``recovery.json``.

    Raises:
        CheckpointError, ConfigError: before any episode is played.
    """
    entries = load_policy_entries(checkpoints, device, allow_pickle=config.allow_pickle)
    if not share_env(entries):
        raise ConfigError("perturb= needs policies of one task with equal time limits.")
    check_envs(entries, videos=config.videos > 0)
    kinds = known_perturbations(entries[0].env_spec)
    conditions = parse_perturbations(perturbations, kinds)
    grasps = any(kind.held for kind in kinds.values())
    metrics = (*METRICS, "retries") if grasps else METRICS
    outcomes = play_conditions(entries, conditions, config, output, metrics)
    runs = {entry.name: tuple(entry.runs) for entry in entries}
    result = summarize(outcomes, kinds, command, runs)
    write_recovery(output, result)
    print_markdown(table(result), console)
    console.print(f"curves: {output / 'recovery.svg'}", markup=False, soft_wrap=True)
    return result


def parse_perturbations(
    specs: str | Sequence[str], kinds: Mapping[str, PerturbationKind]
) -> list[Condition]:
    """Parse the values of ``perturb=`` into conditions; the undisturbed one comes first.

    Args:
        specs: ``all``, kinds, or kinds with a strength (``kick=50``).
        kinds: the perturbations of the environment.

    Raises:
        ConfigError: a kind is unknown, or a strength is not a number.
    """
    specs = [specs] if isinstance(specs, str) else [str(spec) for spec in specs]
    conditions: list[Condition] = [None]
    for spec in list(kinds) if specs == ["all"] else specs:
        kind, equals, strength = spec.partition("=")
        if kind not in kinds:
            raise ConfigError(
                f"perturb={spec} is unknown; there are {', '.join(kinds) or 'none'}, or all."
            )
        try:
            strengths = [float(strength)] if equals else kinds[kind].strengths
            conditions += [Perturbation(kind, value) for value in strengths]
        except ValueError as error:
            raise ConfigError(
                f"perturb={spec} needs a strength that is a number: {error}"
            ) from None
    return list(dict.fromkeys(conditions))


def known_perturbations(spec: EnvSpec) -> dict[str, PerturbationKind]:
    """Return the kinds of perturbations of the environment, by name."""
    env = spec.make()
    try:
        return perturbation_kinds(env)
    finally:
        env.close()


def play_conditions(
    entries: Sequence[PolicyEntry],
    conditions: Sequence[Condition],
    config: EvalConfig,
    output: Path,
    metrics: Sequence[str] = METRICS,
) -> dict[str, dict[Condition, Outcomes]]:
    """Play the conditions that are not in the cache; return name -> condition -> outcomes.

    Raises:
        ConfigError: ``config`` has no episodes, or its seeds are too large.
    """
    jobs = {
        (entry.name, condition): rollout_jobs(
            entry, str(condition or UNDISTURBED), replace(entry.env_spec, perturbation=condition)
        )
        for condition in conditions
        for entry in entries
    }
    episodes = play_jobs(list(chain(*jobs.values())), config, output, CACHE, metrics)

    def outcomes(runs: Sequence[RolloutJob]) -> Outcomes:
        return {
            m: np.array([[float(row[m]) for row in episodes[job.key]] for job in runs])
            for m in metrics
        }

    return {
        entry.name: {condition: outcomes(jobs[entry.name, condition]) for condition in conditions}
        for entry in entries
    }


def summarize(
    outcomes: Mapping[str, Mapping[Condition, Outcomes]],
    kinds: Mapping[str, PerturbationKind],
    command: str,
    runs: Mapping[str, Hashable] | None = None,
) -> dict[str, Any]:
    """Return means with intervals for every policy and condition, and over all conditions.

    ``paired`` has the differences of the first policy minus each other policy, over equal seeds.

    Args:
        outcomes: name of a policy -> condition -> outcomes.
        kinds: the kinds of perturbations, by name.
        command: the command as the user typed it.
        runs: name of a policy -> identity of its training runs; None if all differ.
    """
    entries, paired = [], []
    first = next(iter(outcomes))
    references = dict(_cells(outcomes[first]))
    for name, by_condition in outcomes.items():
        cells = dict(_cells(by_condition))
        for (kind, strength), values in cells.items():
            condition = {
                "kind": kind,
                "strength": strength,
                "unit": kinds[kind].unit if kind in kinds else None,
            }
            means = {m: mean_ci(values[m]) for m in values}
            # Wilson needs 0 or 1, but the mean success over several conditions can be 1/3.
            if np.isin(values["success"], (0, 1)).all():
                means["success"] = success_rate(values["success"])
            entries.append({"name": name, **condition, **means})
            if name != first:
                same_runs = runs is not None and runs[first] == runs[name]
                reference = references[kind, strength]
                paired += [
                    {
                        "a": first, "b": name, **condition, "metric": m,
                        **paired_difference(reference[m], values[m], same_runs=same_runs),
                    }
                    for m in values
                ]  # fmt: skip
    scores = next(iter(outcomes[first].values()))["score"]
    return {
        "command": command,
        "runs": int(scores.shape[0]),
        "episodes": int(scores.shape[1]),
        "entries": entries,
        "paired": paired,
    }


def _cells(
    by_condition: Mapping[Condition, Outcomes],
) -> list[tuple[tuple[str, float], Outcomes]]:
    """Return outcomes for each (kind, strength), and their mean over all perturbations."""
    cells = [
        ((c.kind, c.strength) if c else (UNDISTURBED, 0.0), values)
        for c, values in by_condition.items()
    ]
    disturbed = [values for c, values in by_condition.items() if c is not None]
    if disturbed:
        mean = {m: np.mean([values[m] for values in disturbed], axis=0) for m in disturbed[0]}
        cells.append(((OVERALL, 0.0), mean))
    return cells


def table(result: Mapping[str, Any], metric: str = "success") -> str:
    """Return a Markdown table of a metric, with one row a condition and one column a policy."""
    names = list(dict.fromkeys(entry["name"] for entry in result["entries"]))
    cells: dict[tuple[str, float], dict[str, str]] = {}
    units: dict[tuple[str, float], str | None] = {}
    for entry in result["entries"]:
        condition = (entry["kind"], entry["strength"])
        units[condition] = entry["unit"]
        value = entry[metric]
        cells.setdefault(condition, {})[entry["name"]] = format_interval(
            value["mean"], value["ci95"]
        )
    rows = [
        (
            f"{kind.replace('_', ' ')} {strength:g} {units[kind, strength]}"
            if units[kind, strength]
            else {OVERALL: "mean of all disturbed"}.get(kind, kind),
            *(row[name] for name in names),
        )
        for (kind, strength), row in cells.items()
    ]
    return markdown((metric, *names), rows, left=1)


def write_recovery(output: Path, result: Mapping[str, Any]) -> None:
    """Write ``recovery.json``, ``recovery.md`` and ``recovery.svg``."""
    note = (
        f"Mean and 95 % interval over {result['episodes']} episodes and {result['runs']} training "
        "run(s); score and success count from the perturbation onward.\n"
    )
    metrics = [m for m in (*METRICS[::-1], "retries") if m in result["entries"][0]]
    text = "\n".join([*(table(result, metric) for metric in metrics), note])
    atomic_write(output / "recovery.md", text)
    save_figure(robustness_curves(result), output / "recovery.svg")
    atomic_write(output / "recovery.json", json.dumps(result, indent=2) + "\n")
