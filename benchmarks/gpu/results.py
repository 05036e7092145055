"""Results of a section on one card; every case is stored as soon as it is measured."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ebt_policy
from benchmarks.device import DEVICE, device_name
from ebt_policy.io.atomic_write import atomic_write


def card_folder(output: Path) -> Path:
    """Return the folder of this card's results, such as ``nvidia-h200`` for ``NVIDIA H200``."""
    return output / re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")


class TimeBudget:
    """Wall-clock budget of a whole benchmark.

    Args:
        minutes: duration of the budget, which starts now.
    """

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: key of the case in the results of the section.
        measure: returns the result as JSON values.
        seconds: maximum duration; a case that does not fit in the remaining time is not started.
    """

    name: str
    measure: Callable[[], dict[str, Any]]
    seconds: float


class SectionResults:
    """The file of a section, ``CARD/SECTION.json``.

    Results of another version of this package or of PyTorch are dropped.

    Args:
        section: name of the section.
        folder: folder of the card.
        command: the command line, stored with the results.
        toy: whether this is a rehearsal with the smallest sizes; its results are stored as such.
    """

    def __init__(self, section: str, folder: Path, command: str, toy: bool) -> None:
        self.path = folder / f"{section}.json"
        identity = {
            "version": ebt_policy.__version__,
            "torch": torch.__version__,
            "card": device_name(),
            "toy": toy,
        }
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        is_same_setup = all(stored.get(key) == value for key, value in identity.items())
        cases = stored["cases"] if is_same_setup else {}
        self._content = {**identity, "command": command, "failed": {}, "cases": cases}

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """Name of a measured case -> its results."""
        return self._content["cases"]

    def run(self, cases: Iterable[Case], budget: TimeBudget) -> bool:
        """Measure the cases that are not stored yet, in order; return whether all are stored.

        A case that fails is stored with the reason and is tried again in the next run.
        """
        complete = True
        for case in cases:
            if case.name in self.cases:
                continue
            if case.seconds > budget.seconds_left:
                print(
                    f"  {case.name}: not started, it may take {case.seconds:.0f} s of the "
                    f"{max(budget.seconds_left, 0):.0f} s left",
                    flush=True,
                )
                complete = False
                continue
            start = time.perf_counter()
            try:
                result = case.measure()
            except (RuntimeError, ImportError, OSError) as error:  # RuntimeError: out of memory
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._content["failed"][case.name] = reason
                print(f"  {case.name}: failed: {reason}", flush=True)
                complete = False
            else:
                self.cases[case.name] = result
                seconds = time.perf_counter() - start
                print(f"  {case.name}: {_format_numbers(result)} ({seconds:.0f} s)", flush=True)
            self._write()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
        return complete

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, json.dumps(self._content, indent=1) + "\n")


def _format_numbers(result: dict[str, Any]) -> str:
    numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
