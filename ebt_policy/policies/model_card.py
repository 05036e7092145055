"""The model card of a policy on the Hugging Face Hub: its metadata and its text."""

from __future__ import annotations

from collections.abc import Mapping
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
LIMITS = """\
The policy imitates its demonstrations. In situations that they do not contain, its actions mean
nothing. The results hold for the task above alone. Nothing in this package replaces the fence and
the emergency stop of a robot: begin with `mode=dry_run`, `mode=shadow` and `speed=0.2`."""


def model_card(
    policy: Policy,
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
        name: ``USER/NAME`` of the repository.
        licence: identifier of the licence on the Hub, such as ``mit``.
        summary: entry of the policy in the summary of an evaluation; None without an evaluation.
        figure: name of an image in the repository; None for no image.
        units: units of observations and actions; None if nothing is known about them.
    """
    task = policy.config["task"]
    title = name.rpartition("/")[2]
    model = policy.config["model"]["name"]
    kind = "An energy-based policy" if model == "ebt" else f"A policy (`model={model}`)"
    parts = [
        f"---\n{_metadata(policy, title, licence, summary)}\n---",
        f"# {title}",
        f"{kind} for `task={task['name']}`, {format_count(policy.parameter_count)} parameters, "
        "trained with the Python package `ebt_policy`.",
        *([f"![Training curve]({figure})"] if figure else []),
        _usage(name),
        _results(summary),
        _schema(policy, units),
        _training(policy, summary),
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics_of(summary: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return name -> {"mean", "ci95"} of the metrics of an evaluation."""
    return {name: summary[name] for name in METRICS if summary and summary.get(name)}


def data_source(policy: Policy) -> str:
    """Return the data set of a policy, without folders of the machine that trained it."""
    path = policy.config["task"].get("path")
    sources = path if isinstance(path, list) else [path]
    names = [
        source if str(source).startswith(hub.PREFIX) else str(source).rstrip("/").rpartition("/")[2]
        for source in sources
        if source
    ]
    return ", ".join(names)


def _metadata(policy: Policy, title: str, licence: str, summary: Mapping[str, Any] | None) -> str:
    source = data_source(policy)
    datasets = [
        hub.parse_source(name).name for name in source.split(", ") if name.startswith(hub.PREFIX)
    ]
    results = [
        EvalResult(
            task_type="robotics", task_name=policy.config["task"]["name"],
            dataset_type="demonstrations", dataset_name=source or "demonstrations",
            metric_type=metric,
            metric_value=round(value["mean"], 4),
            metric_name=f"{metric}, 95 % interval {format_interval(value['mean'], value['ci95'])}",
        )
        for metric, value in metrics_of(summary).items()
    ]  # fmt: skip
    data = ModelCardData(
        license=licence, library_name="ebt_policy", pipeline_tag="robotics",
        tags=["robotics", "imitation-learning", policy.config["model"]["name"]],
        datasets=datasets or None, model_name=title, eval_results=results or None,
    )  # fmt: skip
    return data.to_yaml()


def _usage(name: str) -> str:
    return (
        f"## Use\n\n```python\nfrom ebt_policy.policies import load_policy\n\n"
        f'policy = load_policy("{hub.PREFIX}{name}")\n'
        "action = policy.act(observation)  # the newest observation; call policy.reset() before an "
        f"episode\n```\n\n    ebt-eval checkpoint={hub.PREFIX}{name}"
    )


def _results(summary: Mapping[str, Any] | None) -> str:
    metrics = metrics_of(summary)
    if not metrics or summary is None:
        return "## Results\n\nThe policy was not evaluated."
    rows = [
        (name, METRICS[name], format_interval(value["mean"], value["ci95"]))
        for name, value in metrics.items()
    ]
    return (
        f"## Results\n\n{summary['episodes']} episodes; 95 % intervals in brackets.\n\n"
        + markdown(("metric", "meaning", "value"), rows, left=2).rstrip()
    )


def _schema(policy: Policy, units: str | None) -> str:
    shape, limits = policy.shape, policy.normalizer.to_json()
    rows = [
        ("observation `obs`", f"({shape.n_obs_steps}, {shape.obs_dim})", "float32",
         _ranges(limits["obs"])),
        *((f"observation `{camera}`", f"({shape.n_obs_steps}, {height}, {width}, 3)",
           "uint8, RGB", "0 to 255") for camera, (height, width) in (shape.cameras or {}).items()),
        ("chunk of actions", f"({shape.horizon}, {shape.action_dim})", "float32",
         _ranges(limits["action"])),
    ]  # fmt: skip
    rate = policy.config["task"].get("fps")
    return (
        "## Observations and actions\n\n"
        + markdown(("value", "shape", "type", "range in the training data"), rows, left=3)
        + f"\nThe first dimension is time; {shape.n_action_steps} actions of a chunk are executed "
        f"before the next one is predicted{f', at {rate:g} Hz' if rate else ''}. "
        f"Units: {units or 'those of the demonstrations'}."
    )


def _ranges(limits: Mapping[str, Any]) -> str:
    """Return the smallest and largest value of each entry; of all entries if there are many."""
    pairs = list(zip(limits["min"], limits["max"], strict=True))
    if len(pairs) > 8:
        pairs = [(min(limits["min"]), max(limits["max"]))]
    return ", ".join(f"{low:.4g} to {high:.4g}" for low, high in pairs)


def _training(policy: Policy, summary: Mapping[str, Any] | None) -> str:
    config, trained = policy.config, policy.config.get("trained") or {}
    options = [
        f"task={config['task']['name']}", f"model={config['model']['name']}",
        *([f"objective={config['objective']['name']}"] if config.get("objective") else []),
        f"size={config['size']['name']}", f"seed={config['seed']}",
        *([f"train.steps={trained['steps']}"] if "steps" in trained else []),
        *([f"task.path={data_source(policy)}"] if data_source(policy) else []),
    ]  # fmt: skip
    facts = [f"- data: {data_source(policy)}"] if data_source(policy) else []
    facts += [f"- demonstrations: {config['demos']:,}"] if config.get("demos") else []
    if "seconds" in trained:
        facts.append(f"- time: {trained['seconds'] / 60:.0f} minutes on {trained['device']}")
    if summary is not None and summary.get("version"):
        facts.append(f"- version of ebt_policy: {summary['version']}")
    return "## Training\n\n    ebt-train " + " ".join(options) + "\n\n" + "\n".join(facts)
