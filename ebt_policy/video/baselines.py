"""Video models without an energy. Shapes: B batch, S context, F features of a frame."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ebt_policy.energy.candidate_space import squared_error
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.models.refiner import NoEnergyMixin
from ebt_policy.video.model import (
    VIDEO_MODELS,
    EnergyVideoModel,
    FramePrediction,
    VideoModel,
    mean_square,
)


@VIDEO_MODELS.register("transformer_pp")
class VideoTransformerPP(VideoModel):
    """A causal transformer that predicts the change to the next frame."""

    name = "transformer_pp"

    def __init__(self, features: int, context: int, size: TransformerConfig) -> None:
        super().__init__(features, context, CausalTransformer(size, candidates=False))

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        frames = batch["frames"]
        changes = self.change_out(self.observe(frames[:, :-1]).last)
        return squared_error(changes, self.changes(frames)).mean(), {}

    def predict(self, context: EncodedContext, generator: Generators = None) -> FramePrediction:
        changes = self.change_out(context.last)
        return FramePrediction(changes, {"change": mean_square(changes)})


@VIDEO_MODELS.register("refiner")
class VideoRefiner(NoEnergyMixin, EnergyVideoModel):
    """A model without an energy: its network outputs the update of the change directly."""
