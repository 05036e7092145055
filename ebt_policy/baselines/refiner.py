"""The sceptic's baseline: is it the energy that helps, or only the iteration?

The energy model's network, steps and loss, but the network gives the update of the candidate
itself, and no energy is differentiated. Shapes: B batch, U units.
"""

from __future__ import annotations

from functools import partial

from ebt_policy.energy.gradient import Update
from ebt_policy.energy.transformer import Context
from ebt_policy.models.image import EnergyImageModel
from ebt_policy.models.landscape import LandscapeModel, Thinking
from ebt_policy.models.text import EnergyLanguageModel
from ebt_policy.models.video import EnergyVideoModel
from ebt_policy.options import ConfigError


class _OnlySteps(LandscapeModel):
    """Without an energy there is nothing to choose or to stop by."""

    name = "refiner"
    has_energy = False

    def _check_inference(self) -> None:
        if self.inference != Thinking(steps=self.inference.steps):
            raise ConfigError("model=refiner has no energy to choose or stop by: only steps.")


class Refiner(_OnlySteps, EnergyLanguageModel):
    """Of text: the network's vector moves the guess as a gradient in the mean embedding would."""


class VideoRefiner(_OnlySteps, EnergyVideoModel):
    """Of video, likewise."""


class ImageRefiner(_OnlySteps, EnergyImageModel):
    """Of images."""

    def energy(self, context: Context) -> Update:
        """The network's vector is the update."""
        return Update(partial(self.net, context))
