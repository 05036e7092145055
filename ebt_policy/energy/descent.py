"""Predicting is descending: the only refinement loop, for training and for inference.

    x_0 = init                       (noise, a corrupted demonstration, the previous chunk, ...)
    x_{k+1} = P( x_k - a_k dE/dx(x_k) )         for k = 0 .. steps - 1

The weights of E stay fixed while x moves. Every option below changes one term of this loop and
knows nothing of the others.

Shapes: B batch, U units (whatever has one energy), * the shape of a unit, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ebt_policy.energy.attention import double_backward_attention
from ebt_policy.energy.deadline import Deadline
from ebt_policy.energy.gradients import (
    EnergyFn,
    energy_gradient,
    shared_gradient,
    to_autograd_tensor,
)
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.selection import VOTES, WITH_ENERGY, Rule, best_of, vote


class DescentError(FloatingPointError):
    """The energy, its gradient or the candidate became NaN or infinite."""


class MirrorMap(NamedTuple):
    """Where an energy takes candidates, and how its gradient there moves them.

    Mirror descent (Nemirovski & Yudin 1983): the gradient at ``to(x)`` moves x itself. Candidates
    may be logits, for instance, whose energy sees a distribution, or what comes of it. The mirror's
    own potential is a part of the energy: its gradient is x, so that descent has somewhere to end.

    Attributes:
        to: candidates (B, U, *) -> (B, U, **).
        back: gradients there (B, U, **) -> (B, U, *).
        potential: candidates (B, U, *) -> (B, U), convex; of distributions the negative entropy.
    """

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    potential: Callable[[Tensor], Tensor]


@dataclass
class DescentResult:
    """What a descent found.

    Attributes:
        candidate: (B, U, *), where each unit ended.
        path: N + 1 candidates, from the initial one to ``candidate`` (all M of them, if several);
            N counts the steps of the loop, fewer than asked for when it ended early.
        energies: (N + 1, B, U), before each step and at the end (by ``verify``, if given); without
            ``final_energy`` the last row is absent.
        grad_norms: (N, B, U), Euclidean norm of each unit's gradient before clipping.
        steps_used: (B, U), steps that each unit really took.
        drop: (B, U), energy lost on the way: first minus last. Energies at different levels do not
            compare, so with ``levels`` it is the loss to first order, sum_k <dE/dx_k, x_k-x_{k+1}>.
        chosen: (B, U), which of the candidates in ``path`` each unit ended as; None without choice.
    """

    candidate: Tensor
    path: list[Tensor]
    energies: Tensor
    grad_norms: Tensor
    steps_used: Tensor
    drop: Tensor
    chosen: Tensor | None = None

    @property
    def route(self) -> list[Tensor]:
        """The path of each unit's candidate alone: (B, U, *) each."""
        if self.chosen is None:
            return self.path
        rows = torch.arange(len(self.chosen), device=self.chosen.device).unsqueeze(1)
        return [x[rows, self.chosen] for x in self.path]

    @property
    def diverged(self) -> Tensor:
        """Units (B, U) that moved and did not go down: the step size is too large for them.

        Says nothing with ``levels``: to first order every step goes down.
        """
        # One energy alone (a single step without final_energy) tells nothing.
        moved = (self.steps_used > 0) & (self.grad_norms[0] > 0) & (len(self.energies) > 1)
        return (self.drop <= 0) & moved


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
    mirror: MirrorMap | None = None,
    project: Callable[[Tensor, int], Tensor] | None = None,
    frozen: Tensor | None = None,
    stop_grad_norm: float | None = None,
    stop_change: float | None = None,
    only_down: bool = False,
    deadline_s: float | None = None,
    candidates: int = 1,
    select: Rule = "energy",
    shared_start: bool = False,
    zero_start: bool = False,
    cut_graph: bool = False,
    final_energy: bool = True,
    verify: Callable[[Tensor], Tensor] | None = None,
    generator: Generators = None,
) -> DescentResult:
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
        mirror: where the energy takes candidates, if not as they are, and what is added to it.
        project: maps candidates to the allowed set after each step (action limits), stopped units
            too; it is told how many steps are done, N after the last.
        frozen: boolean mask, broadcastable to (B, U, *); True entries never leave ``init``.
        stop_grad_norm: a unit whose gradient norm is below this stops, alone and for good.
        stop_change: with ``levels``, a unit lands early where its path is straight: it foresees the
            end, going straight on, and once that moves by less than this (root mean square, per
            unit of level) it goes there in one step and stops. The M candidates of a unit land
            together: going on for one costs as much as for all.
        only_down: a unit whose energy rose in a step goes back to where it was, and stops there.
            Not with ``levels``, at which energies do not compare, nor with momentum.
        deadline_s: wall-clock budget in seconds. The loop ends before a step that would overrun
            it, judged by the slowest step so far; one step is always taken. With ``levels`` the
            last affordable step covers what is left of the path, because a level-conditioned
            candidate is unfinished before it.
        candidates: M; the best of each unit's M is returned.
        select: the best has the lowest final ``"energy"``, lost the most (``"drop"``), or is what
            the candidates vote for (see `vote`): ``"medoid"``, ``"density"``, ``"first"``.
        shared_start: the first gradient of a unit's M candidates comes from one evaluation, for an
            energy that is quadratic at the start (see `shared_gradient`). Not with a deadline,
            which takes the first step as the measure of the others.
        zero_start: the energy takes ``init`` as zeros: a `BilinearEnergy`'s first gradient then
            needs no backward pass.
        cut_graph: detach the candidate between steps; the gradient of a loss then flows through
            the last step of each candidate only.
        final_energy: evaluate the energy once more at the end. Needed for M > 1.
        verify: what it evaluates there, candidates (B, U, *) -> (B, U), if not ``energy`` itself at
            the last level.
        generator: of all noise; a list has one for each batch row.

    Raises:
        ValueError: for options out of range.
        DescentError: saying after how many steps energy, gradient or candidate was not finite.
    """
    count = _draw_steps(steps, generator)
    to = _itself if mirror is None else mirror.to
    if init.ndim < 3 or candidates < 1 or init.shape[1] % candidates:
        want = f"(B, U, ...) with U a multiple of candidates={candidates}"
        raise ValueError(f"init must be {want}, got {tuple(init.shape)}.")
    if candidates > 1 and not final_energy:
        raise ValueError("choosing among candidates needs final_energy=True.")
    if select not in WITH_ENERGY:
        raise ValueError(f"select must be one of {', '.join(WITH_ENERGY)}, got {select!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}.")
    if not (callable(noise) or noise >= 0):
        raise ValueError(f"noise must not be negative, got {noise}.")
    positive = {
        "max_grad_norm": max_grad_norm,
        "stop_grad_norm": stop_grad_norm,
        "stop_change": stop_change,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if mirror is not None and shared_start:
        raise ValueError("shared_start is for energies of the candidate itself, without a mirror.")
    if stop_change is not None and levels is None:
        raise ValueError("stop_change needs levels: without them a path has no end to land on.")
    if only_down and (levels is not None or momentum or not final_energy):
        raise ValueError("only_down needs the final energy, and neither levels nor momentum.")
    if levels is not None and len(levels) != count + 1:
        raise ValueError(f"{count} steps need {count + 1} levels, got {len(levels)}.")
    if normals is not None and normals.shape != (len(init), count, *init.shape[1:]):
        raise ValueError(f"normals must be (B, {count}, U, ...), got {tuple(normals.shape)}.")

    differentiable = torch.is_grad_enabled()
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(differentiable),
        double_backward_attention(differentiable),
    ):
        start = to_autograd_tensor(init)
        levels = None if levels is None else to_autograd_tensor(levels).to(start)
        sizes = _step_sizes(step_size, count, start, step_size_range, generator)
        x, velocity = start, torch.zeros_like(start)
        moving = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        used = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        path, energies, norms, lost = [x], [], [], torch.zeros(x.shape[:2], device=x.device)
        foreseen, lands = start, torch.zeros_like(moving)
        # What must fit in the time left: this step, one to finish the levels, the final energy.
        clock = Deadline(deadline_s, 1 + (levels is not None) + final_energy)
        for k in range(count):
            done = k + 1
            if clock.presses():
                if levels is not None:
                    done = count
                elif k > 0:
                    break

            sigma = noise(k, count) if callable(noise) else noise
            if sigma > 0:
                z = normals[:, k] if normals is not None else draw_normal(x, generator)
                z = z * _spread(moving, z)
                x = x + sigma * (z if frozen is None else z.masked_fill(frozen, 0.0))

            look = x + momentum * velocity if momentum else x
            told = None if levels is None else levels[k]
            if k == 0 and shared_start and deadline_s is None:
                slope, value = shared_gradient(energy, look, told, candidates)
            else:
                zero = zero_start and k == 0 and momentum == 0
                slope, value = energy_gradient(energy, to(look), told, zero=zero)
                if mirror is not None:
                    slope, value = mirror.back(slope) + look, value + mirror.potential(look)
            if only_down and k > 0:
                x, value, moving = _lower(path, energies[-1], x, value, moving)
            slope = slope if frozen is None else slope.masked_fill(frozen, 0.0)
            norm = slope.detach().flatten(2).norm(dim=-1)
            if max_grad_norm is not None:
                slope = slope * _spread((max_grad_norm / (norm + 1e-12)).clamp(max=1.0), slope)

            size = sizes[k:done].sum(0)
            if stop_change is not None and levels is not None:
                ahead = sizes[k:].sum(0)
                end = x - _spread(ahead, slope) * slope
                if k > 0:
                    change = (end - foreseen).square().flatten(2).mean(-1)
                    change = change.unflatten(1, (-1, candidates)).mean(-1).sqrt()
                    near = change.repeat_interleave(candidates, dim=1)
                    lands = moving & (near < stop_change * (levels[k] - levels[k - 1]))
                foreseen = end
                size = torch.where(lands, ahead, size)
                if not bool((moving & ~lands).any()):
                    done = count
            if energy_scaled:
                size = size * value.detach().clamp(max=10.0).exp()
            velocity = momentum * velocity - _spread(size, slope) * slope
            if stop_grad_norm is not None:
                moving = moving & (norm >= stop_grad_norm)
            if stop_grad_norm is not None or stop_change is not None or only_down:
                velocity = velocity.masked_fill(~_spread(moving, velocity), 0.0)

            before, x = x, x + velocity if project is None else project(x + velocity, done)
            if frozen is not None:
                x = torch.where(frozen, start, x)

            used, moving = used + moving, moving & ~lands
            path.append(x)
            energies.append(value)
            norms.append(norm)
            if levels is not None:
                lost = lost + (slope.detach() * (before - x).detach()).flatten(2).sum(-1)
            if done == count or (stop_grad_norm is not None and not bool(moving.any())):
                break
            if cut_graph:
                x, velocity = x.detach(), velocity.detach()
            clock.tick(x)
        if final_energy:
            told = None if levels is None else levels[-1].expand(x.shape[:2])
            value = energy(to(x), told) if verify is None else verify(x)
            if mirror is not None:
                value = value + mirror.potential(x)
            if only_down and verify is None:
                x, value, moving = _lower(path, energies[-1], x, value, moving)
            energies.append(value)
        heights = torch.stack(energies)
        drop = heights[0] - heights[-1] if levels is None else lost
        result = DescentResult(x, path, heights, torch.stack(norms), used, drop)
        if not torch.compiler.is_compiling():
            _check_finite(result)
        return _best(result, candidates, select) if candidates > 1 else result


def _lower(
    path: list[Tensor], before: Tensor, x: Tensor, value: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Units whose energy rose in the last step back where they were, and stopped."""
    rose = moving & (value > before)
    x = path[-1] = torch.where(_spread(rose, x), path[-2], x)
    return x, torch.where(rose, before, value), moving & ~rose


def _itself(x: Tensor) -> Tensor:
    return x


def _draw_steps(steps: int | tuple[int, int], generator: Generators) -> int:
    low, high = (steps, steps) if isinstance(steps, int) else steps
    if not 1 <= low <= high:
        raise ValueError(f"steps must be at least 1 and a range must not be empty, got {steps}.")
    if low == high:
        return low
    # One number for the whole batch: with a generator a row, the first row's decides.
    first = generator[0] if isinstance(generator, Sequence) else generator
    device = first.device if first is not None else "cpu"
    return int(torch.randint(low, high + 1, (), generator=first, device=device))


def _step_sizes(
    step_size: float | Tensor,
    count: int,
    x: Tensor,
    span: tuple[float, float] | None,
    generator: Generators,
) -> Tensor:
    """(N, 1, 1) or (N, B, U)."""
    if isinstance(step_size, Tensor):
        size = step_size.to(x)
    elif step_size > 0:
        size = torch.full((), step_size, device=x.device, dtype=x.dtype)
    else:
        raise ValueError(f"step_size must be positive, got {step_size}.")
    if size.ndim and size.shape not in ((count,), x.shape[:2]):
        shapes = f"a number, ({count},) or {tuple(x.shape[:2])}"
        raise ValueError(f"step_size must be {shapes}, got {tuple(size.shape)}.")
    size = size.view(-1, 1, 1) if size.ndim == 1 else size.expand(count, *x.shape[:2])
    if span is not None:
        low, high = span
        if not 0 < low <= high:
            raise ValueError(f"step_size_range must be positive and ordered, got {span}.")
        # Uniform through the normal's distribution function: row generators are drawn one way.
        uniform = torch.special.ndtr(draw_normal(x.new_empty(x.shape[:2]), generator))
        size = size * (low + (high - low) * uniform)
    return size


def _spread(per_unit: Tensor, x: Tensor) -> Tensor:
    """(B, U) -> (B, U, 1, ...) for broadcasting with x."""
    return per_unit.reshape(*per_unit.shape, *(1 for _ in x.shape[2:]))


def _check_finite(result: DescentResult) -> None:
    ends = (result.candidate, result.energies, result.grad_norms)
    if bool(torch.stack([x.isfinite().all() for x in ends]).all()):  # a GPU is waited for once
        return
    every = (result.path, *ends[1:])
    bad = min(k for rows in every for k, x in enumerate(rows) if not bool(x.isfinite().all()))
    raise DescentError(
        f"the descent met NaN or Inf after {bad} of {len(result.grad_norms)} steps; "
        "use a smaller step size or clip the gradient."
    )


def _best(result: DescentResult, candidates: int, select: str) -> DescentResult:
    """Keep the best of each unit's M adjacent candidates."""
    if select in VOTES:
        score = vote(select, result.candidate, candidates)
    else:
        score = result.energies[-1] if select == "energy" else -result.drop
    units = best_of(score, candidates)  # (B, U)
    rows = torch.arange(len(units), device=units.device).unsqueeze(1)
    return DescentResult(
        result.candidate[rows, units],
        result.path,
        result.energies[:, rows, units],
        result.grad_norms[:, rows, units],
        result.steps_used[rows, units],
        result.drop[rows, units],
        units,
    )
