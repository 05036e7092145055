"""Does an energy over masked text collapse? ``python -m benchmarks.masked_text [seeds=3]``.

Settings: seeds, updates (1500), parallel, folder. Trains BERT and the energy of all masked tokens,
both forms of it, from noise and from corrupted truths, on TinyShakespeare's characters, and writes
what each has learned to fill in, ``docs/results/masked_text.json``. It may be repeated after a
kill; on two cores it takes half an hour.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.runs import train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.evaluation.tables import markdown
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.metrics import (
    MAX_WINDOWS,
    held_out_surprisal,
    load_eval_set,
    prediction_collapse_metrics,
)

TEXT = [
    "task=text", "task.corpus=tinyshakespeare", "task.tokenizer=char", "task.context=64",
    "size=2xs",
    "train.minutes=null", "train.batch_size=16", "train.lr=2e-3", "train.compile=false",
]  # fmt: skip
NOISE = ["model=masked_ebt", "objective.start=1.0"]
CORRUPTED = ["model=masked_ebt", "objective=corrupted"]
MODELS = {
    "bert": ["model=bert"],
    "scalar": NOISE,
    "scalar_corrupted": CORRUPTED,
    "product": [*NOISE, "model.energy=product"],
    "product_corrupted": [*CORRUPTED, "model.energy=product"],
}
NAMES = {
    "bert": "BERT",
    "scalar": "scalar energy, from noise",
    "scalar_corrupted": "scalar energy, half from corrupted truths",
    "product": "product energy, from noise",
    "product_corrupted": "product energy, half from corrupted truths",
}


def measure(run: Path) -> dict[str, Any]:
    """A trained model's held-out loss, and what it fills in."""
    model = MaskedModel.from_checkpoint(run, DEVICE)
    windows = load_eval_set(model, None, DEVICE).windows
    loss = held_out_surprisal(model, windows, MAX_WINDOWS).mean().item()
    collapse = prediction_collapse_metrics(model, windows, MAX_WINDOWS)
    return {"loss": loss, "params": model.parameter_count, **collapse}


def table(result: dict[str, Any]) -> str:
    """Means over training runs, with what they span: seeds are few."""

    def span(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    rows = []
    for entry in result["entries"]:
        runs = entry["runs"]
        cells = (span([run[k] for run in runs]) for k in ("loss", "accuracy", "largest_share"))
        rows.append((NAMES[entry["name"]], f"{runs[0]['params']:,}", *cells))
    header = ("model", "parameters", "held-out loss, nats", "right", "most frequent filling")
    return markdown(header, rows, left=1)


def main() -> None:
    given = settings(seeds=3, updates=1500, parallel=2, folder="runs/masked_text")
    folder = Path(given.folder)
    runs = {name: [*TEXT, f"train.steps={given.updates}", *how] for name, how in MODELS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    entries = []
    for name in MODELS:
        measured = [measure(folder / f"{name}-seed{seed}") for seed in range(given.seeds)]
        loss = mean_ci([run["loss"] for run in measured])
        entries.append({"name": name, "runs": measured, "loss": loss})
    result = {"entries": entries, "updates": given.updates, "device": DEVICE.type}
    result["command"] = command("masked_text")
    store("masked_text.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
