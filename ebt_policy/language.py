"""Evaluating language models: ``python -m ebt_policy.eval checkpoint=RUN[@steps=4] ...``.

Shapes: B batch, S context.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown

import ebt_policy
from ebt_policy.data.text import TokenWindows, load_corpus, tokenized
from ebt_policy.evaluation.contestants import matching_runs, parse_checkpoint
from ebt_policy.evaluation.protocol import progress_bar
from ebt_policy.evaluation.stats import mean_ci
from ebt_policy.evaluation.summary import write_atomic
from ebt_policy.models.text import LanguageModel

console = Console()
BATCH = 16


def held_out_surprisal(
    model: LanguageModel, windows: TokenWindows, most: int | None = None
) -> torch.Tensor:
    """-log p of every token of held-out windows, nats, (windows, S); of some, evenly spread."""
    count = len(windows)
    chosen = torch.arange(count)
    if most is not None and most < count:
        chosen = torch.linspace(0, count - 1, most).long()
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in chosen.split(BATCH):
        tokens = windows.gather(index)["tokens"]
        found.append(model.surprisal(tokens, generator).detach().cpu())
    return torch.cat(found)


def evaluate_language(
    checkpoints: list[str], *, output: Path, device: torch.device, command: str
) -> dict[str, Any]:
    """Held-out perplexity of some models, with intervals; returns what ``summary.json`` holds.

    Raises:
        CheckpointError, ConfigError, TextError: before anything is computed.
    """
    contestants = []
    for text in checkpoints:
        path, changes = parse_checkpoint(text)
        for run in matching_runs(path):
            model = LanguageModel.from_checkpoint(run, device)
            model.configure_inference(**changes)
            contestants.append((text, run, model))
    entries: dict[str, list[Any]] = {}
    with progress_bar() as bar:
        bars = [bar.add_task(text, total=None) for text, _, _ in contestants]
        for (text, _run, model), task in zip(contestants, bars, strict=True):
            given = model.config["task"]
            corpus = load_corpus(given["corpus"], given["path"])
            part = "test" if "test" in corpus.parts else "validation"
            tokens = tokenized(corpus.parts[part], model.tokenizer)
            windows = TokenWindows(tokens, model.context, stride=model.context, device=device)
            found = held_out_surprisal(model, windows)
            bar.update(task, total=1, completed=1)
            length = len(corpus.parts[part].encode()) / len(tokens)
            row = {"corpus": corpus.name, "part": part, "bytes_per_token": length}
            entries.setdefault(text, []).append((model, found.mean(1).numpy(), row))
    result = {"entries": [_summary(*entry, command) for entry in entries.items()]}
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    write_atomic(output / "table.md", _table(result))
    console.print(Markdown(_table(result)))
    return result


def _summary(name: str, found: list[Any], command: str) -> dict[str, Any]:
    model, _, row = found[0]
    losses = mean_ci(np.stack([each for _, each, _ in found]))
    trained = model.config.get("trained", {})
    return {
        "name": name,
        "task": "text",
        "model": model.name,
        "params": model.parameter_count,
        "objective": (model.config.get("objective") or {}).get("name"),
        "steps": getattr(model.inference, "steps", 1),
        "train_seed": [m.config.get("seed") for m, _, _ in found],
        "train_steps": trained.get("steps"),
        "train_seconds": trained.get("seconds"),
        "device": trained.get("device"),
        **row,
        "loss": losses,
        "perplexity": _exponential(losses),
        "bits_per_byte": _scaled(losses, 1 / (math.log(2) * row["bytes_per_token"])),
        "command": command,
        "version": ebt_policy.__version__,
    }


def _exponential(entry: dict[str, Any]) -> dict[str, Any]:
    """Perplexity: of the mean, not the mean of exponentials."""
    low, high = entry["ci95"]
    return {"mean": math.exp(entry["mean"]), "ci95": [math.exp(low), math.exp(high)]}


def _scaled(entry: dict[str, Any], factor: float) -> dict[str, Any]:
    return {"mean": entry["mean"] * factor, "ci95": [x * factor for x in entry["ci95"]]}


def _table(result: dict[str, Any]) -> str:
    def shown(entry: dict[str, Any], digits: int) -> str:
        low, high = entry["ci95"]
        return f"{entry['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = [
        "| model | params | updates | loss, nats | perplexity | bits a byte |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for e in result["entries"]:
        lines.append(
            f"| {e['name']} | {e['params'] / 1e6:.2f}M | {e['train_steps'] or 0:,} | "
            f"{shown(e['loss'], 3)} | {shown(e['perplexity'], 2)} | "
            f"{shown(e['bits_per_byte'], 3)} |"
        )
    corpora = sorted({f"{e['corpus']} ({e['part']})" for e in result["entries"]})
    lines += [
        "",
        f"Mean and 95 % interval over windows of {', '.join(corpora)} and training seeds.",
    ]
    return "\n".join(lines) + "\n"
