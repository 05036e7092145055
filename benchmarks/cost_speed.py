"""Latency of chunks with costs: ``python -m benchmarks.cost_speed [rounds=200]``.

It times predictions of one chunk with two built-in costs and without, at batch size 1 on one
thread, in turns within one run. The obstacle moves before each prediction. Medians and their ratios
are stored in ``docs/results/cost_speed.json``. Weights are untrained, because speed does not depend
on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, device_name
from benchmarks.results import store_json
from benchmarks.speed import interleaved_timing, make
from benchmarks.tables.policies import cost_speed
from ebt_policy.policies import ChunkConstraints, KeepIn, KeepOut, Policy

EIGHT = {"num_candidates": 8}
CHUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "energy, 2 steps, lowest energy of 8": ("ebt", {"steps": 2, **EIGHT}),
    "energy, 4 steps, lowest energy of 8": ("ebt", {"steps": 4, **EIGHT}),
    "flow matching, 2 steps, density vote of 8": ("flow_matching", {"steps": 2, **EIGHT}),
    "DDIM-4, density vote of 8": ("diffusion", {"scheduler": "ddim", "steps": 4, **EIGHT}),
}


def prediction(policy: Policy, *, with_costs: bool) -> Callable[[], Any]:
    """Return a function that predicts one chunk."""
    obs = {"obs": torch.rand(1, 2, 20, device=DEVICE) * 512}
    generator = torch.Generator().manual_seed(0)
    obstacle = KeepOut([256.0, 256.0], 40.0, margin=5.0)
    costs = [obstacle, KeepIn([0.0, 0.0], [512.0, 512.0])]

    def predict() -> Any:
        constraints = None
        if with_costs:
            obstacle.center = obstacle.center + 0.1
            constraints = ChunkConstraints(costs=costs)
        return policy.predict_chunk(obs, constraints=constraints, generator=generator)

    return predict


def main() -> None:
    options = parse_options(rounds=200)
    torch.set_num_threads(1)
    times: dict[str, dict[str, list[float]]] = {}
    for mode in ("eager", "compiled"):
        jobs = {}
        for name, (model, inference) in CHUNKS.items():
            policy = make(model, "xs", DEVICE).eval().requires_grad_(False)
            policy.configure_inference(**inference)
            if mode == "compiled":
                policy.compile_prediction()
            timed = partial(prediction, policy)
            jobs[f"{name} | plain"] = timed(with_costs=False)
            jobs[f"{name} | costs"] = timed(with_costs=True)
        times[mode] = interleaved_timing(jobs, options.rounds)
    result = {
        "ms": {
            mode: {name: statistics.median(values) for name, values in rows.items()}
            for mode, rows in times.items()
        },
        "costs": ["keep_out", "keep_in"],
        "threads": 1,
        "torch": torch.__version__,
        "device": device_name(),
        "command": command_line("cost_speed"),
    }
    store_json("cost_speed", result)
    print(cost_speed(result))


if __name__ == "__main__":
    main()
