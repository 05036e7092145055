"""Tables of policies: scores, latencies, perturbations and suites of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.tables.cells import Result, difference, interval, label_of
from benchmarks.tables.entry_labels import entry_label
from ebt_policy.evaluation.tables import markdown
from ebt_policy.policies.metrics import METRICS
from ebt_policy.policies.robustness import OVERALL

HEADLINE = (  # stored result, name of its entry, name of the chunk in speed.json
    ("push_t_selection", "ebt_12500 (steps 2, candidates 8)", "energy, 2 steps, best of 8"),
    (
        "push_t_selection", "flow_matching (steps 2, candidates 8, select line_integral)",
        "flow matching, 2 steps, line integral of 8",
    ),
    (
        "push_t_selection", "flow_matching (steps 2, candidates 8, select density)",
        "flow matching, 2 steps, densest of 8",
    ),
    ("push_t_selection", "ebt_12500 (steps 2, candidates 1)", "energy, 2 steps"),
    ("push_t_selection", "flow_matching (steps 2, candidates 1)", "flow matching, 2 steps"),
    (
        "push_t_selection", "diffusion (ddim, steps 4, candidates 8, select density)",
        "DDIM-4, densest of 8",
    ),
    ("push_t_selection", "diffusion (ddim, steps 4, candidates 1)", "DDIM-4"),
    ("push_t", "diffusion (ddpm, steps 100)", "DDPM-100"),
)  # fmt: skip
FEW_DATA = {20: "about 10 demonstrations", 4: "about 51 demonstrations"}
SUITES = {
    "metaworld_10": "ten tasks of Meta-World",
    "mujoco": "Lift, Can, Square, Adroit's door",
    "cameras": "Push-T, Lift, a drawer, from cameras",
}
SUITE_COLUMNS = (  # entries of a suite in the README
    "ebt (steps 2, candidates 8)", "flow_matching (steps 2)", "diffusion (ddim, steps 10)",
    "diffusion (ddpm, steps 100)",
)  # fmt: skip


def headline(load: Callable[[str], Result]) -> str:
    """Return a table of quality and latency at equal updates.

    Args:
        load: returns a stored result by name.
    """
    times = load("speed")["inference"]["compiled"]
    rows = []
    for result, name, chunk in HEADLINE:
        other = "" if result == HEADLINE[0][0] else " (other initial states)"
        entry = entry_by_name(load(result))[canonical_name(name)]
        rows.append(
            (
                f"{entry_label(name)}{other}",
                *(interval(entry[metric]) for metric in METRICS),
                f"{times[chunk]['p50']:.1f} ms",
                f"{times[chunk]['ddpm_100_takes']:.0f}x",
            )
        )
    header = ("policy", *METRICS, "latency per chunk", "speed-up over DDPM-100")
    return markdown(header, rows, left=1)


def scores(result: Result, minutes: bool = True) -> str:
    """Return a table of the score and success of every entry of an evaluation."""
    rows = [
        (
            entry_label(entry["name"]),
            *(interval(entry[metric]) for metric in METRICS),
            f"{entry['train_steps']:,}",
            *([f"{entry['train_seconds'] / 60:.0f}"] if minutes else []),
        )
        for entry in result["entries"]
    ]
    header = ("policy", *METRICS, "updates", *(["minutes"] if minutes else []))
    return markdown(header, rows, left=1)


def speed(result: Result) -> str:
    """Return tables of the latency of a chunk and of the duration of an update."""
    modes = [result["inference"][mode] for mode in ("eager", "compiled")]
    rows = []
    for name in modes[0]:
        cells = [label_of(name)]
        for latency in (mode[name] for mode in modes):
            cells += [
                f"{latency['p50']:.1f} / {latency['p99']:.1f}", f"{latency['ddpm_100_takes']:.1f}x",
            ]  # fmt: skip
        rows.append(cells)
    header = (
        "chunk at batch 1", "eager p50 / p99 ms", "speed-up over DDPM-100", "compiled p50 / p99 ms",
        "speed-up over DDPM-100",
    )  # fmt: skip
    ratios = [(name, f"{value:.2f}x") for name, value in result["training"]["ratio"].items()]
    latencies = markdown(header, rows, left=1)
    return f"{latencies}\n{markdown(('training update', 'time ratio of medians'), ratios, left=1)}"


def cost_speed(result: Result) -> str:
    """Return a table of the latency of a chunk without and with two costs."""
    names = [name.removesuffix(" | plain") for name in result["ms"]["eager"] if "plain" in name]
    rows = []
    for name in names:
        cells = [name]
        for times in result["ms"].values():
            plain, costs = (times[f"{name} | {kind}"] for kind in ("plain", "costs"))
            cells += [f"{plain:.1f}", f"{costs:.1f}", f"{costs / plain:.2f}x"]
        rows.append(cells)
    header = ["chunk at batch 1"]
    for mode in result["ms"]:
        header += [f"{mode}, ms", f"{mode} with two costs, ms", "ratio"]
    return markdown(header, rows, left=1)


def export_speed(result: Result) -> str:
    """Return a table of the latency of a chunk in Python and exported."""
    ways = ("eager", "compiled", "ONNX Runtime", "AOTInductor")
    names = dict.fromkeys(name.partition(" | ")[0] for name in result["ms"])
    rows = []
    for name in names:
        times = [result["ms"][f"{name} | {way}"] for way in ways]
        rows.append((name, *(f"{time:.1f}" for time in times), f"{times[3] / times[1]:.2f}x"))
    header = ("chunk at batch 1", *(f"{way}, ms" for way in ways), "AOTInductor / compiled")
    return markdown(header, rows, left=1)


def compared(
    result: Result,
    updates: bool = False,
    runs: Mapping[str, str] | None = None,
    metrics: Sequence[str] = METRICS,
) -> str:
    """Return a table of scores, with the first entry minus each other entry.

    Args:
        result: the stored result.
        updates: whether there is a column of the number of updates.
        runs: labels of runs that differ from `RUNS`.
        metrics: the shown metrics.
    """
    first = result["entries"][0]["name"]
    differences = {
        (pair["b"], pair["metric"]): difference(pair)
        for pair in result["paired"]
        if pair["a"] == first
    }
    times = result.get("judging_ms", {})
    rows = [
        (
            entry_label(entry["name"], runs),
            *([f"{entry['train_steps']:,}"] if updates else []),
            *(interval(entry[metric]) for metric in metrics),
            *(differences.get((entry["name"], metric), "") for metric in metrics),
            *([f"{times[entry['name']]:.1f} ms"] if times else []),
        )
        for entry in result["entries"]
    ]
    header = (
        "policy", *(["updates"] if updates else []), *metrics,
        *(f"first policy minus this one, {m}" for m in metrics),
        *(["time to select"] if times else []),
    )  # fmt: skip
    return markdown(header, rows, left=1)


def few_data(result: Result) -> str:
    """Return a table of scores for each number of demonstrations, as `compared` does."""
    tables = []
    for step, title in FEW_DATA.items():
        entries = [e for e in result["entries"] if e["name"].split(" ")[0].endswith(f"_{step}")]
        names = {entry["name"] for entry in entries}
        paired = [pair for pair in result["paired"] if {pair["a"], pair["b"]} <= names]
        table = compared({"entries": entries, "paired": paired})
        tables.append(table.replace("| policy", f"| {title}", 1))
    return "\n".join(tables)


def energy(result: Result) -> str:
    """Return a table of the areas under the ROC curve of each signal."""
    columns = {**result["unexpected"], **{f"failure, {k}": v for k, v in result["failure"].items()}}
    rows = [
        (label_of(name), *(f"{column[name]['mean']:.2f}" for column in columns.values()))
        for name in next(iter(columns.values()))
    ]
    return markdown(("area under the ROC curve", *columns), rows, left=1)


def recovery(result: Result, metric: str = "success") -> str:
    """Return a table of a metric after each kind of perturbation, and over all perturbations.

    Values of a kind are means over its strengths. The last column is the difference over all
    perturbations, the first policy minus the policy of the row.
    """
    values: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in result["entries"]:
        values.setdefault(entry["name"], {}).setdefault(entry["kind"], []).append(entry[metric])
    differences = {
        pair["b"]: difference(pair)
        for pair in result["paired"]
        if (pair["kind"], pair["metric"]) == (OVERALL, metric)
    }
    kinds = [kind for kind in next(iter(values.values())) if kind != OVERALL]
    rows = [
        (
            entry_label(name),
            *(f"{np.mean([value['mean'] for value in by_kind[kind]]):.2f}" for kind in kinds),
            interval(by_kind[OVERALL][0]),
            differences.get(name, ""),
        )
        for name, by_kind in values.items()
    ]
    kind_names = (kind.replace("_", " ") for kind in kinds)
    header = (metric, *kind_names, "all perturbations", "first policy minus this one")
    return markdown(header, rows, left=1)


def recovery_and_retries(result: Result) -> str:
    """Return tables of success after a perturbation, and of how often robots re-grasped."""
    return "\n".join(recovery(result, metric) for metric in ("success", "retries"))


def suite(result: Result) -> str:
    """Return a table of the success of every policy on each task of a suite and over all tasks.

    Scores have a row of their own if they differ from success. The last rows are differences, the
    first policy minus the policy of the column.
    """
    entries = result["entries"]
    differences = {(pair["b"], pair["metric"]): difference(pair) for pair in result["paired"]}
    rows = []
    for task in entries[0]["tasks"]:
        values = [entry["tasks"][task] for entry in entries]
        name = task.removeprefix("metaworld-")
        rows.append((name, *(interval(value["success"]) for value in values)))
        if any(value["score"] != value["success"] for value in values):
            rows.append((f"{name}, score", *(interval(value["score"]) for value in values)))
    rows.append(("mean", *(interval(entry["mean"]) for entry in entries)))
    rows.append(("interquartile mean", *(interval(entry["iqm"]) for entry in entries)))
    for metric, title in (("mean", "mean"), ("iqm", "interquartile mean")):
        cells = (differences.get((entry["name"], metric), "") for entry in entries)
        rows.append((f"{title} of the first policy minus this one", *cells))
    return markdown(("success", *(entry_label(entry["name"]) for entry in entries)), rows, left=1)


def suites(results: Mapping[str, Result]) -> str:
    """Return a table of the mean success over the tasks of each suite.

    Args:
        results: title of a suite -> its stored result.
    """
    rows = []
    for title, result in results.items():
        entries = entry_by_name(result)
        names = map(canonical_name, SUITE_COLUMNS)
        rows.append((title, *(interval(entries[name]["mean"]) for name in names)))
    return markdown(("suite", *map(entry_label, SUITE_COLUMNS)), rows, left=1)


def rollouts(result: Result) -> str:
    """Return a table of episodes per second for each method to evaluate a policy."""
    rows = [
        (name, f"{row['episodes_per_second']:.1f}", f"{row['times_plain']:.2f}x")
        for name, row in result["ways"].items()
    ]
    header = ("evaluation", "episodes per second", "speed-up over one environment")
    return markdown(header, rows, left=1)


def entry_by_name(result: Result) -> dict[str, Any]:
    """Return the entries of a result by their `canonical_name`."""
    return {canonical_name(entry["name"]): entry for entry in result["entries"]}


def canonical_name(name: str) -> str:
    """Return the name of an entry, for names that contain old or new option names."""
    return name.replace("num_candidates", "candidates")
