"""Whether `torch.compile` works on this machine."""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` works here; if not, log the reason as a warning."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:  # for example, no C++ compiler or no Python headers
        reason = str(error).strip().splitlines()[0]
        log.warning("torch.compile does not work here (%s); training is slower without it.", reason)
        return False
    return True
