"""The part that energy models of sequences share: the next token or frame descends an energy.

Shapes: B batch, S context, U units (a candidate for each place, or M of them adjacent).
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ebt_policy.energy import BilinearEnergy, DescentResult, DirectUpdate, EnergyFn
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.models.energy_model import DescentInference, EnergyModel


class SequenceEnergyModel(EnergyModel):
    """Base of models whose candidates x descend E(x) = -<e(x), f(e(x))> + P(x).

    f is the network given the observed sequence, e the mirror's map of candidates into the
    network's width, and P its potential; x moves by the gradient in e (see `MirrorMap`). Where f is
    the same for all candidates, one step of size 1 from zero ends at a plain transformer's output.

    Attributes:
        net: of the observed and the candidate stream.
        has_energy: False where the network gives the update itself.
    """

    name = "ebt"
    has_energy: ClassVar[bool] = True
    net: CausalTransformer
    inference: DescentInference

    @abstractmethod
    def observe(self, sequence: Tensor) -> EncodedContext:
        """Encode a sequence (B, S, ...)."""

    @abstractmethod
    def empty_target(self, context: EncodedContext, units: int) -> Tensor:
        """Return an uninitialised tensor shaped like a target of ``units`` units."""

    def energy(self, context: EncodedContext) -> EnergyFn:
        """Return the energy of embedded candidates (B, U, D), given the observed sequence."""
        return (BilinearEnergy if self.has_energy else DirectUpdate)(partial(self.net, context))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.observe(batch[self.keys[0]][:, :-1])
        return self.objective(self.energy(context), self.target(batch), batch["noise"])

    def descend(self, context: EncodedContext, generator: Generators = None) -> DescentResult:
        """Descend candidates of what comes after each place that was new."""
        units = context.last.shape[1] * self.inference.num_candidates
        init = self.objective.space.zeros_like_candidate(self.empty_target(context, units))
        if init_std := self.objective.init_std:
            init = init_std * draw_normal(init, generator)
        return self.descend_candidates(self.energy(context), init, generator)
