"""The sceptic's baseline: is it the energy that helps, or only the iteration?

The energy language model's two streams, steps and loss, but the network gives the update of the
guess itself, and no energy is differentiated. Shapes: B batch, U units, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ebt_policy.energy.gradient import Update
from ebt_policy.energy.sequences import Observed
from ebt_policy.models.text import EnergyLanguageModel, Thinking
from ebt_policy.options import ConfigError


class Refiner(EnergyLanguageModel):
    """See above; without an energy there is nothing to choose or to stop by."""

    name = "refiner"
    has_energy = False

    def configure_inference(self, **changes: Any) -> None:
        super().configure_inference(**changes)
        if self.inference != Thinking(steps=self.inference.steps):
            raise ConfigError("model=refiner has no energy to choose or stop by: only steps.")

    def energy(self, observed: Observed) -> Update:
        """The network's vector moves the guess as a gradient in the mean embedding would."""
        return Update(partial(self.net, observed))
