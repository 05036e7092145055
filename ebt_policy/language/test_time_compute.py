"""Whether thinking helps a language model: longer, by more steps, or wider, by more guesses.

And what energies tell of tokens. Shapes: B batch, S context, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import rich.text
import torch
from scipy.stats import spearmanr

from ebt_policy.energy import DescentResult
from ebt_policy.energy.candidate_space import cross_entropy
from ebt_policy.evaluation.statistics import mean_ci
from ebt_policy.evaluation.tables import format_interval, markdown
from ebt_policy.language.data import TokenWindows
from ebt_policy.language.metrics import held_out_surprisal, window_batches

MAX_STEP_FACTOR = 4  # times the steps that a model predicts with: how far thinking is followed
WIDER = (1, 2, 4, 8)  # guesses a place
SHOWN = (1, 2, 3, 4, 6, 8, 12)  # steps, in the table
STUDIED = 64  # windows


def measure_test_time_compute(models: Sequence[Any], windows: TokenWindows) -> dict[str, Any]:
    """Surprisal over steps and guesses, and what energies tell of tokens."""
    how = models[0].inference
    longer, wider, careful, used = [], {}, [], []
    last = MAX_STEP_FACTOR * how.steps
    adaptive = models[0].has_energy and not models[0].objective.level_conditioned
    for model in models:
        generator = torch.Generator().manual_seed(0)
        model.configure_inference(steps=last, num_candidates=1)
        rows = [
            _think(model, windows, index, generator)[0]
            for index in window_batches(windows, STUDIED)
        ]
        longer.append(torch.cat(rows, dim=1).numpy())
        for many in WIDER if model.has_random_init else ():
            model.configure_inference(steps=how.steps, num_candidates=many)
            found = held_out_surprisal(model, windows, STUDIED)
            wider.setdefault(many, []).append(found.mean(1).numpy())
        if adaptive:
            generator = torch.Generator().manual_seed(0)
            model.configure_inference(steps=last, num_candidates=1, reject_energy_increase=True)
            each = [_think(model, windows, i, generator) for i in window_batches(windows, STUDIED)]
            careful.append(torch.cat([after[-1] for after, *_ in each]).numpy())
            used.append(float(torch.cat([d.steps_used for _, d, _ in each]).float().mean()))
        model.configure_inference(**asdict(how))
    by_steps = np.stack(longer, axis=1)  # (N + 1, models, windows)
    return {
        "steps": how.steps,
        "longer": [mean_ci(x) | {"against": _against(x, by_steps[how.steps])} for x in by_steps],
        "wider": [
            {"candidates": m, **mean_ci(np.stack(x))}
            | {"against": _against(np.stack(x), np.stack(wider[1]))}
            for m, x in wider.items()
        ],
        # As long as the energy falls, token by token.
        "adaptive": {
            **mean_ci(np.stack(careful)),
            "against": _against(np.stack(careful), by_steps[how.steps]),
            "steps_used": used,
        }
        if adaptive
        else None,
        "energies": _energies(models, windows) if models[0].has_energy else None,
    }


def _think(
    model: Any, windows: TokenWindows, index: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, DescentResult, torch.Tensor]:
    """Surprisal of windows after each step (N + 1, B), the descent, and each token's (B, S)."""
    tokens = windows.gather(index)["tokens"]
    with torch.no_grad():
        found = model.descend(model.observe(tokens[:, :-1]), generator)
    losses = torch.stack([cross_entropy(x, tokens[:, 1:]) for x in found.path])
    return losses.mean(2).cpu(), found, losses[-1].cpu()


def _against(losses: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Mean of losses less others (models, windows): the same models, on the same windows."""
    found = mean_ci(losses - others)
    return {"diff": found["mean"], "ci95": found["ci95"]}


def _energies(models: Sequence[Any], windows: TokenWindows) -> dict[str, Any]:
    """What the energy of a guess tells, once it is made and on the way.

    Returns ``rank_correlation``, Spearman's, of each model's energies and surprisals over tokens,
    ``descent``, mean energies (N + 1) above the last of the easiest and the hardest third of them,
    and ``tokens`` of a window, with their energy and surprisal, both of the first model.
    """
    correlations, descent, shown = [], {}, []
    for k, model in enumerate(models):
        generator = torch.Generator().manual_seed(0)
        found = [
            _think(model, windows, index, generator) for index in window_batches(windows, STUDIED)
        ]
        energies = torch.cat([one.energies.cpu() for _, one, _ in found], dim=1)
        losses = torch.cat([each for *_, each in found])
        flat = energies.flatten(1)
        rank: Any = spearmanr(flat[-1], losses.flatten())
        correlations.append(float(rank.statistic))
        if k == 0:
            order, third = losses.flatten().argsort(), losses.numel() // 3
            thirds = (("easy tokens", order[:third]), ("hard tokens", order[-third:]))
            descent = {
                name: (flat[:, chosen].mean(1) - flat[-1, chosen].mean()).tolist()
                for name, chosen in thirds
            }
            ids = windows.gather(torch.tensor([0]))["tokens"][0, 1:].tolist()
            shown = [
                {"token": model.tokenizer.decode([i]), "energy": e, "surprisal": loss}
                for i, e, loss in zip(
                    ids, energies[-1, 0].tolist(), losses[0].tolist(), strict=True
                )
            ]
    return {"rank_correlation": correlations, "descent": descent, "tokens": shown}


def test_time_compute_table(result: dict[str, Any]) -> str:
    """Markdown: how much is gained by steps and by guesses; "" without a model that thinks."""
    rows = []
    for entry in result["entries"]:
        if (found := entry.get("thinking")) is None:
            continue
        steps = [(f"{k} steps", one) for k, one in enumerate(found["longer"]) if k in SHOWN]
        guesses = [(f"best of {one['candidates']}", one) for one in found["wider"]]
        stops = []
        if one := found["adaptive"]:
            stops = [(f"while the energy falls, {np.mean(one['steps_used']):.1f} steps", one)]
        for what, one in steps + guesses + stops:
            rows.append(
                (
                    entry["name"],
                    what,
                    f"{math.exp(one['mean']):.3f}",
                    format_interval(one["against"]["diff"], one["against"]["ci95"], signed=True),
                )
            )
    if not rows:
        return ""
    header = ("model", "thinking", "perplexity", "nats, less with its own steps and one guess")
    return f"\n{markdown(header, rows, left=2)}"


def shade_by_energy(tokens: Sequence[dict[str, Any]]) -> rich.text.Text:
    """A window's tokens, the redder the higher their energy."""
    energies = np.array([one["energy"] for one in tokens])
    ranks = energies.argsort().argsort() / max(len(energies) - 1, 1)
    shown = rich.text.Text()
    for one, rank in zip(tokens, ranks, strict=True):
        shade = round(255 * (1 - rank))
        shown.append(one["token"], style=f"black on rgb(255,{shade},{shade})")
    return shown
