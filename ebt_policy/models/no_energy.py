"""The sceptic's baseline: is it the energy that helps, or only the iteration?

The energy model's network, steps and loss, but the network gives the update of the candidate
itself, and no energy is differentiated.
"""

from __future__ import annotations

from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import DescentInference, EnergyModel


class NoEnergyMixin(EnergyModel):
    """Without an energy there is nothing to choose or to stop by."""

    name = "refiner"
    has_energy = False

    def _check_inference(self) -> None:
        if self.inference != DescentInference(steps=self.inference.steps):
            raise ConfigError("model=refiner has no energy to choose or stop by: only steps.")
