"""The tables and figures of the documents: ``python -m benchmarks.readme`` (``make results``).

Reads ``docs/results/*.json``, rewrites what stands between the markers ``<!-- NAME:begin -->`` and
``<!-- NAME:end -->`` of ``README.md`` and ``docs/experiments.md``, and draws the curves of
``docs/assets``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ebt_policy.evaluation.study_figures import energy_study, save_figure
from ebt_policy.evaluation.summary import format_interval

RESULTS = Path("docs/results")


def _interval(value: dict[str, Any]) -> str:
    return format_interval(value["mean"], value["ci95"])


HEADLINE = {  # entry of push_t.json -> chunk of speed.json
    "ebt_12500 (steps 2, candidates 8)": "energy, 2 steps, best of 8",
    "ebt_12500 (steps 2, candidates 1)": "energy, 2 steps",
    "flow_matching (steps 2)": "flow matching, 2 steps",
    "diffusion (ddim, steps 2)": "DDIM-2",
    "diffusion (ddim, steps 10)": "DDIM-10",
    "diffusion (ddpm, steps 100)": "DDPM-100",
}


def headline(result: dict[str, Any], speed: dict[str, Any]) -> str:
    """Quality and waiting time side by side, at equal updates."""
    entries = {entry["name"]: entry for entry in result["entries"]}
    times = speed["inference"]["compiled"]
    lines = ["| policy | score | success | a chunk, compiled |", "| --- |" + " --- |" * 3]
    for name, chunk in HEADLINE.items():
        score, success = (_interval(entries[name][metric]) for metric in ("score", "success"))
        lines.append(f"| {chunk} | {score} | {success} | {times[chunk]['p50']:.1f} ms |")
    return "\n".join(lines)


def scores(result: dict[str, Any], minutes: bool = True) -> str:
    """Score and success of every entry of an evaluation."""
    header = ["policy", "score", "success", "updates", *(["minutes"] if minutes else [])]
    lines = [f"| {' | '.join(header)} |", "| " + "--- | " * len(header)]
    for entry in result["entries"]:
        cells = [entry["name"], _interval(entry["score"]), _interval(entry["success"])]
        cells.append(f"{entry['train_steps']:,}")
        if minutes:
            cells.append(f"{entry['train_seconds'] / 60:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(result: dict[str, Any]) -> str:
    """Latency of a chunk and cost of an update."""
    lines = [
        "| chunk at batch 1 | eager p50 / p99 ms | DDPM-100 takes | compiled p50 / p99 ms "
        "| DDPM-100 takes |",
        "| --- | --- | --- | --- | --- |",
    ]
    eager, compiled = result["inference"]["eager"], result["inference"]["compiled"]
    for name in eager:
        cells = [
            f"{one[name]['p50']:.1f} / {one[name]['p99']:.1f} | {one[name]['ddpm_100_takes']:.1f}x"
            for one in (eager, compiled)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| training update, ratio of medians | |", "| --- | --- |"]
    for name, value in result["training"]["ratio"].items():
        lines.append(f"| {name} | {value:.2f}x |")
    return "\n".join(lines)


def energy(result: dict[str, Any]) -> str:
    """Areas under the ROC curve of each signal."""
    told = {**result["unexpected"], **{f"failure, {w}": b for w, b in result["failure"].items()}}
    names = list(next(iter(told.values())))
    lines = [f"| area under the ROC curve | {' | '.join(told)} |", "| --- |" + " --- |" * len(told)]
    for name in names:
        cells = [f"{by[name]['mean']:.2f}" for by in told.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "headline": lambda: headline(_stored("push_t"), _stored("speed")),
        "push_t": lambda: scores(_stored("push_t")),
        "speed": lambda: speed(_stored("speed")),
        "energy": lambda: energy(_stored("energy")),
    },
    "docs/experiments.md": {"ablations": lambda: scores(_stored("ablations"), minutes=False)},
}
FIGURES = {"energy": energy_study}


def _stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def render(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A document with the tables of the stored results."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"the document lacks the markers {begin} and {end}.")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


def main() -> None:
    for document, tables in TABLES.items():
        path = Path(document)
        path.write_text(render(path.read_text(), tables))
    for name, draw in FIGURES.items():
        save_figure(draw(_stored(name)), Path("docs/assets") / f"{name}.svg")


if __name__ == "__main__":
    main()
