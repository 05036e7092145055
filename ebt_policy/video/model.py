"""Models of video in feature space: what they all do, and the energy model.

A frame is one token of features; what is predicted is how it changes. Shapes: B batch, S context,
U units (a guess for each place, or M of them adjacent), F features of a frame, D width.
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
from ebt_policy.energy.objectives import Objective
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import Domain, Model
from ebt_policy.models.building import build_model, build_size
from ebt_policy.models.energy_model import DescentInference
from ebt_policy.models.sequence_energy import SequenceEnergyModel
from ebt_policy.registry import Registry


class FramePrediction(NamedTuple):
    """What a model foresees at each place of a sequence.

    Attributes:
        changes: (B, S, F) to the next frame.
        signals: (B, S) each, by which what is hard to foresee may be known: ``change``, the mean
            square of what is foreseen; of a descent ``last step``, that of its last step; of an
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
        every = torch.cat(list(clips))
        scale = every.std(dim=0)
        # What hardly varies must not become noise that counts as much as all else.
        scale = scale.clamp(min=0.1 * float(scale.square().mean().sqrt()) + 1e-8)
        steps = torch.cat([clip.diff(dim=0) for clip in clips]) / scale
        self.mean, self.scale = every.mean(dim=0), scale
        self.step = steps.square().mean().sqrt().clamp(min=1e-8)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("frames",)

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "frames": (batch["frames"] - self.mean) / self.scale}

    def changes(self, frames: Tensor) -> Tensor:
        """Of normalised frames (B, S + 1, F): (B, S, F)."""
        return frames.diff(dim=1) / self.step

    def observe(self, sequence: Tensor) -> EncodedContext:
        """Normalised frames (B, S, F)."""
        return self.net.observe(self.frame_in(sequence))

    @abstractmethod
    def predict(self, observed: EncodedContext, generator: Generators = None) -> FramePrediction:
        """What comes after each frame that was new."""

    def errors(
        self, frames: Tensor, generator: Generators = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the change to each normalised frame (B, S + 1, F) but the first,
        (B, S), and the signals of what was foreseen."""
        with torch.no_grad():
            found = self.predict(self.observe(frames[:, :-1]), generator)
        return squared_error(found.changes, self.changes(frames)), found.signals

    def rollout(self, frames: Tensor, length: int, generator: Generators = None) -> Tensor:
        """The frames that follow normalised ones (B, S, F), each from those before it:
        (B, length, F)."""
        with torch.no_grad():
            for _ in range(length):
                seen = self.observe(frames[:, -self.context :])
                last = EncodedContext(seen.keys_values, seen.last[:, -1:])
                change = self.predict(last, generator).changes
                frames = torch.cat([frames, frames[:, -1:] + self.step * change], dim=1)
        return frames[:, -length:]

    @property
    def _learned(self) -> dict[str, Any]:
        return {"features": self.features, "encoder": self.encoder}

    @classmethod
    def _rebuild(cls, config: dict[str, Any], folder: Path) -> Model:
        model = build_video_model(config)
        model.encoder = config.get("encoder", "")
        return model


VIDEO_MODELS: Registry[type[Model]] = Registry("model", "ebt_policy.video_models")


def build_video_model(config: dict[str, Any]) -> Any:
    """Build an untrained `VideoModel`, or an `Autoencoder` of frames.

    Args:
        config: sections ``model`` with its ``name``, and for all but an autoencoder ``task`` with
            its ``context``, ``size`` (see `TransformerConfig`), ``features``, their number, and
            ``objective`` for those that have guesses.

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
    """The change x to the next frame descends

        E(x) = -<e(x), f(e(x))> + c |x|^2 / 2,   e(x) = c W^T x, f the network, c = 1 / sqrt(F),

    which is lowest at x = W f where f is the same for all x. With c a guess is as large as a token
    of text, beside which what is known of its place counts as much.

    Args:
        features, context: as in `VideoModel`.
        size: the size dial.
        inference: options of `DescentInference`.
        objective: how the landscape is learned.
    """

    def __init__(
        self,
        features: int,
        context: int,
        size: TransformerConfig,
        *,
        inference: dict[str, Any],
        objective: Objective,
    ) -> None:
        net = CausalTransformer(size, level=objective.level_conditioned)
        super().__init__(features, context, net)
        self.objective, self.small = objective, features**-0.5
        objective.space = CandidateSpace(
            squared_error, MirrorMap(self.seen, self.moved, self.potential)
        )
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def seen(self, changes: Tensor) -> Tensor:
        """(B, U, F) -> (B, U, D)."""
        return self.small * (changes @ self.change_out.weight)

    def moved(self, slope: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, F)."""
        return self.change_out(slope)

    def potential(self, changes: Tensor) -> Tensor:
        """c |x|^2 / 2 of units (B, U, F): (B, U)."""
        return self.small * changes.square().flatten(2).sum(-1) / 2

    def target(self, batch: dict[str, Any]) -> Tensor:
        return self.changes(batch["frames"])

    def like(self, observed: EncodedContext, units: int) -> Tensor:
        return observed.last.new_zeros(len(observed.last), units, self.features)

    def predict(self, observed: EncodedContext, generator: Generators = None) -> FramePrediction:
        found = self.think(observed, generator)
        signals = {
            "change": mean_square(found.candidate),
            "last step": mean_square(found.route[-1] - found.route[-2]),
        }
        if self.has_energy:
            signals["energy"] = found.energies[-1]
        return FramePrediction(found.candidate, signals)


def mean_square(x: Tensor) -> Tensor:
    """(B, S, F) -> (B, S)."""
    return x.square().mean(-1)
