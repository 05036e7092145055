"""Recovery: every policy meets the same perturbations, each at several strengths.

``python -m ebt_policy.eval perturb=all checkpoint=...`` leaves in its output folder

    recovery.jsonl   one line a training run and condition, as soon as it was played
    recovery.json    {"entries": [...], "paired": [...], ...}: means with intervals
    recovery.md      the same, to read
    recovery.svg     success over strength, a panel a perturbation

A condition is a perturbation, or None for the undisturbed episode, strength zero of every curve.
Conditions that ``recovery.jsonl`` has are not played again; delete it after training a run anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown

from ebt_policy.evaluation.contestants import Contestant, load_contestants
from ebt_policy.evaluation.protocol import Protocol, progress_bar, video_folder
from ebt_policy.evaluation.stats import mean_ci, paired_difference
from ebt_policy.evaluation.study_figures import recovery_curves, save_figure
from ebt_policy.evaluation.summary import METRICS, format_interval, markdown, write_atomic
from ebt_policy.options import ConfigError
from envs.perturb import Kind, Perturbation, kinds
from envs.rollout import RolloutPools
from envs.spec import EnvSpec

console = Console()
Condition = Perturbation | None
Played = dict[str, np.ndarray]  # metric -> (training runs, episodes)
OVERALL = "all"  # the mean over all conditions with a perturbation


def evaluate_recovery(
    checkpoints: list[str],
    protocol: Protocol,
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
    specs = [one.env_spec for one in contestants]
    # How far a policy sees and acts is its own; the world and its time limit are not.
    worlds = [replace(spec, n_obs_steps=1, n_action_steps=1) for spec in specs]
    if any(world != worlds[0] for world in worlds):
        raise ConfigError("perturb= compares policies of one task, with equal time limits.")
    known = known_perturbations(specs[0])
    conditions = parse_perturbations(perturbations, known)
    played = play_conditions(contestants, conditions, protocol, output)
    result = summarise(played, known, command)
    write_recovery(output, result)
    console.print(Markdown(table(result)))
    console.print(f"curves: {output / 'recovery.svg'}", markup=False, soft_wrap=True)
    return result


def parse_perturbations(given: str | Sequence[str], known: Mapping[str, Kind]) -> list[Condition]:
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


def known_perturbations(spec: EnvSpec) -> dict[str, Kind]:
    """What the environment of `spec` can be perturbed by."""
    env = spec.make()
    try:
        return kinds(env)
    finally:
        env.close()


def play_conditions(
    contestants: Sequence[Contestant],
    conditions: Sequence[Condition],
    protocol: Protocol,
    output: Path,
) -> dict[str, dict[Condition, Played]]:
    """Play what ``recovery.jsonl`` does not have yet; name -> condition -> what was played.

    Raises:
        ConfigError: no episodes are to be played.
    """
    seeds = protocol.seeds
    output.mkdir(parents=True, exist_ok=True)
    log = output / "recovery.jsonl"
    done = _read(log, seeds)

    def key(condition: Condition, one: Contestant, run: Path) -> str:
        return f"{one.name} | {run.name} | {condition or 'undisturbed'}"

    runs = [
        (condition, one, run, policy)
        for condition in conditions
        for one in contestants
        for run, policy in zip(one.runs, one.policies, strict=True)
    ]
    todo = [some for some in runs if key(*some[:3]) not in done]
    with progress_bar() as bar, RolloutPools(protocol.processes) as pools:
        task = bar.add_task("conditions", total=len(runs), completed=len(runs) - len(todo))
        for condition, one, run, policy in todo:
            name = f"{one.name} {condition or 'undisturbed'}"
            bar.update(task, description=name)
            results = pools.of(replace(one.env_spec, perturbation=condition)).rollout(
                policy,
                seeds,
                videos=protocol.videos if run == one.runs[0] else 0,
                video_dir=video_folder(output, name),
            )
            line = {
                "key": key(condition, one, run),
                "seeds": [seeds.start, seeds.stop],
                **{m: [float(getattr(r, m)) for r in results] for m in METRICS},
            }
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            done[line["key"]] = line
            bar.advance(task)
    return {
        one.name: {
            condition: {
                m: np.array([done[key(condition, one, run)][m] for run in one.runs])
                for m in METRICS
            }
            for condition in conditions
        }
        for one in contestants
    }


def _read(log: Path, seeds: range) -> dict[str, dict[str, Any]]:
    """What was played before, by key; half a line that a kill left is taken out of the log."""
    text = log.read_text("utf-8") if log.is_file() else ""
    lines, whole = [], ""
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
        whole += line + "\n"
    if whole != text:
        write_atomic(log, whole)
    return {line["key"]: line for line in lines if line["seeds"] == [seeds.start, seeds.stop]}


def summarise(
    played: Mapping[str, Mapping[Condition, Played]], known: Mapping[str, Kind], command: str
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
            entries.append({"name": name, **where, **{m: mean_ci(values[m]) for m in METRICS}})
            if name != first:
                reference = references[kind, strength]
                paired += [
                    {
                        "a": first, "b": name, **where, "metric": m,
                        **paired_difference(reference[m], values[m]),
                    }
                    for m in METRICS
                ]  # fmt: skip
    some = next(iter(played[first].values()))["score"]
    return {
        "command": command,
        "runs": int(some.shape[0]),
        "episodes": int(some.shape[1]),
        "entries": entries,
        "paired": paired,
    }


def _cells(by_condition: Mapping[Condition, Played]) -> list[tuple[tuple[str, float], Played]]:
    """Conditions as (kind, strength), and the mean over all that disturb."""
    cells = [
        ((c.kind, c.strength) if c else ("undisturbed", 0.0), values)
        for c, values in by_condition.items()
    ]
    disturbed = [values for c, values in by_condition.items() if c is not None]
    if disturbed:
        mean = {m: np.mean([values[m] for values in disturbed], axis=0) for m in METRICS}
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
    text = "\n".join([table(result, "success"), table(result, "score"), note])
    write_atomic(output / "recovery.md", text)
    save_figure(recovery_curves(result), output / "recovery.svg")
    write_atomic(output / "recovery.json", json.dumps(result, indent=2) + "\n")
