"""The README's tables from stored results: ``python -m benchmarks.readme`` (``make results``).

Reads ``docs/results/push_t.json`` and ``docs/results/speed.json`` and rewrites what stands between
the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` of ``README.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebt_policy.evaluation.summary import format_interval

RESULTS = Path("docs/results")


def _interval(value: dict[str, Any]) -> str:
    return format_interval(value["mean"], value["ci95"])


def push_t(result: dict[str, Any]) -> str:
    """Scores of all policies."""
    lines = [
        "| policy | score | success | updates | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in result["entries"]:
        lines.append(
            f"| {entry['name']} | {_interval(entry['score'])} | "
            f"{_interval(entry['success'])} | {entry['train_steps']:,} | "
            f"{entry['train_seconds'] / 60:.0f} |"
        )
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


TABLES = {"push_t": push_t, "speed": speed}


def render(text: str) -> str:
    """The README with the tables of the stored results."""
    for name, table in TABLES.items():
        content = table(json.loads((RESULTS / f"{name}.json").read_text()))
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"README.md lacks the markers {begin} and {end}.")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def main() -> None:
    readme = Path("README.md")
    readme.write_text(render(readme.read_text()))


if __name__ == "__main__":
    main()
