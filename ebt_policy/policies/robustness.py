"""Recovery: every policy meets the same perturbations, each at several strengths.

``python -m ebt_policy.eval perturb=all checkpoint=...`` leaves in its output folder

    recovery.jsonl   one line a training run and condition, as soon as it was played
    recovery.json    {"entries": [...], "paired": [...], ...}: means with intervals
    recovery.md      the same, to read
    recovery.svg     success over strength, a panel a perturbation

Where the robot grasps, ``retries`` counts how often it grasped anew after the event.

A condition is a perturbation, or None for the undisturbed episode, strength zero of every curve.
What ``recovery.jsonl`` has is not played again (see `evaluation.played`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import Perturbation, PerturbationKind, perturbation_kinds
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.contestants import (
    EvalEntry,
    check_envs,
    load_contestants,
    share_env,
)
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.statistics import mean_ci, paired_difference, success_rate
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.io.output import write_atomic
from ebt_policy.policies.cached_rollouts import RolloutJob, pieces_of, play_pieces
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.figures import recovery_curves
from ebt_policy.policies.metrics import METRICS

console = Console()
Condition = Perturbation | None
EpisodeOutcome = dict[str, np.ndarray]  # metric -> (training runs, episodes)
UNDISTURBED = "undisturbed"
OVERALL = "all"  # the mean over all conditions with a perturbation


def evaluate_recovery(
    checkpoints: list[str],
    protocol: EvalConfig,
    perturbations: str | Sequence[str],
    *,
    output: Path,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Play the same perturbations with every policy; returns what ``recovery.json`` holds.

    Raises:
        CheckpointError, ConfigError: before anything is played.
    """
    contestants = load_contestants(checkpoints, device)
    if not share_env(contestants):
        raise ConfigError("perturb= compares policies of one task, with equal time limits.")
    check_envs(contestants, videos=protocol.videos > 0)
    known = known_perturbations(contestants[0].env_spec)
    conditions = parse_perturbations(perturbations, known)
    grasps = any(kind.held for kind in known.values())
    metrics = (*METRICS, "retries") if grasps else METRICS
    played = play_conditions(contestants, conditions, protocol, output, metrics)
    result = summarise(played, known, command)
    write_recovery(output, result)
    console.print(Markdown(table(result)))
    console.print(f"curves: {output / 'recovery.svg'}", markup=False, soft_wrap=True)
    return result


def parse_perturbations(
    given: str | Sequence[str], known: Mapping[str, PerturbationKind]
) -> list[Condition]:
    """``all``, kinds, or kinds with strengths (``kick=50``) -> conditions, the undisturbed first.

    Raises:
        ConfigError: an unknown kind, or a strength that is not one.
    """
    words = [given] if isinstance(given, str) else [str(word) for word in given]
    conditions: list[Condition] = [None]
    for word in list(known) if words == ["all"] else words:
        kind, equals, strength = word.partition("=")
        if kind not in known:
            raise ConfigError(
                f"perturb={word} is unknown; there are {', '.join(known) or 'none'}, or all."
            )
        try:
            strengths = [float(strength)] if equals else known[kind].strengths
            conditions += [Perturbation(kind, value) for value in strengths]
        except ValueError as error:
            raise ConfigError(
                f"perturb={word} needs a strength that is a number: {error}"
            ) from None
    return list(dict.fromkeys(conditions))


def known_perturbations(spec: EnvSpec) -> dict[str, PerturbationKind]:
    """What the environment of `spec` can be perturbed by."""
    env = spec.make()
    try:
        return perturbation_kinds(env)
    finally:
        env.close()


def play_conditions(
    contestants: Sequence[EvalEntry],
    conditions: Sequence[Condition],
    protocol: EvalConfig,
    output: Path,
    metrics: Sequence[str] = METRICS,
) -> dict[str, dict[Condition, EpisodeOutcome]]:
    """Play what ``recovery.jsonl`` does not have yet; name -> condition -> what was played.

    Raises:
        ConfigError: no episodes are to be played.
    """
    pieces = {
        (one.name, condition): pieces_of(
            one, str(condition or UNDISTURBED), replace(one.env_spec, perturbation=condition)
        )
        for condition in conditions
        for one in contestants
    }
    done = play_pieces(list(chain(*pieces.values())), protocol, output, "recovery.jsonl", metrics)

    def values(runs: Sequence[RolloutJob]) -> EpisodeOutcome:
        return {
            m: np.array([[float(e[m]) for e in done[run.key]] for run in runs]) for m in metrics
        }

    return {
        one.name: {condition: values(pieces[one.name, condition]) for condition in conditions}
        for one in contestants
    }


def summarise(
    played: Mapping[str, Mapping[Condition, EpisodeOutcome]],
    known: Mapping[str, PerturbationKind],
    command: str,
) -> dict[str, Any]:
    """Means with intervals for every policy and condition, and overall; pairs with the first.

    ``paired`` holds first minus other, over equal seeds: the first policy is the one asked about.
    """
    entries, paired = [], []
    first = next(iter(played))
    references = dict(_cells(played[first]))
    for name, by_condition in played.items():
        cells = dict(_cells(by_condition))
        for (kind, strength), values in cells.items():
            where = {
                "kind": kind,
                "strength": strength,
                "unit": known[kind].unit if kind in known else None,
            }
            means = {m: mean_ci(values[m]) for m in values}
            # Over several conditions the success of an episode is a mean, such as 1/3.
            if np.isin(values["success"], (0, 1)).all():
                means["success"] = success_rate(values["success"])
            entries.append({"name": name, **where, **means})
            if name != first:
                reference = references[kind, strength]
                paired += [
                    {
                        "a": first, "b": name, **where, "metric": m,
                        **paired_difference(reference[m], values[m]),
                    }
                    for m in values
                ]  # fmt: skip
    some = next(iter(played[first].values()))["score"]
    return {
        "command": command,
        "runs": int(some.shape[0]),
        "episodes": int(some.shape[1]),
        "entries": entries,
        "paired": paired,
    }


def _cells(
    by_condition: Mapping[Condition, EpisodeOutcome],
) -> list[tuple[tuple[str, float], EpisodeOutcome]]:
    """Conditions as (kind, strength), and the mean over all that disturb."""
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
    """Markdown: a row a condition, a column a policy, mean and interval of a metric."""
    names = list(dict.fromkeys(entry["name"] for entry in result["entries"]))
    cells: dict[tuple[str, float], dict[str, str]] = {}
    units: dict[tuple[str, float], str | None] = {}
    for entry in result["entries"]:
        where = (entry["kind"], entry["strength"])
        units[where] = entry["unit"]
        value = entry[metric]
        cells.setdefault(where, {})[entry["name"]] = format_interval(value["mean"], value["ci95"])
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
        "run(s); scores count from the perturbation on.\n"
    )
    metrics = [m for m in (*METRICS[::-1], "retries") if m in result["entries"][0]]
    text = "\n".join([*(table(result, metric) for metric in metrics), note])
    write_atomic(output / "recovery.md", text)
    save_figure(recovery_curves(result), output / "recovery.svg")
    write_atomic(output / "recovery.json", json.dumps(result, indent=2) + "\n")
