"""Predicting is descending: the only refinement loop, for training and for inference.

    x_0 = init                       (noise, a corrupted demonstration, the previous chunk, ...)
    x_{k+1} = P( x_k - a_k dE/dx(x_k) )         for k = 0 .. steps - 1

The weights of E stay fixed while x moves. Every option below changes one term of this loop and
knows nothing of the others.

Shapes: B batch, U units (whatever has one energy), * the shape of a unit, N steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value

from ebt_policy.energy.attention import double_backward_attention

EnergyFn = Callable[[Tensor, Tensor | None], Tensor]
"""Energy of candidates (B, U, *) at levels (B, U) or None -> (B, U); units must be independent."""


class DescentError(FloatingPointError):
    """The energy or the candidate became NaN or infinite."""


@dataclass
class Descent:
    """What a descent found.

    Attributes:
        candidate: (B, U, *), where each unit ended.
        path: N + 1 candidates, from the initial one to ``candidate`` (all M of them, if several).
        energies: (N + 1, B, U), before each step and at the end; without ``final_energy`` the last
            row is absent.
        grad_norms: (N, B, U), Euclidean norm of each unit's gradient before clipping.
        steps_used: (B, U), steps that each unit really took.
    """

    candidate: Tensor
    path: list[Tensor]
    energies: Tensor
    grad_norms: Tensor
    steps_used: Tensor

    @property
    def drop(self) -> Tensor:
        """Energy lost on the way, (B, U)."""
        return self.energies[0] - self.energies[-1]

    @property
    def diverged(self) -> Tensor:
        """Units (B, U) that moved and did not go down: the step size is too large for them."""
        return (self.drop <= 0) & (self.steps_used > 0) & (self.grad_norms[0] > 0)


def cosine_noise(start: float, end: float) -> Callable[[int, int], float]:
    """Langevin standard deviation falling from ``start`` to ``end`` along half a cosine."""

    def sigma(step: int, steps: int) -> float:
        progress = step / max(steps - 1, 1)
        return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return sigma


def draw_normal(
    like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Standard normal noise of the shape of ``like`` (B, ...); a list has a generator for each row.

    Row generators make the noise of a row independent of the batch it happens to be in. Noise is
    drawn on the generator's own device and moved, so a seed means the same on every device.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(f"{len(generator)} generators for a batch of {len(like)} rows.")
        rows = [draw_normal(row, g) for row, g in zip(like, generator, strict=True)]
        return torch.stack(rows)
    device = generator.device if generator is not None else like.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)


def descend(
    energy: EnergyFn,
    init: Tensor,
    *,
    steps: int | tuple[int, int],
    step_size: float | Tensor,
    levels: Tensor | None = None,
    step_size_range: tuple[float, float] | None = None,
    energy_scaled: bool = False,
    noise: float | Callable[[int, int], float] = 0.0,
    normals: Tensor | None = None,
    momentum: float = 0.0,
    max_grad_norm: float | None = None,
    project: Callable[[Tensor, int], Tensor] | None = None,
    frozen: Tensor | None = None,
    stop_grad_norm: float | None = None,
    deadline_s: float | None = None,
    candidates: int = 1,
    select: Literal["energy", "drop"] = "energy",
    cut_graph: bool = False,
    final_energy: bool = True,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Descent:
    """Follow the negative energy gradient from ``init``.

    Works with gradients on (training: the result is differentiable in the energy's parameters),
    under ``no_grad`` and under ``inference_mode``; tensors that ``energy`` closes over must not be
    inference tensors themselves.

    Args:
        energy: candidates (B, U, *) and levels (B, U) or None -> energies (B, U).
        init: (B, U, *); for M candidates a unit, (B, U * M, *) with a unit's candidates adjacent.
        steps: N, or an inclusive range from which N is drawn uniformly.
        step_size: a float, a parameter to be learned, one size a unit (B, U), or one a step (N,).
        levels: (N + 1,) or (N + 1, B, U): what a level-conditioned energy is told before each step
            and at the end; None for an energy that is told none.
        step_size_range: multiplies each unit's step size by a factor drawn once from U[low, high]
            (EBT's S2 uses (0.5, 2)).
        energy_scaled: multiplies each unit's step by exp(E) (EBT-Policy): longer where energy is
            high. E is capped at 10 so that the factor stays finite.
        noise: Langevin standard deviation, or a schedule ``sigma(k, N)`` such as `cosine_noise`.
            It is added before each gradient, so the result of the last step carries none.
        normals: (B, N, U, *) standard normal noise drawn beforehand, for compiled or distributed
            training; otherwise drawn from ``generator``.
        momentum: Nesterov's mu; the gradient is taken at the look-ahead point x + mu v.
        max_grad_norm: clips the gradient norm of each unit by itself.
        project: maps candidates to the allowed set after each step (action limits); it is told how
            many steps are done, N after the last.
        frozen: boolean mask, broadcastable to (B, U, *); True entries never leave ``init``.
        stop_grad_norm: a unit whose gradient norm is below this stops, alone.
        deadline_s: wall-clock budget in seconds. The loop ends before a step that would overrun
            it, judged by the slowest step so far; one step is always taken. With ``levels`` the
            last affordable step covers what is left of the path, because a level-conditioned
            candidate is unfinished before it.
        candidates: M; the best of each unit's M is returned.
        select: the best has the lowest final ``"energy"`` or lost the most (``"drop"``).
        cut_graph: detach the candidate between steps; the gradient of a loss then flows through
            the last step of each candidate only.
        final_energy: evaluate the energy once more at the end. Needed for M > 1.
        generator: of all noise; a list has one for each batch row.

    Raises:
        ValueError: for options out of range.
        DescentError: naming the first step at which energy or candidate was not finite.
    """
    count = _draw_steps(steps, generator)
    if candidates < 1 or init.shape[1] % candidates:
        raise ValueError(f"init has {init.shape[1]} units, not a multiple of {candidates}.")
    if candidates > 1 and not final_energy:
        raise ValueError("choosing among candidates needs final_energy=True.")
    if levels is not None and len(levels) != count + 1:
        raise ValueError(f"{count} steps need {count + 1} levels, got {len(levels)}.")

    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        start = init.clone() if init.is_inference() else init
        units = start.shape[:2]
        sizes = _step_sizes(step_size, count, start, step_size_range, generator)
        with double_backward_attention(differentiable):
            x, velocity = start, torch.zeros_like(start)
            active = torch.ones(units, dtype=torch.bool, device=start.device)
            used = torch.zeros(units, dtype=torch.long, device=start.device)
            path, energies, norms = [start], [], []
            clock = _Deadline(deadline_s)
            for k in range(count):
                last = clock.is_last()
                if last and levels is None and k > 0:
                    break
                sigma = noise(k, count) if callable(noise) else noise
                if sigma > 0:
                    z = normals[:, k] if normals is not None else draw_normal(x, generator)
                    x = _keep(frozen, start, x + sigma * z)
                look = x + momentum * velocity if momentum else x
                slope, value = _slope(energy, look, None if levels is None else levels[k])
                if frozen is not None:
                    slope = slope.masked_fill(frozen, 0.0)
                norm = _unit_norm(slope)
                if stop_grad_norm is not None:
                    active = active & (norm >= stop_grad_norm)
                    if not bool(active.any()):
                        energies.append(value)
                        norms.append(norm)
                        break
                if max_grad_norm is not None:
                    slope = slope * _spread((max_grad_norm / (norm + 1e-12)).clamp(max=1.0), slope)
                done = count if last and levels is not None else k + 1
                size = sizes[k:done].sum(0)
                if energy_scaled:
                    size = size * value.detach().clamp(max=10.0).exp()
                velocity = momentum * velocity - _spread(size, slope) * slope
                moved = x + velocity
                moved = _keep(frozen, start, project(moved, done) if project else moved)
                x = moved if stop_grad_norm is None else torch.where(_spread(active, x), moved, x)
                used = used + active
                energies.append(value)
                norms.append(norm)
                path.append(x)
                if done == count:
                    break
                if cut_graph:
                    x, velocity = x.detach(), velocity.detach()
                clock.tick()
            if final_energy:
                energies.append(energy(x, None if levels is None else _spread_level(levels[-1], x)))
        result = Descent(x, path, torch.stack(energies), torch.stack(norms), used)
        if not torch.compiler.is_compiling():
            _check_finite(result)
        return _best(result, candidates, select) if candidates > 1 else result


def _draw_steps(steps: int | tuple[int, int], generator: object) -> int:
    low, high = (steps, steps) if isinstance(steps, int) else steps
    if not 1 <= low <= high:
        raise ValueError(f"steps must be at least 1 and a range must not be empty, got {steps}.")
    if low == high:
        return low
    # One number for the whole batch: with a generator a row, the first row's decides.
    first = generator[0] if isinstance(generator, Sequence) else generator
    assert first is None or isinstance(first, torch.Generator)
    device = first.device if first is not None else "cpu"
    return int(torch.randint(low, high + 1, (), generator=first, device=device))


def _step_sizes(
    step_size: float | Tensor,
    count: int,
    x: Tensor,
    span: tuple[float, float] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """(N, 1, 1) or (N, B, U)."""
    size = torch.as_tensor(step_size, device=x.device, dtype=x.dtype)
    if size.ndim == 1:
        if len(size) != count:
            raise ValueError(f"{count} steps need {count} step sizes, got {len(size)}.")
        size = size.view(-1, 1, 1)
    else:
        size = size.expand(count, *(size.shape if size.ndim == 2 else (1, 1)))
    if span is not None:
        low, high = span
        if not 0 < low <= high:
            raise ValueError(f"step_size_range must be positive and ordered, got {span}.")
        # Uniform through the normal's distribution function: row generators are drawn one way.
        uniform = torch.special.ndtr(draw_normal(x.new_empty(x.shape[:2]), generator))
        size = size * (low + (high - low) * uniform)
    return size


def _slope(energy: EnergyFn, x: Tensor, level: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradient (B, U, *) and energy (B, U) at x."""
    told = None if level is None else _spread_level(level, x)

    def total(candidate: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(candidate, told)
        # Units are independent, so the gradient of the sum is the gradient of each.
        return value.sum(), value

    if torch.compiler.is_compiling():
        # torch.func traces under torch.compile, where autograd.grad(create_graph=True) does not.
        # Traced under no_grad it would silently give zeros, hence enable_grad and detach.
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            slope, (_, value) = grad_and_value(total, has_aux=True)(x)
        return (slope, value) if differentiable else (slope.detach(), value.detach())
    if torch.is_grad_enabled():
        slope, (_, value) = grad_and_value(total, has_aux=True)(x)
        return slope, value
    with torch.enable_grad():  # first derivative only: no graph of the gradient is built
        leaf = x.detach().requires_grad_()
        summed, value = total(leaf)
    return torch.autograd.grad(summed, leaf)[0], value.detach()


def _spread_level(level: Tensor, x: Tensor) -> Tensor:
    return level.expand(x.shape[:2])


def _spread(per_unit: Tensor, x: Tensor) -> Tensor:
    """(B, U) -> (B, U, 1, ...) for broadcasting with x."""
    return per_unit.reshape(*per_unit.shape, *(1 for _ in x.shape[2:]))


def _unit_norm(x: Tensor) -> Tensor:
    return x.detach().flatten(2).norm(dim=-1)


def _keep(frozen: Tensor | None, start: Tensor, x: Tensor) -> Tensor:
    return x if frozen is None else torch.where(frozen, start, x)


class _Deadline:
    """Tells when no more than one further step fits, from the slowest step so far."""

    def __init__(self, budget_s: float | None) -> None:
        if budget_s is not None and not budget_s > 0:
            raise ValueError(f"the deadline must be a positive number of seconds, got {budget_s}.")
        self.budget = budget_s
        self.begun = self.mark = time.perf_counter() if budget_s is not None else 0.0
        self.slowest = 0.0

    def tick(self) -> None:
        if self.budget is not None:
            now = time.perf_counter()
            self.slowest, self.mark = max(self.slowest, now - self.mark), now

    def is_last(self) -> bool:
        if self.budget is None:
            return False
        # Two: the step in question and the one after it (or the final energy).
        return time.perf_counter() - self.begun + 2 * self.slowest > self.budget


def _check_finite(result: Descent) -> None:
    with torch.no_grad():
        finite = result.energies.isfinite().all() & result.candidate.isfinite().all()
        if bool(finite):
            return
        rows = result.energies.isfinite().flatten(1).all(1)[: len(result.grad_norms)]
        rows = rows & result.grad_norms.isfinite().flatten(1).all(1)
        step = int((~rows).nonzero()[0]) if not bool(rows.all()) else len(rows)
    raise DescentError(
        f"the descent met NaN or Inf at step {step} of {len(rows)}; "
        "use a smaller step size or clip the gradient."
    )


def _best(result: Descent, candidates: int, select: str) -> Descent:
    """Keep the best of each unit's M adjacent candidates."""
    score = result.energies[-1] if select == "energy" else -result.drop
    winner = score.unflatten(1, (-1, candidates)).argmin(-1)  # (B, U)
    units = torch.arange(winner.shape[1], device=winner.device) * candidates + winner
    rows = torch.arange(len(winner), device=winner.device).unsqueeze(1)
    return Descent(
        result.candidate[rows, units],
        result.path,
        result.energies[:, rows, units],
        result.grad_norms[:, rows, units],
        result.steps_used[rows, units],
    )
