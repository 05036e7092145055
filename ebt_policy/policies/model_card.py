"""The model card of a policy on the Hugging Face Hub: its metadata and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ebt_policy.evaluation.tables import format_count, format_interval, markdown
from ebt_policy.io import hub
from ebt_policy.policies.base import Policy

# Metric of an evaluation -> what it is.
METRICS = {
    "score": "mean score of the episodes",
    "success": "fraction of solved episodes",
    "error": "root mean square error of executed actions on held-out episodes, in standard "
    "deviations",
}
LEROBOT = "lerobot"  # the library in the section "trained" of a policy that LeRobot trained
MAX_RANGES = 8  # most entries whose ranges are listed one by one
LIMITS = """\
The policy imitates its demonstrations. In situations that they do not contain, its actions mean
nothing. The results hold for the task above alone. Nothing in this package replaces the fence and
the emergency stop of a robot: begin with `mode=dry_run`, `mode=shadow` and `speed=0.2`."""


def model_card(
    policy: Policy,
    config: Mapping[str, Any],
    name: str,
    *,
    licence: str,
    summary: Mapping[str, Any] | None = None,
    figure: str | None = None,
    units: str | None = None,
) -> str:
    """Return the content of README.md.

    Args:
        policy: the policy.
        config: its configuration, as its checkpoint has it, without private paths.
        name: ``USER/NAME`` of the repository.
        licence: identifier of the licence on the Hub, such as ``mit``.
        summary: entry of the policy in the summary of an evaluation; None without an evaluation.
        figure: name of an image in the repository; None for no image.
        units: units of observations and actions; None if nothing is known about them.
    """
    task = config["task"]
    title = name.rpartition("/")[2]
    model = config["model"]["name"]
    kind = "An energy-based policy" if model.startswith("ebt") else f"A policy (`model={model}`)"
    parts = [
        f"---\n{_metadata(config, title, licence, summary)}\n---",
        f"# {title}",
        f"{kind} for `task={task['name']}`, {format_count(policy.parameter_count)} parameters, "
        "trained with the Python package `ebt_policy`.",
        *([f"![Training curve]({figure})"] if figure else []),
        _usage(config, name),
        _results(summary),
        _schema(policy, config, units),
        _training(config, summary),
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics_of(summary: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return name -> {"mean", "ci95"} of the metrics of an evaluation."""
    return {name: summary[name] for name in METRICS if summary and summary.get(name)}


def data_sources(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the data sets of a configuration."""
    path = config["task"].get("path")
    return [str(source) for source in (path if isinstance(path, list) else [path]) if source]


def _metadata(
    config: Mapping[str, Any], title: str, licence: str, summary: Mapping[str, Any] | None
) -> str:
    sources = data_sources(config)
    datasets = [hub.parse_source(name).name for name in sources if name.startswith(hub.PREFIX)]
    results = [
        EvalResult(
            task_type="robotics", task_name=config["task"]["name"],
            dataset_type="demonstrations", dataset_name=", ".join(sources) or "demonstrations",
            metric_type=metric,
            metric_value=round(value["mean"], 4),
            metric_name=f"{metric}, 95 % interval {format_interval(value['mean'], value['ci95'])}",
        )
        for metric, value in metrics_of(summary).items()
    ]  # fmt: skip
    data = ModelCardData(
        license=licence, library_name="ebt_policy", pipeline_tag="robotics",
        tags=["robotics", "imitation-learning", config["model"]["name"]],
        datasets=datasets or None, model_name=title, eval_results=results or None,
    )  # fmt: skip
    return data.to_yaml()


def _usage(config: Mapping[str, Any], name: str) -> str:
    text = (
        f"## Use\n\n```python\nfrom ebt_policy.policies import load_policy\n\n"
        f'policy = load_policy("{hub.PREFIX}{name}")\n'
        "action = policy.act(observation)  # the newest observation; call policy.reset() before an "
        "episode\n```"
    )
    can_evaluate = config["task"].get("env") or all(
        source.startswith(hub.PREFIX) for source in data_sources(config)
    )
    return text + (f"\n\n    ebt-eval checkpoint={hub.PREFIX}{name}" if can_evaluate else "")


def _results(summary: Mapping[str, Any] | None) -> str:
    metrics = metrics_of(summary)
    if not metrics or summary is None:
        return "## Results\n\nNo evaluation is stored with the training run."
    rows = [
        (name, METRICS[name], format_interval(value["mean"], value["ci95"]))
        for name, value in metrics.items()
    ]
    return (
        f"## Results\n\n{summary['episodes']} episodes; 95 % intervals in brackets.\n\n"
        + markdown(("metric", "meaning", "value"), rows, left=2).rstrip()
    )


def _schema(policy: Policy, config: Mapping[str, Any], units: str | None) -> str:
    shape, limits = policy.shape, policy.normalizer.to_json()
    origins = shape.relative_to or [None] * shape.action_dim
    rows = [
        ("observation `obs`", f"({shape.n_obs_steps}, {shape.obs_dim})", "float32",
         _ranges(limits["obs"], [None] * shape.obs_dim)),
        *((f"observation `{camera}`", f"({shape.n_obs_steps}, {height}, {width}, 3)",
           "uint8, RGB", "0 to 255") for camera, (height, width) in (shape.cameras or {}).items()),
        ("chunk of actions", f"({shape.horizon}, {shape.action_dim})", "float32",
         _ranges(limits["action"], origins)),
    ]  # fmt: skip
    rate = config["task"].get("fps")
    return (
        "## Observations and actions\n\n"
        + markdown(("value", "shape", "type", "range in the training data"), rows, left=4)
        + f"\nThe first dimension is time; {shape.n_action_steps} actions of a chunk are executed "
        f"before the next one is predicted{f', at {rate:g} Hz' if rate else ''}. "
        f"Units: {units or 'the units of the demonstrations'}."
    )


def _ranges(limits: Mapping[str, Any], origins: Sequence[int | None]) -> str:
    """Return the smallest and largest value of each entry; of all entries if there are many.

    Args:
        limits: name -> one number for each entry, with the names "min" and "max".
        origins: for each entry, the entry of "obs" that its numbers are relative to, or None.
    """
    entries = list(zip(limits["min"], limits["max"], origins, strict=True))
    if len(entries) > MAX_RANGES:
        parts = [[e for e in entries if e[2] is None], [e for e in entries if e[2] is not None]]
        texts = [
            f"{len(part)} entries: {min(e[0] for e in part):.4g} to {max(e[1] for e in part):.4g}"
            for part in parts
            if part
        ]
        return "; ".join(texts[:-1] + [texts[-1] + (", relative to `obs`" if parts[1] else "")])
    return ", ".join(
        f"{'' if origin is None else f'`obs[{origin}]` + '}({low:.4g} to {high:.4g})"
        for low, high, origin in entries
    )


def _training(config: Mapping[str, Any], summary: Mapping[str, Any] | None) -> str:
    trained = config.get("trained") or {}
    sources = ", ".join(data_sources(config))
    if members := config.get("members"):
        names = [
            f"`{m['model']['name']}`" + (f" (seed {m['seed']})" if "seed" in m else "")
            for m in members
        ]
        return f"## Training\n\nComposed by `ebt-compose` of {', '.join(names)}."
    if trained.get("library") == LEROBOT:
        first_data = f" The first training was on {sources}." if sources else ""
        return (
            "## Training\n\nTrained with LeRobot (`lerobot-train --policy.type=ebt`). The last "
            f"training took {trained['steps']:,} updates.{first_data}"
        )
    family, _, scene = str(config["task"]["name"]).partition("-")
    options = [
        *([f"task={family}", f"task.scene={scene}"] if scene else [f"task={family}"]),
        f"model={config['model']['name']}",
        *([f"objective={config['objective']['name']}"] if config.get("objective") else []),
        f"size={config['size']['name']}",
        *([f"seed={config['seed']}"] if "seed" in config else []),
        *([f"train.steps={trained['steps']}"] if "steps" in trained else []),
    ]  # fmt: skip
    facts = [f"- data: {sources}"] if sources else []
    facts += [f"- demonstrations: {config['demos']:,}"] if config.get("demos") else []
    if "seconds" in trained:
        facts.append(f"- time: {trained['seconds'] / 60:.0f} minutes on {trained['device']}")
    if summary is not None and summary.get("version"):
        facts.append(f"- version of ebt_policy: {summary['version']}")
    return (
        "## Training\n\nMain options; `config.yaml` has all.\n\n    ebt-train "
        + " ".join(options) + "\n\n" + "\n".join(facts)
    )  # fmt: skip
