"""Models of video in feature space: their base, and the energy model.

A frame is one token of features; models predict its change. Shapes: B batch, S context, U units (a
candidate for each place, or M of them adjacent), F features of a frame, D width.
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
    """The prediction of the next frame at each place of a sequence.

    Attributes:
        changes: (B, S, F) to the next frame.
        signals: (B, S) each, indicators of hard frames: ``change``, the mean square of the
            predicted change; for a descent ``last step``, the mean square of its last step; for an
            energy ``energy``.
    """

    changes: Tensor
    signals: dict[str, Tensor]


class VideoModel(Model):
    """Base of all models of video.

    A change of 1 is the root mean square of those of training, so that the squared error of a model
    that repeats the last frame is 1 on average.

    Args:
        features: F.
        context: S, the frames that a prediction sees at most.
        net: the network.

    Attributes:
        encoder: digest of what made the features (see `FrameFeatures`), "" where it is not known.
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
        """Learn the units of features and changes from clips (T, F) of training."""
        frames = torch.cat(list(clips))
        scale = frames.std(dim=0)
        # What hardly varies must not become noise that counts as much as all else.
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
        """Predict what comes after each frame that was new."""

    def errors(
        self, frames: Tensor, generator: Generators = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the errors of predictions and their signals, (B, S) each.

        Args:
            frames: normalised (B, S + 1, F); the changes to all but the first are predicted.
        """
        with torch.no_grad():
            prediction = self.predict(self.observe(frames[:, :-1]), generator)
        return squared_error(prediction.changes, self.changes(frames)), prediction.signals

    def rollout(self, frames: Tensor, length: int, generator: Generators = None) -> Tensor:
        """Predict the frames (B, length, F) that follow normalised ones (B, S, F), one by one."""
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
        config: sections ``model`` with its ``name``, and for all but an autoencoder ``task`` with
            its ``context``, ``size`` (see `TransformerConfig`), ``features``, their number, and
            ``objective`` for energy models.

    Raises:
        ConfigError: for an unknown name or option.
    """
    if config["model"]["name"] == "autoencoder":
        return build_model(VIDEO_MODELS, config)
    return build_model(
        VIDEO_MODELS, config, config["features"], config["task"]["context"], build_size(config)
    )


@VIDEO_MODELS.register("ebt")
class EnergyVideoModel(VideoModel, SequenceEnergyModel):
    """A model whose change x to the next frame descends

        E(x) = -<e(x), f(e(x))> + c |x|^2 / 2,   e(x) = c W^T x, f the network, c = 1 / sqrt(F),

    which is lowest at x = W f where f is the same for all x. With c a candidate is as large as a
    token of text, and its place counts as much.

    Args:
        features, context: as in `VideoModel`.
        size: the size dial.
        inference: options of `DescentInference`.
        objective: makes the training objective.
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
        """Return the gradient in changes (B, U, F) from the gradient in embeddings (B, U, D)."""
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
