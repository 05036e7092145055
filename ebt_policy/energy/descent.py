"""Prediction by descent: the refinement loop that training and inference share.

    x_0 = init                       (noise, a corrupted demonstration, the previous chunk, ...)
    x_{k+1} = P( x_k - a_k dE/dx(x_k) )         for k = 0 .. N - 1

E is the energy, a_k the step size, and P applies the constraints. The weights of E stay fixed while
x moves. Each part of a `Descent` implements one term of this loop.

>>> import torch
>>> from ebt_policy.energy import Descent, FixedSteps, GradientNorm, StopReason, select
>>> def energy(x, level):                       # a bowl around 1: (B, U, *) -> (B, U)
...     return (x - 1).square().sum(-1) / 2
>>> descent = Descent(FixedSteps(count=10, size=0.5), stop=GradientNorm(0.1))
>>> init = torch.tensor([[[0.0], [1.0], [9.0]]])         # three candidates of one unit
>>> result = descent(energy, init)
>>> [round(float(x), 2) for x in result.candidate.flatten()]
[0.94, 1.0, 1.06]
>>> result.steps_used.tolist(), StopReason(int(result.reason[0, 0])).name
([[4, 0, 7]], 'GRADIENT_NORM')
>>> select(result, num_candidates=3).candidate.tolist()  # the one of the lowest energy
[[[1.0]]]

Shapes: B batch, U units (a unit has one energy), * the shape of a unit, N steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ebt_policy.energy.attention import double_backward_attention
from ebt_policy.energy.constraints import Constraint, Position
from ebt_policy.energy.deadline import Deadline
from ebt_policy.energy.energy_function import EnergyFn
from ebt_policy.energy.gradients import PlainGradient, expand_units, to_autograd_tensor
from ebt_policy.energy.metropolis import MetropolisLangevin
from ebt_policy.energy.mirror_map import MirrorMap, mirrored_energy, mirrored_gradient
from ebt_policy.energy.normalization import UnitRootMeanSquare
from ebt_policy.energy.part_checks import check_parts
from ebt_policy.energy.result import DescentResult, StopReason, check_finite, is_moving
from ebt_policy.energy.sampling import Generators, LangevinNoise
from ebt_policy.energy.schedules import Schedule
from ebt_policy.energy.stopping import NeverStop, StepView
from ebt_policy.energy.tracing import is_traced
from ebt_policy.energy.updates import GradientStep


# Descents and their parts are compared by identity (eq=False): up to PyTorch 2.11, torch.compile
# cannot create an object with a generated __hash__.
@dataclass(frozen=True, eq=False)
class Descent:
    """A descent of an energy from initial candidates, composed of exchangeable parts.

    With gradients enabled (training), the result is differentiable in the energy's parameters. A
    descent also works under ``no_grad`` and ``inference_mode``. Tensors that the energy closes over
    must not be inference tensors.

    Args:
        schedule: sizes and levels of the steps: `FixedSteps`, `RandomSteps` or `LevelSchedule`.
        gradient: `PlainGradient`, `SharedFirstGradient` or `ZeroInitGradient`.
        update: `GradientStep`, `NesterovMomentum`, `ClippedGradient` or `EnergyScaledStep`.
        normalization: normalisation of candidates at the beginning of each step; None for none.
        noise: Langevin noise that is added before each gradient; None for no noise.
        mirror: map from candidates to inputs of the energy; None if they are the same.
        constraints: applied after each step in this order, each a `FrozenEntries`, `Projection`,
            `CostStep` or `PathProjection`.
        corrector: Metropolis steps at each level between noise and data, before the gradient; None
            for none.
        stop: `NeverStop`, `GradientNorm`, `StraightPath`, `RejectIncreases`, or several of them in
            a `FirstOf`.
        deadline_s: wall-clock budget in seconds. The loop ends before a step that would exceed it,
            estimated from the slowest step so far. At least one step is taken. With levels, a last
            step covers the rest of the path, because candidates at earlier levels are unfinished.
        graph: steps that the gradient of a loss on a candidate flows through: the ``whole`` path to
            it; only the ``step`` that produced it; or only the ``last_step`` of the descent, so
            that the others need no second derivative.
        final_energy: evaluate the energy once more at the end. Selection by energy needs it.

    Raises:
        ValueError: if parts exclude each other.
    """

    # Default factories are lambdas because torch.compile cannot call a class as a factory.
    schedule: Schedule
    gradient: PlainGradient = field(default_factory=lambda: PlainGradient())
    update: GradientStep = field(default_factory=lambda: GradientStep())
    normalization: UnitRootMeanSquare | None = None
    noise: LangevinNoise | None = None
    mirror: MirrorMap | None = None
    constraints: tuple[Constraint, ...] = ()
    corrector: MetropolisLangevin | None = None
    stop: NeverStop = field(default_factory=lambda: NeverStop())
    deadline_s: float | None = None
    graph: Literal["whole", "step", "last_step"] = "whole"
    final_energy: bool = True

    __post_init__ = check_parts

    def __call__(
        self,
        energy: EnergyFn,
        init: Tensor,
        *,
        score: Callable[[Tensor], Tensor] | None = None,
        generator: Generators = None,
    ) -> DescentResult:
        """Descend from ``init``.

        Args:
            energy: maps candidates (B, U, *) and levels (B, U) or None to energies (B, U).
            init: (B, U, *) initial candidates. M candidates per unit are adjacent, (B, U * M, *).
            score: maps finished candidates (B, U, *) to scores (B, U), which replace their final
                energy. A deadline reserves time for it.
            generator: source of all randomness; a list has one generator per batch row.

        Raises:
            ValueError: if a tensor has a wrong shape, or ``stop`` does not work with ``score``.
            DescentError: if an energy, gradient or candidate is not finite; the message names the
                step. Compiled and exported code does not check this.
        """
        if init.ndim < 3:
            raise ValueError(f"init must have shape (B, U, ...), got {tuple(init.shape)}.")
        if score is not None and any(rule.compares_energies for rule in self.stop.rules):
            raise ValueError(
                f"score cannot be used with stop={self.stop}, which compares energies."
            )
        differentiable = torch.is_grad_enabled()
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(differentiable),
            double_backward_attention(differentiable),
        ):
            start, units, stop = to_autograd_tensor(init), init.shape[:2], self.stop
            steps, end = self.schedule.steps(start, generator), StopReason.STEPS_DONE
            x, velocity, has_levels = start, torch.zeros_like(start), steps.levels is not None
            reason = torch.full(units, StopReason.STEPS_DONE.value, device=x.device)
            steps_used = torch.zeros_like(reason)
            path, energies, norms, decrease = [x], [], [], torch.zeros(units, device=x.device)
            predicted_end = None
            # Reserve time for this step, a step that ends the path, and the final energy.
            clock = Deadline(self.deadline_s, 1 + has_levels + self.final_energy)
            for k in range(steps.count):
                next_step = k + 1
                if clock.exceeded():
                    if not has_levels and k > 0:
                        end = StopReason.DEADLINE
                        break
                    if has_levels and next_step < steps.count:
                        next_step, end = steps.count, StopReason.DEADLINE

                resting = x  # where a unit that stops in this step ends
                if self.normalization is not None:
                    normalized = self.normalization(x, last=next_step == steps.count)
                    x = torch.where(expand_units(is_moving(reason), x), normalized, x)
                if self.noise is not None:
                    noise = self.noise(x, k, steps.count, generator)
                    x = x + self._tangent(noise * expand_units(is_moving(reason), x))

                if self.corrector is not None and k > 0 and (level := steps.level(k)) is not None:
                    corrected = self.corrector(energy, x, level, generator)
                    x = torch.where(expand_units(is_moving(reason), x), corrected, x)

                lookahead = self.update.look_ahead(x, velocity)
                is_last = next_step == steps.count
                needs_graph = differentiable and (is_last or self.graph != "last_step")
                with torch.set_grad_enabled(needs_graph):
                    gradient, value = mirrored_gradient(
                        self.mirror, self.gradient, energy, lookahead, steps.level(k), first=k == 0
                    )
                x, value, reason = stop.review(path, energies, x, value, reason)
                gradient = self._tangent(gradient)
                norm = gradient.detach().flatten(2).norm(dim=-1)

                step = partial(self.update, gradient, norm, value, velocity)
                moving, size = is_moving(reason), steps.sizes[k:next_step].sum(0)
                view = StepView(
                    k, x, norm, step, moving, reason, steps, size, next_step, predicted_end
                )
                view = stop.decide(view)
                if self.normalization is not None or self.noise is not None:
                    x = torch.where(expand_units(moving & ~view.moving, x), resting, x)
                velocity = stop.hold(step(view.size), view.moving)
                reason, next_step, predicted_end = view.reason, view.next_step, view.predicted_end

                position = Position(
                    start, x, view.moving, size, steps.level(k), steps.level(next_step),
                    finished=next_step == steps.count,
                )  # fmt: skip
                before, x = x, self._constrain(x + velocity, position)
                steps_used = steps_used + view.moving
                path.append(x)
                energies.append(value)
                norms.append(norm)
                if has_levels:
                    lost = (gradient.detach() * (before - x).detach()).flatten(2).sum(-1)
                    decrease = decrease + lost
                if next_step == steps.count or stop.all_stopped(reason):
                    break
                if self.graph != "whole":
                    x, velocity = x.detach(), velocity.detach()
                clock.tick(x)

            if self.final_energy:
                level = None if steps.levels is None else steps.levels[-1].expand(units)
                final = partial(mirrored_energy, self.mirror, energy, level=level)
                value = final(x) if score is None else score(x)
                x, value, reason = stop.review(path, energies, x, value, reason)
                energies.append(value)
            heights = torch.stack(energies)
            result = DescentResult(
                candidate=x,
                path=path,
                energies=heights,
                grad_norms=torch.stack(norms),
                steps_used=steps_used,
                energy_decrease=decrease if has_levels else heights[0] - heights[-1],
                reason=reason.masked_fill(is_moving(reason), end.value),
            )
        if not is_traced():
            check_finite(result)
        return result

    def _constrain(self, x: Tensor, position: Position) -> Tensor:
        for constraint in self.constraints:
            x = constraint.apply(x, position)
        return x

    def _tangent(self, direction: Tensor) -> Tensor:
        for constraint in self.constraints:
            direction = constraint.tangent(direction)
        return direction
