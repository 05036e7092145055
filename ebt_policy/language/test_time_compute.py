"""Test-time compute of a language model: more steps (longer), or more candidates (wider).

It also relates the energies of tokens to their surprisal. Shapes: B batch, S context, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import rich.text
import torch

from ebt_policy.energy import DescentResult
from ebt_policy.energy.candidate_space import cross_entropy
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.language.data import TokenWindows
from ebt_policy.language.metrics import held_out_surprisal, window_batches

MAX_STEP_FACTOR = 4  # multiple of the number of steps that a model predicts with
CANDIDATES = (1, 2, 4, 8)  # per position
TABLE_STEPS = (1, 2, 3, 4, 6, 8, 12)
NUM_WINDOWS = 64


def study_test_time_compute(models: Sequence[Any], windows: TokenWindows) -> dict[str, Any]:
    """Measure surprisal over steps and candidates, and statistics of the energies of tokens.

    Args:
        models: training runs of one entry.
        windows: held-out text; at most `NUM_WINDOWS` of its windows are used.
    """
    config = models[0].inference
    longer, wider, rejecting, steps_used = [], {}, [], []
    last = MAX_STEP_FACTOR * config.steps
    adaptive = models[0].has_energy and not models[0].objective.level_conditioned
    for model in models:
        generator = torch.Generator().manual_seed(0)
        model.configure_inference(steps=last, num_candidates=1)
        rows = [
            _descend(model, windows, i, generator)[0] for i in window_batches(windows, NUM_WINDOWS)
        ]
        longer.append(torch.cat(rows, dim=1).numpy())
        for count in CANDIDATES if model.has_random_init else ():
            model.configure_inference(steps=config.steps, num_candidates=count)
            losses = held_out_surprisal(model, windows, NUM_WINDOWS)
            wider.setdefault(count, []).append(losses.mean(1).numpy())
        if adaptive:
            generator = torch.Generator().manual_seed(0)
            model.configure_inference(steps=last, num_candidates=1, reject_energy_increase=True)
            descents = [
                _descend(model, windows, i, generator) for i in window_batches(windows, NUM_WINDOWS)
            ]
            rejecting.append(torch.cat([losses[-1] for losses, *_ in descents]).numpy())
            steps_used.append(
                float(torch.cat([d.steps_used for _, d, _ in descents]).float().mean())
            )
        model.configure_inference(**asdict(config))
    by_steps = np.stack(longer, axis=1)  # (N + 1, models, windows)
    baseline = by_steps[config.steps]
    return {
        "steps": config.steps,
        "longer": [mean_ci(x) | {"against": _difference(x, baseline)} for x in by_steps],
        "wider": [
            {"candidates": m, **mean_ci(np.stack(x))}
            | {"against": _difference(np.stack(x), np.stack(wider[1]))}
            for m, x in wider.items()
        ],
        # Each token descends until its energy would rise.
        "adaptive": {
            **mean_ci(np.stack(rejecting)),
            "against": _difference(np.stack(rejecting), baseline),
            "steps_used": steps_used,
        }
        if adaptive
        else None,
        "energies": _energy_statistics(models, windows) if models[0].has_energy else None,
    }


def _descend(
    model: Any, windows: TokenWindows, index: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, DescentResult, torch.Tensor]:
    """Descend the candidates of some windows.

    Returns:
        Surprisal of each window after each step (N + 1, B), the result of the descent, and the
        final surprisal of each token (B, S).
    """
    tokens = windows.gather(index)["tokens"]
    with torch.no_grad():
        result = model.descend(model.observe(tokens[:, :-1]), generator)
    losses = torch.stack([cross_entropy(x, tokens[:, 1:]) for x in result.path])
    return losses.mean(2).cpu(), result, losses[-1].cpu()


def _difference(losses: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return the mean paired difference of losses (models, windows) with its interval."""
    mean = mean_ci(losses - reference)
    return {"diff": mean["mean"], "ci95": mean["ci95"]}


def _energy_statistics(models: Sequence[Any], windows: TokenWindows) -> dict[str, Any]:
    """Relate the energies of candidates to the surprisal of their tokens.

    Returns:
        ``rank_correlation``: Spearman's correlation of final energies and surprisals over tokens,
        for each model. ``descent``: mean energies (N + 1) minus their final value, for the easiest
        and the hardest third of the tokens. ``tokens``: the tokens of one window with their energy
        and surprisal. The last two are of the first model.
    """
    from scipy.stats import spearmanr  # slow to import

    correlations, descent, examples = [], {}, []
    for k, model in enumerate(models):
        generator = torch.Generator().manual_seed(0)
        descents = [
            _descend(model, windows, i, generator) for i in window_batches(windows, NUM_WINDOWS)
        ]
        energies = torch.cat([result.energies.cpu() for _, result, _ in descents], dim=1)
        losses = torch.cat([tokens for *_, tokens in descents])
        flat = energies.flatten(1)
        rank: Any = spearmanr(flat[-1], losses.flatten())
        correlations.append(float(rank.statistic))
        if k == 0:
            order, num_third = losses.flatten().argsort(), losses.numel() // 3
            thirds = (("easy tokens", order[:num_third]), ("hard tokens", order[-num_third:]))
            descent = {
                name: (flat[:, indices].mean(1) - flat[-1, indices].mean()).tolist()
                for name, indices in thirds
            }
            ids = windows.gather(torch.tensor([0]))["tokens"][0, 1:].tolist()
            examples = [
                {"token": model.tokenizer.decode([i]), "energy": e, "surprisal": loss}
                for i, e, loss in zip(
                    ids, energies[-1, 0].tolist(), losses[0].tolist(), strict=True
                )
            ]
    return {"rank_correlation": correlations, "descent": descent, "tokens": examples}


def steps_and_candidates_table(result: dict[str, Any]) -> str:
    """Return a Markdown table of losses by steps and candidates; "" if no entry descends."""
    rows = []
    for entry in result["entries"]:
        if (study := entry.get("thinking")) is None:
            continue
        longer = [
            (f"{k} {'step' if k == 1 else 'steps'}", row)
            for k, row in enumerate(study["longer"])
            if k in TABLE_STEPS
        ]
        wider = [(f"best of {row['candidates']}", row) for row in study["wider"]]
        adaptive = []
        if row := study["adaptive"]:
            steps = np.mean(row["steps_used"])
            adaptive = [(f"while the energy falls, {steps:.1f} steps", row)]
        for label, row in longer + wider + adaptive:
            rows.append(
                (
                    entry["name"],
                    label,
                    f"{math.exp(row['mean']):.3f}",
                    format_interval(row["against"]["diff"], row["against"]["ci95"], signed=True),
                )
            )
    if not rows:
        return ""
    header = (
        "model", "compute", "perplexity", "difference from its own steps and one candidate, nats",
    )  # fmt: skip
    return f"\n{markdown(header, rows, left=2)}"


def show_energies(tokens: Sequence[dict[str, Any]]) -> rich.text.Text:
    """Return the tokens of a window, coloured from white (lowest energy) to red (highest)."""
    energies = np.array([token["energy"] for token in tokens])
    ranks = energies.argsort().argsort() / max(len(energies) - 1, 1)
    text = rich.text.Text()
    for token, rank in zip(tokens, ranks, strict=True):
        shade = round(255 * (1 - rank))
        text.append(token["token"], style=f"black on rgb(255,{shade},{shade})")
    return text
