"""Video models in feature space: their base class, and the energy model.

A frame is one token of features. Models predict the change to the next frame. Shapes: B batch, S
context, U units (one candidate for each position, or M adjacent ones), F features of a frame, D
width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebt_policy.config import options
from ebt_policy.energy import MirrorMap
from ebt_policy.energy.candidate_space import CandidateSpace, squared_error
from ebt_policy.energy.causal import CausalTransformer, EncodedContext
from ebt_policy.energy.objectives import ObjectiveFactory
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import Domain, Model
from ebt_policy.models.energy_model import DescentInference
from ebt_policy.models.factory import build_model, build_size
from ebt_policy.models.sequence_energy import SequenceEnergyModel
from ebt_policy.registry import Registry


class FramePrediction(NamedTuple):
    """Predictions of the next frame, one for each frame of a sequence.

    Attributes:
        changes: predicted changes (B, S, F) to the next frame.
        signals: indicators of hard frames, (B, S) each. ``change`` is the mean square of the
            predicted change. Models that descend add ``last step``, the mean square of the last
            step, and energy models add ``energy``, the final energy.
    """

    changes: Tensor
    signals: dict[str, Tensor]


class VideoModel(Model):
    """Base of all video models.

    Changes are divided by the root mean square of the changes in training. So the squared error of
    repeating the last frame is 1 on average.

    Args:
        features: F.
        context: S, the maximum number of context frames.
        net: the network.

    Attributes:
        encoder: digest of the encoder of the features (see `FrameFeatures`); "" if it is unknown.
    """

    domain = Domain.VIDEO
    encoder = ""

    def __init__(self, features: int, context: int, net: CausalTransformer) -> None:
        super().__init__()
        if context < 1:
            raise ConfigError(f"task.context must be at least 1, got {context}.")
        self.features, self.context, self.net = features, context, net
        self.frame_in = nn.Linear(features, net.width)
        self.change_out = nn.Linear(net.width, features, bias=False)
        nn.init.normal_(self.change_out.weight, std=0.02)
        self.mean: Tensor
        self.scale: Tensor
        self.step: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("step", torch.ones(()))

    def fit(self, clips: Sequence[Tensor]) -> None:
        """Set the normalization of features and changes from training clips (T, F)."""
        frames = torch.cat(list(clips))
        scale = frames.std(dim=0)
        # Without this limit, features that hardly vary would become noise of unit variance.
        scale = scale.clamp(min=0.1 * float(scale.square().mean().sqrt()) + 1e-8)
        steps = torch.cat([clip.diff(dim=0) for clip in clips]) / scale
        self.mean, self.scale = frames.mean(dim=0), scale
        self.step = steps.square().mean().sqrt().clamp(min=1e-8)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("frames",)

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "frames": (batch["frames"] - self.mean) / self.scale}

    def changes(self, frames: Tensor) -> Tensor:
        """Return the changes (B, S, F) between normalised frames (B, S + 1, F)."""
        return frames.diff(dim=1) / self.step

    def observe(self, sequence: Tensor) -> EncodedContext:
        """Encode normalised frames (B, S, F)."""
        return self.net.observe(self.frame_in(sequence))

    @abstractmethod
    def predict(self, context: EncodedContext, generator: Generators = None) -> FramePrediction:
        """Predict the next frame after each newly encoded frame."""

    def errors(
        self, frames: Tensor, generator: Generators = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the errors of predictions and their signals, (B, S) each.

        Args:
            frames: normalised frames (B, S + 1, F); all except the first one are predicted.
        """
        with torch.no_grad():
            prediction = self.predict(self.observe(frames[:, :-1]), generator)
        return squared_error(prediction.changes, self.changes(frames)), prediction.signals

    def rollout(self, frames: Tensor, length: int, generator: Generators = None) -> Tensor:
        """Predict the next frames (B, length, F) after normalised frames (B, S, F), one by one."""
        with torch.no_grad():
            for _ in range(length):
                context = self.observe(frames[:, -self.context :])
                last = EncodedContext(context.keys_values, context.last[:, -1:])
                change = self.predict(last, generator).changes
                frames = torch.cat([frames, frames[:, -1:] + self.step * change], dim=1)
        return frames[:, -length:]

    @property
    def _data_config(self) -> dict[str, Any]:
        return {"features": self.features, "encoder": self.encoder}

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        model = build_video_model(config)
        model.encoder = config.get("encoder", "")
        return model


VIDEO_MODELS: Registry[type[Model]] = Registry("model", "ebt_policy.video_models")


def build_video_model(config: dict[str, Any]) -> Any:
    """Build an untrained `VideoModel`, or an `Autoencoder` of frames.

    Args:
        config: the section ``model`` with its ``name``. A `VideoModel` also needs the sections
            ``task`` with its ``context`` and ``size`` (see `TransformerConfig`), the number of
            ``features``, and ``objective`` for energy models.

    Raises:
        ConfigError: a name or an option is unknown.
    """
    if config["model"]["name"] == "autoencoder":
        return build_model(VIDEO_MODELS, config)
    return build_model(
        VIDEO_MODELS, config, config["features"], config["task"]["context"], build_size(config)
    )


@VIDEO_MODELS.register("ebt")
class EnergyVideoModel(VideoModel, SequenceEnergyModel):
    """Energy video model: the change x to the next frame descends an energy.

    With the network f and the matrix W of the output projection, the energy is

        E(x) = -<e(x), f(e(x))> + c |x|^2 / 2,   e(x) = c W^T x,   c = 1 / sqrt(F).

    If f did not depend on x, the minimum would be x = W f. The factor c gives the embedding e(x)
    the scale of an embedded text token, relative to the context that the network adds to it.

    Args:
        features, context: as in `VideoModel`.
        size: depth, width and heads of the network.
        inference: options of `DescentInference`.
        objective: factory of the training objective.
    """

    def __init__(
        self,
        features: int,
        context: int,
        size: TransformerConfig,
        *,
        inference: dict[str, Any],
        objective: ObjectiveFactory,
    ) -> None:
        mirror = MirrorMap(self.embed, self.pullback, self.potential)
        bound = objective(CandidateSpace(squared_error, mirror))
        net = CausalTransformer(size, level=bound.level_conditioned)
        super().__init__(features, context, net)
        self.objective, self.embedding_scale = bound, features**-0.5
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def embed(self, changes: Tensor) -> Tensor:
        """Return the embeddings (B, U, D) of changes (B, U, F)."""
        return self.embedding_scale * (changes @ self.change_out.weight)

    def pullback(self, gradient: Tensor) -> Tensor:
        """Map a gradient in embeddings (B, U, D) to changes (B, U, F), without the factor c."""
        return self.change_out(gradient)

    def potential(self, changes: Tensor) -> Tensor:
        """Return c |x|^2 / 2 of changes (B, U, F): (B, U)."""
        return self.embedding_scale * changes.square().flatten(2).sum(-1) / 2

    def target(self, batch: dict[str, Any]) -> Tensor:
        return self.changes(batch["frames"])

    def empty_target(self, context: EncodedContext, units: int) -> Tensor:
        return context.last.new_zeros(len(context.last), units, self.features)

    def predict(self, context: EncodedContext, generator: Generators = None) -> FramePrediction:
        result = self.descend(context, generator)
        path = result.selected_path
        signals = {
            "change": mean_square(result.candidate),
            "last step": mean_square(path[-1] - path[-2]),
        }
        if self.has_energy:
            signals["energy"] = result.energies[-1]
        return FramePrediction(result.candidate, signals)


def mean_square(x: Tensor) -> Tensor:
    """Return the mean square over features: (B, S, F) -> (B, S)."""
    return x.square().mean(-1)
