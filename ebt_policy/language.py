"""Evaluating language models: ``python -m ebt_policy.eval checkpoint=RUN[@steps=4] ...``.

Leaves ``summary.json``, ``table.md`` and, for models with an energy, ``thinking.svg``: surprisal
over the steps of a descent and over the guesses among which the lowest energy chooses, and the
energy of easy and hard tokens while they descend.

Shapes: B batch, S context, N steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown

import ebt_policy
from ebt_policy.data.text import TokenWindows, load_corpus, tokenized
from ebt_policy.energy.objectives import surprisal
from ebt_policy.evaluation.contestants import matching_runs, parse_checkpoint
from ebt_policy.evaluation.protocol import progress_bar
from ebt_policy.evaluation.stats import mean_ci, paired_difference
from ebt_policy.evaluation.study_figures import save_figure, thinking
from ebt_policy.evaluation.summary import (
    format_count,
    format_interval,
    markdown,
    paired_table,
    write_atomic,
)
from ebt_policy.models.masked import MaskedModel
from ebt_policy.models.text import EnergyLanguageModel, TextModel
from ebt_policy.options import ConfigError

console = Console()
BATCH = 16
FURTHER = 4  # times the steps that a model predicts with: how far thinking is followed
WIDER = (1, 2, 4, 8)  # guesses a place
STUDIED = 64  # windows
MOST = 2048  # windows, evenly spread, of a text that has more


def batches(windows: TokenWindows, most: int | None = None) -> list[torch.Tensor]:
    """Indices of windows in batches: all of them, or some, evenly spread."""
    count = len(windows)
    chosen = torch.arange(count)
    if most is not None and most < count:
        chosen = torch.linspace(0, count - 1, most).long()
    return list(chosen.split(BATCH))


def held_out_surprisal(
    model: TextModel, windows: TokenWindows, most: int | None = None
) -> torch.Tensor:
    """-log p of every token of held-out windows, nats: (windows, S)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in batches(windows, most):
        tokens = windows.gather(index)["tokens"]
        found.append(model.surprisal(tokens, generator).detach().cpu())
    return torch.cat(found)


def habits(model: MaskedModel, windows: TokenWindows, most: int | None = None) -> dict[str, float]:
    """What a model fills in on held-out windows, by its most likely tokens.

    Returns ``accuracy``, ``largest_share``, the part of the masked places taken by the token that
    it fills in most often, and ``true_largest_share``, by the most frequent one in truth.
    """
    generator = torch.Generator().manual_seed(0)
    filled, truth = [], []
    for index in batches(windows, most):
        tokens = windows.gather(index)["tokens"]
        places = model.places(tokens, generator)
        filled.append(model.fill(tokens, places, generator).argmax(-1).flatten())
        truth.append(tokens.gather(1, places).flatten())
    guessed, true = torch.cat(filled), torch.cat(truth)
    return {
        "accuracy": float((guessed == true).float().mean()),
        "largest_share": float(guessed.bincount().max() / len(guessed)),
        "true_largest_share": float(true.bincount().max() / len(true)),
    }


def evaluate_language(
    checkpoints: Sequence[str],
    *,
    output: Path,
    device: torch.device,
    command: str,
    corpus: str | None = None,
) -> dict[str, Any]:
    """Held-out perplexity of some models, with intervals; returns what ``summary.json`` holds.

    Args:
        checkpoints: runs, ``RUN@name=value``; a * stands for training runs.
        corpus: another text than that of their training: a name, or the path of a file.

    Raises:
        CheckpointError, ConfigError, TextError: before anything is computed.
    """
    contestants = {text: _load(text, device) for text in checkpoints}
    texts = {name: held_out(models[0], corpus, device) for name, models in contestants.items()}
    entries, thoughts, found = [], {}, {}
    with progress_bar() as bar:
        for text, models in contestants.items():
            task, (windows, about) = bar.add_task(text, total=len(models)), texts[text]
            losses = []
            for model in models:
                losses.append(held_out_surprisal(model, windows, MOST).mean(1).numpy())
                bar.advance(task)
            found[text] = np.stack(losses)
            entries.append(_summary(text, models, found[text], about, command))
            masked = [model for model in models if isinstance(model, MaskedModel)]
            if masked:
                each = [habits(model, windows, MOST) for model in masked]
                entries[-1]["habits"] = {k: [one[k] for one in each] for k in each[0]}
            if isinstance(models[0], EnergyLanguageModel):
                thoughts[text] = _thoughts(models, windows)
                entries[-1]["thinking"] = thoughts[text]
    result = {"entries": entries, "paired": _paired(found, texts)}
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "summary.json", json.dumps(result, indent=1) + "\n")
    table = language_table(result)
    write_atomic(output / "table.md", table)
    if thoughts:
        save_figure(thinking(thoughts), output / "thinking.svg")
    console.print(Markdown(table))
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    return result


def _load(text: str, device: torch.device) -> list[TextModel]:
    path, changes = parse_checkpoint(text)
    models = [TextModel.from_checkpoint(run, device) for run in matching_runs(path)]
    if not models:
        raise ConfigError(f"checkpoint={text}: no folder matches {path}.")
    for model in models:
        model.configure_inference(**changes)
    return models


def held_out(
    model: TextModel, corpus: str | None, device: torch.device
) -> tuple[TokenWindows, dict[str, Any]]:
    """Windows of the text that a model did not learn from, or of another, and what it is.

    Raises:
        TextError: it cannot be had.
    """
    given = model.config["task"]["corpus"], model.config["task"]["path"]
    if corpus is not None:
        given = (None, corpus) if Path(corpus).exists() else (corpus, None)
    text = load_corpus(*given)
    part = "test" if "test" in text.parts else "validation"
    tokens = tokenized(text.parts[part], model.tokenizer)
    windows = TokenWindows(tokens, model.context, stride=model.context, device=device)
    return windows, {
        "corpus": text.name,
        "part": part,
        "windows": min(len(windows), MOST),
        "bytes_per_token": len(text.parts[part].encode()) / len(tokens),
    }


def _summary(
    name: str, models: list[TextModel], losses: np.ndarray, about: dict[str, Any], command: str
) -> dict[str, Any]:
    model, loss = models[0], mean_ci(losses)
    trained = [m.config.get("trained", {}) for m in models]
    low, high = loss["ci95"]
    to_bits = 1 / (math.log(2) * about["bytes_per_token"])
    return {
        "name": name,
        "task": "text",
        "model": model.name,
        "params": model.parameter_count,
        "objective": (model.config.get("objective") or {}).get("name"),
        "steps": getattr(model.inference, "steps", 1),
        "train_seed": [m.config.get("seed") for m in models],
        "train_steps": trained[0].get("steps"),
        "train_seconds": trained[0].get("seconds"),
        "device": trained[0].get("device"),
        **about,
        "loss": loss,
        # Of the mean: a mean of exponentials is no perplexity.
        "perplexity": {"mean": math.exp(loss["mean"]), "ci95": [math.exp(low), math.exp(high)]},
        "bits_per_byte": {"mean": loss["mean"] * to_bits, "ci95": [low * to_bits, high * to_bits]},
        "command": command,
        "version": ebt_policy.__version__,
    }


def _paired(
    found: dict[str, np.ndarray], texts: dict[str, tuple[TokenWindows, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What the first loses, less what each other does that read the same windows, in nats."""
    first, *others = found
    tokens = texts[first][0].tokens
    return [
        {"a": first, "b": name, "metric": "loss", **paired_difference(found[first], found[name])}
        for name in others
        if found[name].shape[1] == found[first].shape[1]
        and np.array_equal(texts[name][0].tokens, tokens)
    ]


def _thoughts(models: Sequence[Any], windows: TokenWindows) -> dict[str, Any]:
    """Surprisal over steps and guesses, and how energies of easy and hard tokens go down."""
    longer, wider, energies = [], {}, None
    how = models[0].inference
    steps = FURTHER * how.steps
    for model in models:
        rows, generator = [], torch.Generator().manual_seed(0)
        model.configure_inference(steps=steps, candidates=1)
        for index in batches(windows, STUDIED):
            tokens = windows.gather(index)["tokens"]
            with torch.no_grad():
                found = model.think(model.observe(tokens[:, :-1]), generator)
            losses = torch.stack([surprisal(x, tokens[:, 1:]) for x in found.path])
            rows.append(losses.mean(2).cpu())
            if energies is None and len(found.path) == steps + 1:
                energies = _by_difficulty(found.energies.cpu(), losses[-1].cpu())
        longer.append(torch.cat(rows, dim=1).numpy())
        for many in WIDER if getattr(model.objective, "start", 1.0) else ():
            model.configure_inference(steps=how.steps, candidates=many)
            wider.setdefault(many, []).append(
                held_out_surprisal(model, windows, STUDIED).mean(1).numpy()
            )
        model.configure_inference(steps=how.steps, candidates=how.candidates)
    return {
        "trained_steps": how.steps,
        "longer": [mean_ci(np.stack(each)) for each in zip(*longer, strict=True)],
        "wider": [{"candidates": m, **mean_ci(np.stack(each))} for m, each in wider.items()],
        "energies": energies,
    }


def _by_difficulty(energies: torch.Tensor, losses: torch.Tensor) -> dict[str, list[float]]:
    """Mean energy (N + 1) above the last one of the third of easiest and of hardest tokens."""
    order, third = losses.flatten().argsort(), losses.numel() // 3
    flat = energies.flatten(1)
    return {
        name: (flat[:, chosen].mean(1) - flat[-1, chosen].mean()).tolist()
        for name, chosen in (("easy tokens", order[:third]), ("hard tokens", order[-third:]))
    }


def language_table(result: dict[str, Any]) -> str:
    """Markdown."""

    def shown(entry: dict[str, Any], digits: int) -> str:
        low, high = entry["ci95"]
        return f"{entry['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    rows = [
        (
            entry["name"],
            format_count(entry["params"]),
            f"{entry['train_steps'] or 0:,}",
            format_interval(entry["loss"]["mean"], entry["loss"]["ci95"]),
            shown(entry["perplexity"], 2),
            shown(entry["bits_per_byte"], 3),
        )
        for entry in result["entries"]
    ]
    header = ("model", "params", "updates", "loss, nats", "perplexity", "bits a byte")
    texts = ", ".join(sorted({f"{e['corpus']} ({e['part']})" for e in result["entries"]}))
    text = markdown(header, rows, left=1)
    text += f"\nMean and 95 % interval over windows of {texts} and training seeds.\n"
    if result["paired"]:
        text += f"\nDifferences on the same windows, a - b:\n\n{paired_table(result['paired'])}"
    return text
