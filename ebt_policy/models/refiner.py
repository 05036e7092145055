"""The baseline without an energy: does the energy help, or only the iteration?

The energy model's network, steps and loss, but the network gives the update of the candidate
itself, and no energy is differentiated.
"""

from __future__ import annotations

from ebt_policy.errors import ConfigError
from ebt_policy.models.energy_model import DescentInference, EnergyModel


class NoEnergyMixin(EnergyModel):
    """A model without an energy, which cannot select candidates or stop early."""

    name = "refiner"
    has_energy = False

    def _check_inference(self) -> None:
        if self.inference != DescentInference(steps=self.inference.steps):
            raise ConfigError(
                "model=refiner has no energy to select or stop by; set inference.steps alone."
            )
