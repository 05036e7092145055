"""Latency of a chunk for every policy, size, batch and mode.

``eager`` and ``compiled`` call `Policy.predict_chunk`, as a control loop does, and copy the actions
to the host. ``graph`` replays one CUDA graph of the compiled prediction. ``constrained`` adds a
committed prefix and a robot's limits. Weights are untrained, because latency does not depend on
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.device import DEVICE
from benchmarks.gpu.card import floor_seconds, seconds_of
from benchmarks.gpu.results import Case
from benchmarks.speed import CHUNKS, SHAPE, make
from ebt_policy.evaluation.flops import count_work
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.policies import Chunk, Policy
from ebt_policy.policies.chunk_constraints import ChunkConstraints
from ebt_policy.real_robot.safety import ChunkProjection, Limits, Motion

PREDICTORS = (  # names in `speed.CHUNKS`, in order of priority
    "energy, 2 steps, best of 8", "DDPM-100", "flow matching, 2 steps", "energy, 2 steps",
    "energy, 4 steps, best of 8", "DDIM-10", "flow matching, 4 steps", "energy, 4 steps",
)  # fmt: skip
SIZES = ("m", "xs", "s", "l")  # in order of priority
BATCHES = (1, 64)
PREFIX = 4  # committed actions
SECONDS = 75.0  # maximum duration of a case, mostly compilation
ROBOT_DT = 0.1
LIMITS = Limits(
    ("x", "y"), np.zeros(2), np.full(2, 512.0), np.full(2, 200.0), np.full(2, 1000.0),
    np.full(2, np.inf),
)  # fmt: skip


def cases(rates: dict[str, dict[str, Any]], toy: bool) -> list[Case]:
    """Return the cases, the most important first."""
    sizes, batches, rounds = (("4xs",), (1,), 1) if toy else (SIZES, BATCHES, 100)
    result = []
    for batch, size, predictor in product(batches, sizes, PREDICTORS):
        constraints = (False, True) if predictor.startswith("energy") and batch == 1 else (False,)
        for constrained in constraints:
            name = f"{size}, batch {batch}, {predictor}{', constrained' * constrained}"
            job = partial(measure, size, batch, predictor, constrained, rates, rounds)
            result.append(Case(name, job, SECONDS))
    return result


def measure(
    size: str, batch: int, predictor: str, constrained: bool,
    rates: dict[str, dict[str, Any]], rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Return latency percentiles by mode, ms, and the ratio of the best median to the floor."""
    model, options = CHUNKS[predictor]
    shape = {**SHAPE, "max_prefix_len": PREFIX} if constrained else SHAPE
    policy = make(model, size, DEVICE, shape=shape).eval().requires_grad_(False)
    policy.configure_inference(**options)
    obs = {"obs": torch.rand(batch, 2, 20) * 512}
    constraints = robot_constraints(obs["obs"]) if constrained else ChunkConstraints()
    floor_ms = 1e3 * floor_seconds(
        count_work(lambda: policy.predict_chunk(obs, constraints=constraints)), rates, "fp32"
    )

    def times(chunk: Callable[..., Chunk]) -> dict[str, float]:
        seconds = seconds_of(lambda: chunk(obs, constraints=constraints).actions.cpu(), rounds)
        return {f"{name}_ms": 1e3 * value for name, value in percentiles(seconds).items()}

    runs = {"eager": times(policy.predict_chunk)}
    policy.compile_prediction()
    runs["compiled"] = times(policy.predict_chunk)
    result: dict[str, Any] = {"runs": runs, "floor_ms": floor_ms}
    if DEVICE.type == "cuda":
        try:
            runs["graph"] = times(graphed(policy, obs, constraints))
        except RuntimeError as error:  # Some operation cannot be captured.
            result["graph_failed"] = str(error).splitlines()[0]
    best = min(run["p50_ms"] for run in runs.values())
    return {**result, "best_ms": best, "times_floor": best / floor_ms}


def robot_constraints(obs: torch.Tensor) -> ChunkConstraints:
    """Return a committed prefix at the agent's position, and limits, as a planner makes them."""
    start = obs[:, -1:, 18:20]
    motion = Motion.at_rest(start[0, 0].numpy())
    return ChunkConstraints(
        prefix=start.expand(-1, PREFIX, -1),
        project=ChunkProjection(LIMITS, LIMITS.bounds(DEVICE), motion, ROBOT_DT, PREFIX),
    )


def graphed(
    policy: Policy, obs: dict[str, torch.Tensor], constraints: ChunkConstraints
) -> Callable[..., Chunk]:
    """Return a function that predicts by replaying one CUDA graph.

    It takes new observations of the same shape; other arguments are ignored.
    """
    static_obs = {key: value.to(DEVICE) for key, value in obs.items()}
    if constraints.prefix is not None:
        constraints = replace(constraints, prefix=constraints.prefix.to(DEVICE))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            policy.predict_on_device(static_obs, constraints=constraints)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chunk = policy.predict_on_device(static_obs, constraints=constraints)

    def replay(new: dict[str, torch.Tensor], **_: Any) -> Chunk:
        for key, value in new.items():
            static_obs[key].copy_(value, non_blocking=True)
        graph.replay()
        return chunk

    return replay
