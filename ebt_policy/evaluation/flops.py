"""Counting the operations and memory traffic of a computation while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ebt_policy.models.base import Model


class Work(NamedTuple):
    """Work of all matrix products and convolutions.

    Attributes:
        flops: floating-point operations; a multiplication and an addition count as two.
        bytes: size of operands and results, counted once for each product. Elementwise operations
            are not counted, because a compiler can fuse them with the products.
    """

    flops: float
    bytes: float


class _WorkCounter(TorchDispatchMode):
    """Counter of work. PyTorch's own counter tracks modules and fails with gradients in a loss."""

    flops = 0.0
    bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def count_work(job: Callable[[], object]) -> Work:
    """Run an uncompiled ``job`` once and return its work."""
    with _WorkCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        job()
    return Work(counter.flops, counter.bytes)


def training_work(model: Model, batch: Any) -> Work:
    """Return the work of one training update on a batch: the loss and its gradient."""
    batch = model.with_noise(model.normalize(batch))
    model.requires_grad_()
    return count_work(lambda: model(batch)[0].backward())
