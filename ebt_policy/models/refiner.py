"""A baseline without an energy, which tests whether the energy helps or only the iteration.

It has the network, the steps and the loss of the energy model. But the network predicts the update
of a candidate directly, so no energy is differentiated.
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
                "model=refiner has no energy to select or stop by; set only inference.steps."
            )
