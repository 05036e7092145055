"""Updates of Transformer++ and energy language models, and attention differentiated twice."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.device import DEVICE
from benchmarks.gpu.card import seconds_of
from benchmarks.gpu.results import Case
from benchmarks.gpu.training import peak_gib, speed_of
from benchmarks.language_speed import untrained

SIZES = {
    "m": {"width": 288, "heads": 8, "layers": 6}, "l": {"width": 512, "heads": 8, "layers": 9},
}  # fmt: skip
MODELS = ("Transformer++", "energy, 2 steps", "energy, 2 steps, guesses through one block")
VOCABULARY = 4096


class RandomTokens:
    """Sequences of random tokens, with the interface of training data."""

    def __init__(self, rows: int, context: int) -> None:
        self.tokens = torch.randint(1, VOCABULARY, (rows, context + 1), device=DEVICE)

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows with some indices: "tokens" (B, S + 1)."""
        return {"tokens": self.tokens[index.to(DEVICE, non_blocking=True)]}


def cases(rates: dict[str, dict[str, Any]], toy: bool) -> list[Case]:
    """Return the cases, the most important first."""
    context, batch, rounds = (16, 2, 1) if toy else (512, 32, 10)
    sizes = {"toy": {"width": 32, "heads": 2, "layers": 2}} if toy else SIZES
    models = [
        Case(
            f"{size}, context {context}, bf16, {name}",
            partial(measure, name, sizes[size], context, batch, rates, rounds),
            120,
        )
        for size in sizes
        for name in MODELS
    ]
    kernels: dict[str, Callable[..., Tensor]] = {"math": math_attention}
    if DEVICE.type == "cuda":  # The kernel is written in Triton.
        kernels["jvp_flash_attention"] = flash_attention
    attention = [
        Case(
            f"attention differentiated twice, context {context}, {name}",
            partial(measure_attention, kernel, batch, context, rounds),
            60,
        )
        for name, kernel in kernels.items()
    ]
    return [*models, *attention]


def measure(
    name: str, size: dict[str, int], context: int, batch: int,
    rates: dict[str, dict[str, Any]], rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the speed of updates of a language model, see `speed_of`."""
    model = untrained(name, size, context, VOCABULARY).to(DEVICE)
    result = speed_of(model, RandomTokens(2 * batch, context), batch, "bf16", rates, rounds)
    tokens = result["samples_per_second"] * context
    return result | {"tokens_per_second": tokens, "parameters": model.parameter_count}


def math_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention with PyTorch's math kernel, which can be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention with the package jvp_flash_attention."""
    from jvp_flash_attention.jvp_attention import attention  # pyright: ignore

    return attention(q, k, v, causal=True)


def measure_attention(
    attention: Callable[..., Tensor], batch: int, context: int, rounds: int
) -> dict[str, Any]:
    """Return time and memory of attention, its gradient, and the gradient of the gradient.

    The first gradient is with respect to the queries.
    """
    shape = (batch, 8, context, 64)
    q, k, v = (torch.randn(shape, device=DEVICE, requires_grad=True) for _ in range(3))

    def double_backward() -> None:
        (gradient,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), (q, k, v))

    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return {
        "ms": 1e3 * statistics.median(seconds_of(double_backward, rounds)),
        "memory_gib": peak_gib(),
    }
