"""Tables of language models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.tables.cells import Result, difference, label_of
from ebt_policy.evaluation.tables import format_estimate, format_interval, markdown

NAMES = {
    "transformer_pp": "Transformer++",
    "ebt": "energy, 2 steps",
    "ebt_shallow": "energy, 2 steps, guesses through one block",
    "refiner": "refiner, 2 steps",
    "ebt_s2": "energy, System 2, 3 steps",
}
HEADLINE = ("transformer_pp", "ebt", "refiner")  # models of the table in the README
MASKED_NAMES = {
    "bert": "BERT",
    "scalar": "scalar energy, from noise",
    "scalar_corrupted": "scalar energy, half from corrupted targets",
    "product": "product energy, from noise",
    "product_corrupted": "product energy, half from corrupted targets",
}


def quality(result: Result, cost: Result, names: Sequence[str] | None = None) -> str:
    """Return a table of held-out losses, their differences, and the time per update.

    Args:
        result: result of the study ``language_CORPUS`` for its own text. The first entry is
            Transformer++.
        cost: result of `benchmarks.language_speed`.
        names: keys of `NAMES` to show; None for all.
    """
    times = {
        entry["name"]: entry["times_transformer_pp"]
        for entry in cost["entries"]
        if entry["how"] == "compiled"
    }
    first = result["entries"][0]["name"]
    pairs = {pair["b"]: pair for pair in result["paired"] if pair["a"] == first}
    rows = []
    for entry in result["entries"]:
        if names is not None and entry["name"].partition("-seed")[0] not in names:
            continue
        name, loss, perplexity = _name(entry["name"]), entry["loss"], entry["perplexity"]
        baseline_difference = ""
        if pair := pairs.get(entry["name"]):
            low, high = pair["ci95"]
            baseline_difference = format_interval(-pair["diff"], (-high, -low), signed=True)
        rows.append(
            (
                label_of(name),
                f"{entry['params']:,}",
                format_estimate(loss),
                f"{perplexity['mean']:.2f}",
                baseline_difference,
                f"{times[name]:.1f}x" if name in times else "",
            )
        )
    header = (
        "model", "parameters", "held-out loss, nats", "perplexity",
        "difference from Transformer++, nats", "time per update",
    )  # fmt: skip
    return markdown(header, rows, left=1)


def other_texts(results: Result) -> str:
    """Return a table of the perplexity of all models on their own text and on other texts."""
    names = [entry["name"] for entry in next(iter(results.values()))["entries"]]
    rows = []
    for corpus, result in results.items():
        cells = (format_estimate(entry["perplexity"], 1) for entry in result["entries"])
        rows.append((corpus, *cells))
    return markdown(("perplexity", *map(_name, names)), rows, left=1)


def thinking(results: Result, model: str = "ebt_s2") -> str:
    """Return a table of how more steps and candidates change a model's loss on several texts."""
    rows, header = [], ("text", "perplexity")
    for corpus, result in results.items():
        entry = next(e for e in result["entries"] if e["name"].startswith(f"{model}-seed"))
        curves = entry["thinking"]
        steps = {
            f"{k} {'step' if k == 1 else 'steps'}": curves["longer"][k] for k in (1, 2, 4, 6, 12)
        }
        wide = {f"best of {cell['candidates']}": cell for cell in curves["wider"][1:]}
        wide["while the energy falls"] = curves["adaptive"]
        header = ("text", f"perplexity, {curves['steps']} steps", *steps, *wide)
        cells = [difference(cell["against"]) for cell in (steps | wide).values()]
        perplexity = math.exp(curves["longer"][curves["steps"]]["mean"])
        rows.append((corpus, f"{perplexity:.2f}", *cells))
    return markdown(header, rows, left=1)


def masked_text(result: Result) -> str:
    """Return a table of means and ranges over training runs; there are few seeds."""

    def span(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    rows = []
    for entry in result["entries"]:
        runs = entry["runs"]
        cells = (span([run[k] for run in runs]) for k in ("loss", "accuracy", "largest_share"))
        rows.append((MASKED_NAMES[entry["name"]], f"{runs[0]['params']:,}", *cells))
    header = (
        "model", "parameters", "held-out loss, nats", "accuracy",
        "share of the most frequent prediction",
    )  # fmt: skip
    return markdown(header, rows, left=1)


def _name(entry: str) -> str:
    return NAMES[entry.partition("-seed")[0]]
