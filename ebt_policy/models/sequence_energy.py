"""Base class of energy models of sequences, which predict the next token or frame by descent.

Shapes: B batch, S context, U units (one candidate, or M adjacent candidates, per position).
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
    """Base class of models whose candidates x descend E(x) = -<e(x), f(e(x))> + P(x).

    f is the network, conditioned on the observed sequence. e is the mirror map of candidates to the
    network's width, and P is its potential; x moves by the gradient in e (see `MirrorMap`). If f
    does not depend on the candidate, one step of size 1 from zero gives the output of a plain
    transformer.

    Attributes:
        net: network of the observed and the candidate stream.
        has_energy: False if the network predicts the update directly.
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
        """Return the energy function of embedded candidates (B, U, D), given a context."""
        return (BilinearEnergy if self.has_energy else DirectUpdate)(partial(self.net, context))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.observe(batch[self.keys[0]][:, :-1])
        return self.objective(self.energy(context), self.target(batch), batch["noise"])

    def descend(self, context: EncodedContext, generator: Generators = None) -> DescentResult:
        """Descend candidates for the element after each newly observed position."""
        units = context.last.shape[1] * self.inference.num_candidates
        init = self.objective.space.zeros_like_candidate(self.empty_target(context, units))
        if init_std := self.objective.init_std:
            init = init_std * draw_normal(init, generator)
        return self.descend_candidates(self.energy(context), init, generator)
