"""Tables and figures of the documents: ``python -m benchmarks.render_tables``, ``make results``.

Reads ``docs/results/*.json``, rewrites what stands between the markers ``<!-- NAME:begin -->`` and
``<!-- NAME:end -->`` of ``README.md`` and pages of ``docs``, and draws the curves of
``docs/assets``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import (
    compare,
    denoising,
    generation,
    image_speed,
    language,
    masked_text,
    representation,
    scaling,
    video,
)
from benchmarks.gpu.report import cards
from benchmarks.settings import RESULTS
from benchmarks.study_figures import delay_curves, energy_study
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.language.figures import scaling_lines
from ebt_policy.policies.figures import robustness_curves
from ebt_policy.policies.metrics import METRICS
from ebt_policy.policies.robustness import OVERALL
from ebt_policy.scaling import scaling_table


def _interval(value: dict[str, Any]) -> str:
    return format_interval(value["mean"], value["ci95"])


HEADLINE = (  # stored result, its entry, the chunk of speed.json
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
FIRST_SEED = {result: seed for result, _, seed, _ in compare.PARTS.values()}


def headline(stored: Callable[[str], dict[str, Any]]) -> str:
    """Quality and waiting time side by side, at equal updates."""
    times = stored("speed")["inference"]["compiled"]
    rows = []
    for result, name, chunk in HEADLINE:
        (entry,) = (entry for entry in stored(result)["entries"] if entry["name"] == name)
        rows.append(
            (
                chunk,
                *(_interval(entry[metric]) for metric in METRICS),
                f"{times[chunk]['p50']:.1f} ms",
                f"{times[chunk]['ddpm_100_takes']:.0f}x",
                f"{FIRST_SEED[result]:,}",
            )
        )
    header = ("policy", *METRICS, "a chunk, compiled", "DDPM-100 takes", "seeds from")
    return markdown(header, rows, left=1)


def selection(result: dict[str, Any]) -> str:
    """Every rule to choose a candidate, and the first entry minus each other."""
    first = result["entries"][0]["name"]
    ahead = {
        (pair["b"], pair["metric"]): format_interval(pair["diff"], pair["ci95"], signed=True)
        for pair in result["paired"]
        if pair["a"] == first
    }
    rows = [
        (
            entry["name"],
            f"{entry['train_steps']:,}",
            *(_interval(entry[metric]) for metric in METRICS),
            *(ahead.get((entry["name"], metric), "") for metric in METRICS),
        )
        for entry in result["entries"]
    ]
    header = ("policy", "updates", *METRICS, *(f"first minus it, {m}" for m in METRICS))
    return markdown(header, rows, left=1)


def scores(result: dict[str, Any], minutes: bool = True) -> str:
    """Score and success of every entry of an evaluation."""
    rows = [
        (
            entry["name"],
            *(_interval(entry[metric]) for metric in METRICS),
            f"{entry['train_steps']:,}",
            *([f"{entry['train_seconds'] / 60:.0f}"] if minutes else []),
        )
        for entry in result["entries"]
    ]
    header = ("policy", *METRICS, "updates", *(["minutes"] if minutes else []))
    return markdown(header, rows, left=1)


def speed(result: dict[str, Any]) -> str:
    """Latency of a chunk and cost of an update."""
    both = [result["inference"][how] for how in ("eager", "compiled")]
    rows = []
    for name in both[0]:
        cells = [name]
        for one in (latency[name] for latency in both):
            cells += [f"{one['p50']:.1f} / {one['p99']:.1f}", f"{one['ddpm_100_takes']:.1f}x"]
        rows.append(cells)
    header = (
        "chunk at batch 1", "eager p50 / p99 ms", "DDPM-100 takes", "compiled p50 / p99 ms",
        "DDPM-100 takes",
    )  # fmt: skip
    ratios = [(name, f"{value:.2f}x") for name, value in result["training"]["ratio"].items()]
    latency = markdown(header, rows, left=1)
    return f"{latency}\n{markdown(('training update, ratio of medians', ''), ratios, left=1)}"


def energy(result: dict[str, Any]) -> str:
    """Areas under the ROC curve of each signal."""
    told = {**result["unexpected"], **{f"failure, {w}": b for w, b in result["failure"].items()}}
    rows = [
        (name, *(f"{by[name]['mean']:.2f}" for by in told.values()))
        for name in next(iter(told.values()))
    ]
    return markdown(("area under the ROC curve", *told), rows, left=1)


def recovery(result: dict[str, Any], metric: str = "success") -> str:
    """A metric after each kind of perturbation (the mean over its strengths) and over all.

    The last column is the first policy minus each other, over all.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in result["entries"]:
        found.setdefault(entry["name"], {}).setdefault(entry["kind"], []).append(entry[metric])
    ahead = {
        pair["b"]: format_interval(pair["diff"], pair["ci95"], signed=True)
        for pair in result["paired"]
        if (pair["kind"], pair["metric"]) == (OVERALL, metric)
    }
    kinds = [kind for kind in next(iter(found.values())) if kind != OVERALL]
    rows = [
        (
            name,
            *(f"{np.mean([one['mean'] for one in by_kind[kind]]):.2f}" for kind in kinds),
            _interval(by_kind[OVERALL][0]),
            ahead.get(name, ""),
        )
        for name, by_kind in found.items()
    ]
    header = (metric, *(kind.replace("_", " ") for kind in kinds), OVERALL, "first minus it")
    return markdown(header, rows, left=1)


def recovery_and_retries(result: dict[str, Any]) -> str:
    """What robots do after a perturbation: success, and how often they grasped anew."""
    return "\n".join(recovery(result, metric) for metric in ("success", "retries"))


def suite(result: dict[str, Any]) -> str:
    """Success of every policy on each task of a suite and over all of them.

    Scores have a row of their own where they are more than success. The last row is the first
    policy minus each other, over all.
    """
    entries = result["entries"]
    ahead = {
        pair["b"]: format_interval(pair["diff"], pair["ci95"], signed=True)
        for pair in result["paired"]
        if pair["metric"] == "iqm"
    }
    rows = []
    for task in entries[0]["tasks"]:
        on_task = [entry["tasks"][task] for entry in entries]
        name = task.removeprefix("metaworld-")
        rows.append((name, *(_interval(one["success"]) for one in on_task)))
        if any(one["score"] != one["success"] for one in on_task):
            rows.append((f"{name}, score", *(_interval(one["score"]) for one in on_task)))
    rows.append(("mean", *(_interval(entry["mean"]) for entry in entries)))
    rows.append(("interquartile mean", *(_interval(entry["iqm"]) for entry in entries)))
    rows.append(("first minus it", *(ahead.get(entry["name"], "") for entry in entries)))
    return markdown(("success", *(entry["name"] for entry in entries)), rows, left=1)


SUITES = {
    "metaworld_10": "ten tasks of Meta-World",
    "mujoco": "Lift, Can, Square, Adroit's door",
    "cameras": "Push-T, Lift, a drawer, from cameras",
}
COMPARED = {  # entry of a suite -> its column in the README
    "ebt (steps 2, candidates 8)": "energy, 2 steps, best of 8",
    "flow_matching (steps 2)": "flow matching, 2 steps",
    "diffusion (ddim, steps 10)": "DDIM-10",
    "diffusion (ddpm, steps 100)": "DDPM-100",
}


def suites(results: dict[str, dict[str, Any]]) -> str:
    """Mean success over the tasks of each suite: title -> result."""
    rows = []
    for title, result in results.items():
        entries = {entry["name"]: entry for entry in result["entries"]}
        rows.append((title, *(_interval(entries[name]["mean"]) for name in COMPARED)))
    return markdown(("success", *COMPARED.values()), rows, left=1)


def rollouts(result: dict[str, Any]) -> str:
    """Episodes a second of each way to evaluate a policy."""
    rows = [
        (name, f"{way['episodes_per_second']:.1f}", f"{way['times_plain']:.2f}x")
        for name, way in result["ways"].items()
    ]
    return markdown(("evaluation", "episodes a second", "the plain way"), rows, left=1)


def delay(result: dict[str, Any], ms: int = 300) -> str:
    """What each way to execute chunks makes of a policy that takes so long."""
    rows = []
    for entry in result["entries"]:
        if entry["delay_ms"] == ms:
            seams = (entry[key] for key in ("seam_jump", "seam_kink", "kink"))
            rows.append(
                (
                    f"{entry['policy']}, {entry['way']}",
                    *(_interval(entry[metric]) for metric in METRICS),
                    *(f"{one['mean']:.1f}" for one in seams),
                )
            )
    header = (f"a prediction takes {ms} ms", *METRICS, "jump, px", "kink, px", "within chunks, px")
    return markdown(header, rows, left=1)


def real_time(result: dict[str, Any]) -> str:
    """The control loop in steps, in real time and through ROS 2."""
    entries = result["entries"]

    def row(name: str, cell: Callable[[dict[str, Any]], str], first: str = "") -> tuple[str, ...]:
        return (name, first, *(cell(entry) for entry in entries.values()))

    def times(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda e: " / ".join(f"{e[key][p]:.1f}" for p in ("p50", "p95", "p99"))

    def ahead(entry: dict[str, Any]) -> str:
        diff = entry.get("minus_in_steps")
        return format_interval(diff["diff"], diff["ci95"], signed=True) if diff else ""

    rows = [
        row("score", lambda e: _interval(e["score"]), _interval(result["in_steps"]["score"])),
        row("score minus that in steps", ahead),
        row("success", lambda e: _interval(e["success"])),
        row("ticks a second", lambda e: f"{e['rate_hz']:.2f}"),
        row("ticks late by, p50 / p95 / p99 ms", times("late_ms")),
        row("a chunk takes, p50 / p95 / p99 ms", times("latency_ms")),
        row(
            "left out / without a plan / limited ticks",
            lambda e: f"{e['overruns']} / {e['starved']} / {e['clamped']}",
        ),
    ]
    header = (f"{result['episodes']} episodes", "Push-T in steps", *entries)
    return markdown(header, rows, left=1)


def _stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _language() -> str:
    characters = _stored("language_tinyshakespeare")["tinyshakespeare"]
    return language.quality(characters, _stored("language_speed"))


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "headline": lambda: headline(_stored),
        "suites": lambda: suites({title: _stored(name) for name, title in SUITES.items()}),
        "language": _language,
        "denoising": lambda: denoising.headline(_stored("denoising_cbsd68_s")),
    },
    "docs/push_t.md": {
        "push_t": lambda: scores(_stored("push_t")),
        "selection": lambda: selection(_stored("push_t_selection")),
        "speed": lambda: speed(_stored("speed")),
        "recovery": lambda: recovery(_stored("recovery_push_t")),
        "recovery_selection": lambda: recovery(_stored("recovery_push_t_selection")),
        "energy": lambda: energy(_stored("energy")),
        "rollouts": lambda: rollouts(_stored("rollouts")),
    },
    "docs/simulated_robots.md": {
        **{name: lambda name=name: suite(_stored(name)) for name in SUITES},
        **{
            name: lambda name=name: recovery_and_retries(_stored(name))
            for name in (
                "recovery_lift_disturbed",
                "recovery_metaworld-peg-insert-side_disturbed",
            )
        },
    },
    "docs/real_robot.md": {
        "delay": lambda: delay(_stored("delay")),
        "real_time": lambda: real_time(_stored("real_time")),
    },
    "docs/language.md": {
        "language": _language,
        "other_texts": lambda: language.other_texts(_stored("language_wikitext2")),
        "thinking": lambda: language.thinking(_stored("language_wikitext2")),
    },
    "docs/experiments.md": {
        "ablations": lambda: scores(_stored("ablations"), minutes=False),
        "masked_text": lambda: masked_text.table(_stored("masked_text")),
    },
    "docs/vision.md": {
        **{
            name: lambda name=name: denoising.table(_stored(name))
            for name in (
                "denoising_cbsd68_s",
                "denoising_cbsd68_2xs",
                "denoising_set12_2xs",
                "denoising_bsd68_2xs",
            )
        },
        "generation": lambda: generation.table(_stored("generation")),
        **{
            f"video_{videos}": lambda videos=videos: video.table(_stored(f"video_{videos}"))
            for videos in video.FRAMES
        },
        "probe": lambda: representation.probe_table(_stored("representation")),
        "detectors": lambda: representation.detector_table(_stored("representation")),
        "image_speed_cpu": lambda: image_speed.table(_stored("image_speed_cpu")),
        "image_speed_cuda": lambda: image_speed.table(_stored("image_speed_cuda")),
    },
    "docs/gpu.md": {"gpu": lambda: cards(RESULTS / "gpu")},
    "docs/scaling.md": {
        f"scaling_{axis}": lambda axis=axis: scaling_table(_stored(f"scaling_{axis}"))
        for axis in scaling.AXES
    },
}
FIGURES = {
    "energy": energy_study,
    "recovery_push_t": robustness_curves,
    "delay": delay_curves,
    **{f"scaling_{axis}": scaling_lines for axis in scaling.AXES},
}


def render(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A document with the tables of the stored results."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"the document lacks the markers {begin} and {end}.")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}{end}{after}"
    return text


def main() -> None:
    for document, tables in TABLES.items():
        path = Path(document)
        path.write_text(render(path.read_text(), tables))
    for name, draw in FIGURES.items():
        save_figure(draw(_stored(name)), Path("docs/assets") / f"{name}.svg")


if __name__ == "__main__":
    main()
