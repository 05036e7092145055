"""Files of exported policies: export, loading, and comparison with the policy.

A file ``NAME.onnx`` runs in ONNX Runtime, and ``NAME.pt2`` in AOTInductor, from Python or C++.
``NAME.onnx.json`` or ``NAME.pt2.json`` describes the inputs and outputs.
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

import torch
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.io.atomic_write import atomic_path, atomic_write
from ebt_policy.real_robot.policy_program import PolicyProgram

TOLERANCE = 1e-4  # largest difference from the policy, as a fraction of the actions' range
CHECKS, REPEATS = 4, 50
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


def export_program(program: PolicyProgram, file: Path, export_format: ExportFormat) -> float:
    """Write a program and its description, and compare the file with the program.

    Args:
        program: the program.
        file: new file with the suffix of the format, in an existing folder.
        export_format: format of the file.

    Returns:
        The largest difference of the actions, as a fraction of their range.

    Raises:
        ConfigError: the difference is larger than `TOLERANCE`; nothing is written.
    """
    exported = program.export()
    with atomic_path(file) as partial:
        if export_format is ExportFormat.ONNX:
            onnx = torch.onnx.export(
                exported, program.example(), dynamo=True, optimize=True, verbose=False,
                input_names=[port.name for port in program.inputs],
                output_names=[port.name for port in program.outputs],
            )  # fmt: skip
            assert onnx is not None
            onnx.save(partial)
        else:
            torch._inductor.aoti_compile_and_package(exported, package_path=str(partial))
        difference = largest_difference(program, load_program(partial))
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the exported program differs from the policy by {difference:.1e} of the range of "
                f"the actions, more than {TOLERANCE:.0e}; nothing was written, please report it."
            )
        ports = {
            name: [asdict(port) for port in getattr(program, name)]
            for name in ("inputs", "outputs")
        }
        description = {"format": export_format.value, **ports, "shape": asdict(program.shape)}
        atomic_write(description_file(file), json.dumps(description, indent=1) + "\n")
    return difference


def description_file(file: Path) -> Path:
    """Return the file that describes the inputs and outputs of an exported program."""
    return file.with_name(f"{file.name}.json")


def load_program(file: Path, *, threads: int | None = None) -> Run:
    """Return an exported program as a function of CPU tensors, or CUDA tensors for AOTInductor.

    Args:
        file: file that `export_program` has written.
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
    """Return the largest difference of actions from the program, as a fraction of their range.

    Half of the inputs have committed actions and limits that the chunk exceeds.
    """
    differences = []
    for seed in range(CHECKS):
        inputs = program.example(seed, constrained=seed % 2 == 1)
        with torch.no_grad():
            expected = program(*inputs)[0]
        differences.append(((run(*inputs)[0] - expected).abs() / program.action_range).max())
    return float(torch.stack(differences).max())  # NaN if any value is NaN


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
