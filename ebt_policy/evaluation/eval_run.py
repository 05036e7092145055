"""What the entry point decides for any evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch


class EvalRun(NamedTuple):
    """What the entry point decides for any evaluation.

    Attributes:
        output: folder of the results.
        device: where models predict.
        command: as the user typed it; stored with the results.
    """

    output: Path
    device: torch.device
    command: str
