"""Speed of policies: ``python -m benchmarks.speed [size=xs] [rounds=200]``.

It times training updates at batch 128 and predictions of one chunk at batch size 1, both eager and
compiled. All are timed in turns within one run, so that other load on the machine affects all
equally. Medians and their ratios are stored in ``docs/results/speed.json``. Weights are untrained,
because speed does not depend on them.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, device_name, synchronize
from benchmarks.training import compose_config
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.models.base import Model
from ebt_policy.policies import Policy, build_policy

BATCH = 128
SHAPE = {
    "obs_dim": 20,
    "action_dim": 2,
    "horizon": 16,
    "n_obs_steps": 2,
    "n_action_steps": 8,
    "relative_to": [18, 19],
}
CHUNKS = {
    "DDPM-100": ("diffusion", {"scheduler": "ddpm", "steps": 100}),
    "DDIM-10": ("diffusion", {"scheduler": "ddim", "steps": 10}),
    "DDIM-4": ("diffusion", {"scheduler": "ddim", "steps": 4}),
    "DDIM-2": ("diffusion", {"scheduler": "ddim", "steps": 2}),
    "flow matching, 2 steps": ("flow_matching", {"steps": 2}),
    "flow matching, 4 steps": ("flow_matching", {"steps": 4}),
    "flow matching, 8 steps": ("flow_matching", {"steps": 8}),
    "flow matching, 2 steps, medoid of 8": (
        "flow_matching", {"steps": 2, "num_candidates": 8, "select": "medoid"},
    ),
    "flow matching, 2 steps, densest of 8": (
        "flow_matching", {"steps": 2, "num_candidates": 8, "select": "density"},
    ),
    "flow matching, 2 steps, line integral of 8": (
        "flow_matching", {"steps": 2, "num_candidates": 8, "select": "line_integral"},
    ),
    "DDIM-4, densest of 8": (
        "diffusion", {"scheduler": "ddim", "steps": 4, "num_candidates": 8, "select": "density"},
    ),
    "energy, 2 steps": ("ebt", {"steps": 2, "num_candidates": 1}),
    "energy, 2 steps, best of 8": ("ebt", {"steps": 2, "num_candidates": 8}),
    "energy, 3 steps, best of 4": ("ebt", {"steps": 3, "num_candidates": 4}),
    "energy, 4 steps": ("ebt", {"steps": 4, "num_candidates": 1}),
    "energy, 4 steps, best of 8": ("ebt", {"steps": 4, "num_candidates": 8}),
}  # fmt: skip
console = Console()


def make(
    model: str,
    size: str,
    device: torch.device,
    *overrides: str,
    shape: Mapping[str, Any] = SHAPE,
) -> Policy:
    """Return an untrained policy with the default configuration.

    Args:
        model: name of the policy.
        size: name of a size.
        overrides: further overrides of ``ebt_policy.train``.
        shape: shapes of observations and actions.
    """
    config = compose_config(f"model={model}", f"size={size}", *overrides)
    limits = {"obs": torch.rand(64, 20) * 512, "action": torch.rand(64, 2) * 512}
    torch.manual_seed(0)
    return build_policy({**config, "shape": dict(shape)}, Normalizer.fit(limits)).to(device)


def update(policy: Policy, device: torch.device) -> Callable[[], None]:
    """Return a function that makes one training update of a policy."""
    batch = {
        "obs": torch.rand(BATCH, 2, 20, device=device) * 2 - 1,
        "action": torch.rand(BATCH, 16, 2, device=device) * 2 - 1,
    }
    return update_on(policy, batch)


def update_on(model: Model, batch: dict[str, Any]) -> Callable[[], None]:
    """Return a function that makes one training update of a model on a normalised batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss, _ = model(model.with_noise(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def interleaved_timing(
    jobs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Run the jobs in turns, after a warm-up, and return the durations of each, ms."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        for _ in range(3):
            job()
    for _ in range(rounds):
        for name, job in jobs.items():
            synchronize()
            start = time.perf_counter()
            job()
            synchronize()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def training(size: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the median durations of updates, ms, and their ratios."""
    jobs: dict[str, Callable[[], None]] = {}
    models = {
        "energy (flow)": ("ebt", []),
        "energy (s1)": ("ebt", ["objective=s1"]),
        "diffusion": ("diffusion", []),
        "flow matching": ("flow_matching", []),
    }
    for name, (model, overrides) in models.items():
        jobs[f"{name}, eager"] = update(make(model, size, device, *overrides), device)
        policy = make(model, size, device, *overrides)
        policy.compile()
        jobs[f"{name}, compiled"] = update(policy, device)
    medians = {k: statistics.median(v) for k, v in interleaved_timing(jobs, rounds).items()}
    ratio = {
        f"{name}: {label}": medians[f"{a}"] / medians[f"{b}"]
        for name, label, a, b in [
            ("energy (flow)", "compiled over eager",
             "energy (flow), compiled", "energy (flow), eager"),
            ("energy (flow)", "over diffusion, both compiled",
             "energy (flow), compiled", "diffusion, compiled"),
            ("energy (flow)", "over diffusion, both eager",
             "energy (flow), eager", "diffusion, eager"),
            ("energy (s1)", "compiled over eager",
             "energy (s1), compiled", "energy (s1), eager"),
            ("energy (s1)", "over diffusion, both compiled",
             "energy (s1), compiled", "diffusion, compiled"),
        ]
    }  # fmt: skip
    return {"batch": BATCH, "update_ms": medians, "ratio": ratio}


def inference(size: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the latencies of a chunk at batch size 1, ms, and the speed-up over DDPM-100."""
    obs = {"obs": torch.rand(1, 2, 20) * 512}
    result: dict[str, Any] = {}
    for mode in ("eager", "compiled"):
        jobs: dict[str, Callable[[], Any]] = {}
        for name, (model, changes) in CHUNKS.items():
            policy = make(model, size, device).eval().requires_grad_(False)
            policy.configure_inference(**changes)
            if mode == "compiled":
                policy.compile_prediction()
            jobs[name] = lambda policy=policy: policy.predict_chunk(obs).actions.cpu()
        latency = {k: percentiles(v) for k, v in interleaved_timing(jobs, rounds).items()}
        result[mode] = {
            name: value | {"ddpm_100_takes": latency["DDPM-100"]["p50"] / value["p50"]}
            for name, value in latency.items()
        }
    return result


def main() -> None:
    options = parse_options(size="xs", rounds=200, output="docs/results/speed.json")
    size, rounds, target, device = options.size, options.rounds, Path(options.output), DEVICE
    result = {
        "command": command_line("speed"),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": size,
        "params": make("ebt", size, device).parameter_count,
        "inference": inference(size, rounds, device),
        "training": training(size, rounds, device),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    for mode, latency in result["inference"].items():
        table = Table(f"chunk at batch 1, {mode}", "p50 ms", "p99 ms", "speed-up over DDPM-100")
        for name, value in latency.items():
            times = f"{value['p50']:.1f}", f"{value['p99']:.1f}"
            table.add_row(name, *times, f"{value['ddpm_100_takes']:.1f}x")
        console.print(table)
    table = Table("training update, batch 128", "ms")
    for name, value in result["training"]["update_ms"].items():
        table.add_row(name, f"{value:.1f}")
    for name, value in result["training"]["ratio"].items():
        table.add_row(name, f"{value:.2f}x")
    console.print(table)
    console.print(f"written to {target}")


if __name__ == "__main__":
    main()
