"""Detection of traced code: torch.compile or an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_exports = 0  # number of exports in progress


def is_traced() -> bool:
    """Return whether the operations of this call are recorded, so that no value may be read."""
    return torch.compiler.is_compiling() or _exports > 0


@contextmanager
def export_tracing() -> Iterator[None]:
    """Mark the operations of this context as recorded for an export."""
    global _exports
    _exports += 1
    try:
        yield
    finally:
        _exports -= 1
