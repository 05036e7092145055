"""The stored records of the golden cases.

    python tests/golden_records.py  # rewrites tests/golden

Rewrite them only if a change of the numbers is intended or a case is added. Later code must
reproduce the records, load the stored checkpoints and resume the stored runs.
`python tests/golden_records.py CASE ...` writes only the named cases.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from golden_cases import (
    AUTOENCODER,
    CASES,
    GUESSES,
    INTERRUPTED,
    STEPS,
    STORED,
    UPDATES,
    kind_of,
    run_of,
)
from golden_data import make_data, working_in
from golden_predictions import Predictions, losses, predict, train
from torch import Tensor

from ebt_policy.models.base import checkpoint_folder

GOLDEN = Path(__file__).parent / "golden"
RECORDS, PREDICTIONS = GOLDEN / "records.json", GOLDEN / "predictions.npz"
CHECKPOINTS, RUNS = GOLDEN / "checkpoints", GOLDEN / "runs"


VECTOR_FLAGS = ("sse", "avx", "fma", "amx", "f16c")  # CPU flags by which libraries choose kernels


def fingerprint() -> dict[str, str]:
    """Return the versions and CPU properties that decide how numbers are rounded."""
    model = platform.processor()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if ":" in line]
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        names = ("vendor_id", "cpu family", "model", "model name")
        model = ", ".join(fields[name] for name in names if name in fields) or model
        flags = sorted(
            flag for flag in fields.get("flags", "").split() if flag.startswith(VECTOR_FLAGS)
        )
        model += f", {crc32(' '.join(flags).encode()):08x}"
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": model,
    }


def to_vector(predictions: Predictions) -> tuple[np.ndarray, dict[str, str]]:
    """Return the tensors of predictions as one array, and their shapes in the same order."""
    tensors = {key: value for key, value in predictions.items() if isinstance(value, Tensor)}
    shapes = {key: " ".join(map(str, value.shape)) for key, value in tensors.items()}
    return np.concatenate([value.float().numpy().ravel() for value in tensors.values()]), shapes


def split_vector(array: np.ndarray, shapes: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the arrays that `to_vector` joined, by name."""
    sizes = {key: [int(size) for size in shape.split()] for key, shape in shapes.items()}
    arrays = np.split(array, np.cumsum([int(np.prod(shape)) for shape in sizes.values()])[:-1])
    return {key: x.reshape(shape) for x, (key, shape) in zip(arrays, sizes.items(), strict=True)}


def texts(predictions: Predictions) -> dict[str, str]:
    return {key: value for key, value in predictions.items() if isinstance(value, str)}


def depends_on_rounding(name: str, key: str) -> bool:
    """Return whether rounding can change a prediction by more than a rounding error.

    A unit of a long sequence may select another of two nearly equal candidates, or stop one step
    earlier. A decoded byte may differ by one.
    """
    setting, _, field = key.partition(", ")
    sequence = kind_of(name) in ("text", "video")
    return field == "bytes" or (sequence and setting in {**GUESSES, **STEPS})


class Records:
    """Stored records of all cases.

    Attributes:
        made_by: `fingerprint` of the machine.
        cases: name -> ``losses`` as hexadecimal text, ``shapes`` of the predictions and ``texts``.
        arrays: name -> predictions as one vector of `to_vector`.
    """

    def __init__(self, made_by: dict[str, str], cases: dict[str, Any], arrays: dict[str, Any]):
        self.made_by, self.cases, self.arrays = made_by, cases, arrays

    @classmethod
    def read(cls) -> Records:
        stored = json.loads(RECORDS.read_text())
        with np.load(PREDICTIONS) as arrays:
            return cls(stored["made_by"], stored["cases"], dict(arrays))

    def write(self) -> None:
        lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in self.cases.items()]
        made_by, cases = json.dumps(self.made_by, indent=1), ",\n".join(lines)
        RECORDS.write_text(f'{{"made_by": {made_by},\n"cases": {{\n{cases}\n}}}}\n')
        arrays: dict[str, Any] = {name: self.arrays[name] for name in self.cases}
        np.savez_compressed(PREDICTIONS, **arrays)

    def add(self, name: str, losses: list[float], predictions: Predictions) -> None:
        self.arrays[name], shapes = to_vector(predictions)
        assert np.isfinite(self.arrays[name]).all() and np.isfinite(losses).all(), name
        hexadecimal = [loss.hex() for loss in losses]
        self.cases[name] = {"losses": hexadecimal, "shapes": shapes, "texts": texts(predictions)}

    def losses(self, name: str) -> list[float]:
        return [float.fromhex(loss) for loss in self.cases[name]["losses"]]

    def predictions(self, name: str) -> dict[str, np.ndarray]:
        return split_vector(self.arrays[name], self.cases[name]["shapes"])


def prepare(folder: Path) -> None:
    """Write the training data into an empty folder, with the stored autoencoder."""
    make_data(folder)
    if (stored := CHECKPOINTS / "autoencoder/kl").is_dir():
        shutil.copytree(stored, folder / AUTOENCODER)


def write(names: list[str]) -> None:
    """Write the records of the named cases, or of all cases if ``names`` is empty."""
    selected = [name for name in CASES if name in names or not names]
    records = Records.read() if names else Records(fingerprint(), {}, {})
    if records.made_by != fingerprint():
        raise SystemExit(f"the records come from {records.made_by}; rewrite all of them.")
    if not names:
        for folder in (CHECKPOINTS, RUNS):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        prepare(Path.cwd())
        for name in selected:
            case, run = CASES[name], train(CASES[name].arguments, run_of(name))
            records.add(name, losses(run), predict(kind_of(name), run, case.inference))
            if name in STORED:
                _store(checkpoint_folder(run), CHECKPOINTS / name, "trainer_state.pt")
            if name == "autoencoder/kl" and not names:
                shutil.copytree(CHECKPOINTS / name, AUTOENCODER)
        for name, arguments in {} if names else INTERRUPTED.items():
            run = train(arguments, run_of(name))
            records.add(name, losses(run), predict(kind_of(name), run, {}))
            shutil.rmtree(checkpoint_folder(run))
            lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
            (run / "log.jsonl").write_text("".join(lines[:UPDATES]))
            _store(run, RUNS / kind_of(name))
    records.cases = {n: records.cases[n] for n in [*CASES, *INTERRUPTED] if n in records.cases}
    records.write()


def _store(source: Path, to: Path, *without: str) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(*without))


if __name__ == "__main__":
    write(sys.argv[1:])
