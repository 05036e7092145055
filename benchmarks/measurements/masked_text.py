"""Whether predictions of masked energy models collapse to one frequent token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.device import DEVICE
from benchmarks.study import StudyContext, run_name
from ebt_policy.evaluation.entries import matching_runs
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.metrics import (
    MAX_WINDOWS,
    held_out_surprisal,
    load_eval_set,
    prediction_collapse_metrics,
)


def masked_text(context: StudyContext) -> dict[str, Any]:
    """Return held-out losses and collapse metrics of masked models, for each training run."""
    entries = []
    for entry, checkpoint in zip(context.part.entries, context.checkpoints(), strict=True):
        runs = [_measure(run) for run in matching_runs(Path(checkpoint))]
        loss = mean_ci([run["loss"] for run in runs])
        entries.append({"name": run_name(entry), "runs": runs, "loss": loss})
    return {
        "entries": entries, "updates": context.options.updates, "device": DEVICE.type,
        "command": context.command,
    }  # fmt: skip


def _measure(run: Path) -> dict[str, Any]:
    model = MaskedModel.from_checkpoint(run, DEVICE)
    windows = load_eval_set(model, None, DEVICE).windows
    loss = held_out_surprisal(model, windows, MAX_WINDOWS).mean().item()
    return {
        "loss": loss,
        "params": model.parameter_count,
        **prediction_collapse_metrics(model, windows, MAX_WINDOWS),
    }
