"""Synthetic evaluation results of policies, and the figures made from them."""

from __future__ import annotations

import json

import numpy as np

from ebt_policy.evaluation import figures
from ebt_policy.policies.figures import (
    chunk_picture,
    energy_landscape,
    energy_over_descent,
    score_histogram,
)
from ebt_policy.policies.metrics import compare, entry_summary

INFO = {
    "task": "push_t",
    "model": "ebt",
    "params": 341_000,
    "objective": "flow",
    "steps": 4,
    "demos": 206,
    "train_seed": 0,
    "train_steps": 15_000,
    "train_seconds": 900.0,
    "device": "cpu",
}


def make_episodes(scores, seeds=None, latency: float | None = 10.0):
    seeds = range(len(scores)) if seeds is None else seeds
    return [
        {
            "seed": seed,
            "score": score,
            "success": score >= 1.0,
            "length": 16,
            "video": None,
            "chunks": [
                {
                    "step": 8 * i,
                    "energy": -1.0,
                    "grad_norm": 0.1,
                    "steps_used": 4 if latency is not None else None,
                    "latency_ms": latency,
                }
                for i in range(2)
            ],
        }
        for seed, score in zip(seeds, scores, strict=True)
    ]


def make_entry(name, scores, seeds=None, **changes):
    episodes = make_episodes(scores, seeds)
    return entry_summary(name, INFO | changes, episodes, f"eval {name}"), episodes


def all_figures(tmp_path, entries):
    log = tmp_path / "train.jsonl"
    lines = [{"step": i, "loss": 1 / (i + 1), "val_score": i / 200} for i in range(150)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 150, "lo')
    x, y = np.linspace(-1, 1, 12), np.linspace(-1, 1, 9)
    bowl = x[None] ** 2 + y[:, None] ** 2
    path = np.array([[0.9, 0.9], [0.4, 0.4], [0.1, 0.1]])
    rng = np.random.default_rng(0)
    frame = np.full((32, 32, 3), 255, dtype=np.uint8)
    chunks, energies = rng.uniform(0, 512, (4, 16, 2)), rng.normal(size=4)
    return {
        "forest": figures.forest_plot(compare(entries), ("score", "success")),
        "histogram": score_histogram(entries),
        "descent": energy_over_descent({"a": rng.normal(size=(5, 8)), "b": [[2.0], [1]]}),
        "landscape": energy_landscape(x, y, bowl, path, path[-1:], ("u", "v")),
        "descents": energy_landscape(x, y, bowl, [path, -path], np.empty((0, 2)), ("u", "v")),
        "training": figures.training_curve(log),
        "chunks": chunk_picture(frame, chunks, int(energies.argmin()), energies),
    }
