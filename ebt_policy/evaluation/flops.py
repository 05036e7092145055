"""What training costs, counted while it runs."""

from __future__ import annotations

from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ebt_policy.models.base import Model


class _FlopCounter(TorchDispatchMode):
    """Torch's own counter follows modules, which a gradient inside the loss does not let it."""

    flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def training_flops(model: Model, batch: Any) -> float:
    """FLOPs of one training update on a batch of data: those of all matrix products."""
    batch = model.draw(model.normalize(batch))
    model.requires_grad_()
    with _FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch)[0].backward()
    return counter.flops
