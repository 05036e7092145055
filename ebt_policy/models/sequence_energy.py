"""What models share in which the next part of a sequence descends an energy: a token, a frame.

Shapes: B batch, S context, U units (a guess for each place, or M of them adjacent).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebt_policy.energy import DescentResult, descend
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.gradients import BilinearEnergy, DirectUpdate, EnergyFn
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.models.energy_model import DescentInference, EnergyModel


class SequenceEnergyModel(EnergyModel):
    """A guess x descends E(x) = -<e(x), f(e(x))> + P(x), f the network given what was observed.

    e is the mirror's map of guesses into the network's width and P its potential; x moves by the
    gradient in e (see `MirrorMap`). Where f is the same for all guesses, one step of size 1 from a
    guess that says nothing ends where a plain transformer's output would be.

    Attributes:
        net: of the observed stream and of guesses.
        has_energy: False where the network gives the update itself.
    """

    name = "ebt"
    has_energy: ClassVar[bool] = True
    net: CausalTransformer
    inference: DescentInference

    @abstractmethod
    def observe(self, sequence: Tensor) -> EncodedContext:
        """A sequence (B, S, ...)."""

    @abstractmethod
    def like(self, observed: EncodedContext, units: int) -> Tensor:
        """As a target of so many units is, of any value."""

    def energy(self, observed: EncodedContext) -> EnergyFn:
        """Of guesses as the network sees them (B, U, D), given what was observed."""
        return (BilinearEnergy if self.has_energy else DirectUpdate)(partial(self.net, observed))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        observed = self.observe(batch[self.keys[0]][:, :-1])
        return self.objective(self.energy(observed), self.target(batch), batch["draws"])

    def think(self, observed: EncodedContext, generator: Generators = None) -> DescentResult:
        """The descent of guesses of what comes after each place that was new."""
        how = self.inference
        units = observed.last.shape[1] * how.candidates
        init = self.objective.space.empty(self.like(observed, units))
        if start := getattr(self.objective, "start", 1.0):
            init = start * draw_normal(init, generator)
        with torch.no_grad():
            return descend(
                self.energy(observed),
                init,
                generator=generator,
                **asdict(how),
                **self.objective.descent_options(how.steps),
            )
