"""Latency of exported policies: ``python -m benchmarks.export_speed [rounds=200]``.

It times predictions of one chunk at batch size 1 on one thread, with five committed actions and
limits: eager and compiled in Python, in ONNX Runtime, and in AOTInductor. All are timed in turns
within one run. Medians are stored in ``docs/results/export_speed.json``, with the largest
difference of the actions from the eager ones as a fraction of their range. Weights are untrained,
because speed does not depend on them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import device_name
from benchmarks.results import store_json
from benchmarks.speed import interleaved_timing, make
from benchmarks.tables.policies import export_speed
from ebt_policy.energy.sampling import PredrawnNoise
from ebt_policy.policies import ChunkConstraints, Policy
from ebt_policy.real_robot.exported_policy import (
    ExportFormat,
    export_program,
    load_program,
)
from ebt_policy.real_robot.limits import Limits
from ebt_policy.real_robot.policy_program import PolicyProgram
from ebt_policy.real_robot.robots import load_robot
from ebt_policy.real_robot.safety import ChunkProjection, Motion

EIGHT = {"num_candidates": 8}
CHUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "energy, 2 steps, lowest energy of 8": ("ebt", {"steps": 2, **EIGHT}),
    "flow matching, 2 steps, line integral of 8": (
        "flow_matching", {"steps": 2, "select": "line_integral", **EIGHT},
    ),
    "flow matching, 2 steps, one sample": ("flow_matching", {"steps": 2}),
    "DDIM-10, one sample": ("diffusion", {"scheduler": "ddim", "steps": 10}),
}  # fmt: skip
NUM_COMMITTED = 5


def python_prediction(
    policy: Policy, inputs: dict[str, torch.Tensor], limits: Limits
) -> Callable[[], Any]:
    """Return a function that predicts a chunk in Python, with the inputs of the program."""
    prefix = inputs["prefix"][:, :NUM_COMMITTED]
    motion = Motion(*inputs["motion"].numpy())
    dt = float(inputs["tick_s"])

    def predict() -> Any:
        project = ChunkProjection(limits, limits.bounds(), motion, dt, NUM_COMMITTED)
        return policy.predict_chunk(
            {"obs": inputs["state"]},
            constraints=ChunkConstraints(prefix=prefix, project=project),
            generator=PredrawnNoise(inputs["noise"]),
        )

    return predict


def main() -> None:
    options = parse_options(rounds=200)
    torch.set_num_threads(1)
    limits = load_robot("sim_push_t").safety
    jobs, differences = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, (model, inference)) in enumerate(CHUNKS.items()):
            policies = [make(model, "xs", torch.device("cpu")) for _ in range(2)]
            for policy in policies:
                policy.eval().requires_grad_(False).configure_inference(**inference)
            policies[1].compile_prediction()
            program = PolicyProgram(policies[0])
            inputs = dict(
                zip((port.name for port in program.inputs), program.example(), strict=True)
            )
            inputs["prefix_length"] = torch.tensor(NUM_COMMITTED)
            inputs["limits"] = torch.stack(list(limits.bounds()))
            for label, policy in zip(("eager", "compiled"), policies, strict=True):
                jobs[f"{name} | {label}"] = python_prediction(policy, inputs, limits)
            for label, export_format in (
                ("ONNX Runtime", ExportFormat.ONNX), ("AOTInductor", ExportFormat.AOTI),
            ):  # fmt: skip
                file = Path(folder) / f"{index}{export_format.suffix}"
                differences[f"{name} | {label}"] = export_program(program, file, export_format)
                run = load_program(file, threads=1)
                jobs[f"{name} | {label}"] = lambda run=run, inputs=inputs: run(*inputs.values())
            print(f"exported: {name}", flush=True)
        times = interleaved_timing(jobs, options.rounds)
    result = {
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "difference": differences,
        "threads": 1,
        "torch": torch.__version__,
        "device": device_name(),
        "command": command_line("export_speed"),
    }
    store_json("export_speed", result)
    print(export_speed(result))


if __name__ == "__main__":
    main()
