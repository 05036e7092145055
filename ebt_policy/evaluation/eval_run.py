"""Settings of the command line that every evaluation needs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch


class EvalRun(NamedTuple):
    """Settings of the command line that every evaluation needs.

    Attributes:
        output: folder of the results.
        device: device of the models.
        command: the command as the user typed it, which is stored with the results.
    """

    output: Path
    device: torch.device
    command: str
