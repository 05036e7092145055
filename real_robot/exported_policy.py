"""Files of exported policies: writing, loading, and comparison with the policy.

A file ``NAME.onnx`` runs in ONNX Runtime, and ``NAME.pt2`` in AOTInductor, from Python or C++.
``NAME.json`` beside it describes the inputs and outputs.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.io.atomic_write import atomic_write
from ebt_policy.real_robot.policy_program import PolicyProgram

TOLERANCE = 1e-4  # largest difference from the policy, as a fraction of the actions' range
CHECKS, REPEATS = 3, 50
Run = Callable[..., Sequence[Tensor]]


class ExportFormat(StrEnum):
    """The values of ``format``."""

    ONNX = "onnx"
    AOTI = "aoti"

    @property
    def suffix(self) -> str:
        """The suffix of its files."""
        return ".onnx" if self is ExportFormat.ONNX else ".pt2"

    def check_packages(self) -> None:
        """Raise a `ConfigError` if a package is missing."""
        needed = ("onnx", "onnxscript", "onnxruntime") if self is ExportFormat.ONNX else ()
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            raise ConfigError(
                f"format=onnx needs {', '.join(missing)}: pip install {' '.join(missing)}."
            )


def write_program(program: PolicyProgram, file: Path, form: ExportFormat) -> None:
    """Write a program and its description.

    Args:
        file: file with the suffix of the format, in an existing folder.
    """
    exported = program.export()
    partial = file.with_name(f".{file.stem}-partial{form.suffix}")
    try:
        if form is ExportFormat.ONNX:
            onnx = torch.onnx.export(
                exported, program.example(), dynamo=True, optimize=True, verbose=False,
                input_names=[port.name for port in program.inputs],
                output_names=[port.name for port in program.outputs],
            )  # fmt: skip
            assert onnx is not None
            onnx.save(partial)
        else:
            torch._inductor.aoti_compile_and_package(exported, package_path=str(partial))
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    ports = {name: [asdict(p) for p in getattr(program, name)] for name in ("inputs", "outputs")}
    description = {"format": form.value, **ports, "shape": asdict(program.shape)}
    atomic_write(file.with_suffix(".json"), json.dumps(description, indent=1) + "\n")


def load_program(file: Path, *, threads: int | None = None) -> Run:
    """Return an exported program as a function of CPU tensors, or CUDA tensors for AOTInductor.

    Args:
        file: file that `write_program` has written.
        threads: number of threads of ONNX Runtime; None for its default.
    """
    if file.suffix == ExportFormat.AOTI.suffix:
        return torch._inductor.aoti_load_package(str(file))
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    if threads is not None:
        session_options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        file, session_options, providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def largest_difference(program: PolicyProgram, run: Run) -> float:
    """Return the largest difference of actions from the program, as a fraction of their range."""
    scale = program.action_range
    differences = []
    for seed in range(CHECKS):
        example = program.example(seed)
        with torch.no_grad():
            expected = program(*example)[0]
        differences.append(float(((run(*example)[0] - expected).abs() / scale).max()))
    return max(differences)


def median_latency_ms(run: Run, inputs: Sequence[Tensor], repeats: int = REPEATS) -> float:
    """Return the median time of a prediction, ms."""
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            outputs = run(*inputs)
            float(outputs[0].flatten()[0])  # waits for a GPU
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def describe(file: Path) -> dict[str, Any]:
    """Return the description of an exported program."""
    return json.loads(file.with_suffix(".json").read_text())
