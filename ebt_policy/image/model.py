"""Models that take noise from images: what they all are, and the energy model.

Noise is that of diffusion models (Ho et al. 2020): at level k of `LEVELS` an image y has become
sqrt(abar_k) y + sqrt(1 - abar_k) n. Taking away the noise of a low level is denoising, of the last
one, where nothing but noise is left, generation.

Shapes: B batch, U units (candidates an image), C channels, S side, P side of a patch, L patches.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from ebt_policy.config import options
from ebt_policy.energy import EnergyFn
from ebt_policy.energy.candidate_space import CandidateSpace
from ebt_policy.energy.gradients import energy_gradient
from ebt_policy.energy.objectives import Flow, ObjectiveFactory
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.two_stream import Context, TransformerConfig, TwoStreamTransformer
from ebt_policy.errors import ConfigError
from ebt_policy.models.base import Domain, Model
from ebt_policy.models.building import build_model, build_size
from ebt_policy.models.energy_model import DescentInference, EnergyModel
from ebt_policy.registry import Registry

LEVELS = 1000  # of noise, as in DDPM: linear betas from 0.0001 to 0.02


@dataclass(frozen=True)
class ImageShape:
    """What ties a model to its images.

    Args:
        side: S, pixels.
        channels: C, 3 or 1.
        patch: P, a divisor of S.
        max_noise_level: the highest level that it is trained for; 1000 to make images of noise.
        classes: of the images, told to the network; 0 for none.
    """

    side: int
    channels: int
    patch: int
    max_noise_level: int
    classes: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ConfigError(f"task.side must be at least 1, got {self.side}.")
        if self.patch < 1 or self.side % self.patch:
            raise ConfigError(f"task.patch={self.patch} must divide task.side={self.side}.")
        if not 1 <= self.max_noise_level <= LEVELS:
            raise ConfigError(
                f"task.max_noise_level must be 1 to {LEVELS}, got {self.max_noise_level}."
            )


class DenoisingResult(NamedTuple):
    """What a model made of noisy images.

    Attributes:
        images: (B, C, S, S) in [-1, 1].
        path: from the noisy images to these, N + 1 of them, N the passes or steps asked for.
        energies: (N + 1, B), before each step and at the end; None without an energy.
        steps_used: (B,), passes or steps that each image took.
    """

    images: Tensor
    path: list[Tensor]
    energies: Tensor | None
    steps_used: Tensor


class PatchTransformer(nn.Module):
    """`TwoStreamTransformer` over the patches of an image; what it is told is one context token.

    Args:
        shape: of the images.
        size: the size dial.
        output, level: as in `TwoStreamTransformer`.
    """

    def __init__(
        self,
        shape: ImageShape,
        size: TransformerConfig,
        *,
        output: Literal["energy", "vector"],
        level: bool,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = TwoStreamTransformer(
            max(shape.classes, 1),
            1,
            shape.channels * shape.patch**2,
            (shape.side // shape.patch) ** 2,
            size,
            output=output,
            level=level,
        )

    def encode(self, labels: Tensor) -> Context:
        """Classes (B,) -> context, once a prediction."""
        told = F.one_hot(labels, max(self.shape.classes, 1)) if self.shape.classes else None
        like = self.transformer.context_in.weight
        token = like.new_ones(len(labels), 1) if told is None else told.to(like)
        return self.transformer.encode(token.unsqueeze(1))

    def forward(self, context: Context, images: Tensor, level: Tensor | None = None) -> Tensor:
        """Images (B, U, C, S, S), levels (B, U) -> energies (B, U) or vectors (B, U, C, S, S)."""
        out = self.transformer(context, self.patches(images), level)
        return out if out.ndim == 2 else self._images(out)

    def energy_map(self, context: Context, images: Tensor, level: Tensor | None = None) -> Tensor:
        """The share of each patch in the energy of images: (B, U, S / P, S / P)."""
        tokens = self.patches(images)
        shares = (tokens * self.transformer.vectors(context, tokens, level)).sum(-1)
        return shares.unflatten(-1, (self.shape.side // self.shape.patch, -1))

    def patches(self, images: Tensor) -> Tensor:
        """Images (B, U, C, S, S) -> tokens (B, U, L, C P P)."""
        patch, rows = self.shape.patch, self.shape.side // self.shape.patch
        split = images.unflatten(-1, (rows, patch)).unflatten(-3, (rows, patch))
        # (B, U, C, rows, P, columns, P) -> (B, U, rows * columns, C * P * P)
        return split.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)

    def _images(self, tokens: Tensor) -> Tensor:
        patch, rows = self.shape.patch, self.shape.side // self.shape.patch
        split = tokens.unflatten(2, (rows, rows)).unflatten(-1, (-1, patch, patch))
        return split.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)


class ImageModel(Model):
    """Base of all models of images.

    Args:
        shape: of the images.
        net: the network.
    """

    domain = Domain.IMAGE

    def __init__(self, shape: ImageShape, net: PatchTransformer) -> None:
        super().__init__()
        self.shape, self.net = shape, net
        kept = torch.cat([torch.ones(1), DDPMScheduler(LEVELS).alphas_cumprod])
        self.abar: Tensor
        self.register_buffer("abar", kept, persistent=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("image", "label")

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bytes (B, S, S, C) -> (B, C, S, S) in [-1, 1]."""
        return {**batch, "image": batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1}

    def noised(self, images: Tensor, normal: Tensor, noise: Tensor) -> Tensor:
        """Images (B, *, C, S, S) at levels (B, *) of noise, 0 for none."""
        kept = self.abar[noise].reshape(*noise.shape, 1, 1, 1)
        return kept.sqrt() * images + (1 - kept).sqrt() * normal

    def degrade(self, images: Tensor, noise: int, generator: Generators) -> Tensor:
        """Images (B, C, H, W) of any size with noise of a level."""
        level = torch.full((len(images),), noise, device=images.device)
        return self.noised(images, draw_normal(images, generator), level)

    @abstractmethod
    def restore(
        self, noisy: Tensor, noise: int, labels: Tensor | None = None, generator: Generators = None
    ) -> DenoisingResult:
        """Take the noise from images (B, C, S, S).

        Args:
            noise: its level, which not every model looks at.
            labels: classes (B,), where the model was trained with classes.
        """

    @abstractmethod
    def told(self, noise: Tensor) -> Tensor | None:
        """What the network is told of images (B,) with levels of noise: (B, 1), or None."""

    def features(
        self, images: Tensor, noise: int = 0, labels: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:  # fmt: skip
        """What the network makes of images (B, C, S, S) on its way, for a probe: (B, layers * D).

        Args:
            noise: level that is put on the images first.
            labels: as in `restore`.
        """
        with torch.no_grad():
            level = torch.full((len(images),), noise, device=images.device)
            seen = self.degrade(images, noise, generator) if noise else images
            context = self.encode(labels, len(images))
            found = self.net.transformer.features(
                context, self.net.patches(seen.unsqueeze(1)), self.told(level)
            )
        return found.flatten(1)

    def oddness(self, images: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """By what images (B, C, S, S) that are unlike those of training may be known: (B,) each,
        higher for the unlike.

        ``restoring``: the error of what is made of them once noise of training was put on
        (reconstruction as a detector, Graham et al. 2023).
        """
        noise = self.shape.max_noise_level
        found = self.restore(self.degrade(images, noise, generator), noise, generator=generator)
        return {"restoring": (found.images - images).square().flatten(1).mean(1)}

    def encode(self, labels: Tensor | None, rows: int) -> Context:
        """What the network is told.

        Raises:
            ConfigError: it needs classes, and they are not given.
        """
        if labels is None:
            if self.shape.classes:
                raise ConfigError("this model was trained with classes; say which.")
            labels = torch.zeros(rows, dtype=torch.long, device=self.abar.device)
        return self.net.encode(labels)

    @property
    def _learned(self) -> dict[str, Any]:
        return {"shape": asdict(self.shape)}

    @classmethod
    def _rebuild(cls, config: dict[str, Any], folder: Path) -> Model:
        return build_image_model(config)


IMAGE_MODELS: Registry[type[ImageModel]] = Registry("model", "ebt_policy.image_models")


def build_image_model(config: dict[str, Any]) -> ImageModel:
    """Build an untrained model of images.

    Args:
        config: sections ``shape`` (see `ImageShape`), ``size`` (see `TransformerConfig`), ``model``
            with its ``name``, and ``objective`` for those that descend.

    Raises:
        ConfigError: for an unknown name or option.
    """
    shape = options(ImageShape, config["shape"], "task")
    return build_model(IMAGE_MODELS, config, shape, build_size(config))


@IMAGE_MODELS.register("ebt")
class EnergyImageModel(EnergyModel, ImageModel):
    """The image itself descends an energy, from the noisy one on; it is told no level of noise.

    Args:
        shape: as in `ImageModel`.
        size: the size dial.
        inference: options of `DescentInference`.
        objective: how the landscape is learned: from noisy images (s1, s2), or, of models that make
            images of noise, along the path from it.

    Attributes:
        has_energy: False where a network gives the update itself.
    """

    name = "ebt"
    has_energy: ClassVar[bool] = True

    def __init__(
        self,
        shape: ImageShape,
        size: TransformerConfig,
        *,
        inference: dict[str, Any],
        objective: ObjectiveFactory,
    ) -> None:
        bound = objective(CandidateSpace(forward_process=self._forward_process))
        if isinstance(bound, Flow) and shape.max_noise_level < LEVELS:
            raise ConfigError(
                "this objective learns to generate from pure noise: set "
                f"task.max_noise_level={LEVELS}, or use objective=s1, s2 or s1_corrupted."
            )
        net = PatchTransformer(
            shape,
            size,
            output="energy" if self.has_energy else "vector",
            level=bound.level_conditioned,
        )
        super().__init__(shape, net)
        self.objective = bound
        self.inference = options(DescentInference, inference, "model.inference")
        self.configure_inference()

    def _forward_process(self, target: Tensor, normal: Tensor, level: Tensor) -> Tensor:
        """Return targets with the noise of training at level 0, and less of it up to 1."""
        return self.noised(
            target, normal, ((1 - level) * self.shape.max_noise_level).round().long()
        )

    @property
    def has_random_init(self) -> bool:
        return self.shape.max_noise_level == LEVELS  # else all start from the noisy image

    def told(self, noise: Tensor) -> Tensor | None:
        """How many steps are done, where it is told: none."""
        return noise.new_zeros(len(noise), 1).float() if self.objective.level_conditioned else None

    def oddness(self, images: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """Also ``gradient``, the mean square of what a step takes away, and of an energy itself
        ``energy``."""
        found = super().oddness(images, generator)
        energy = self.energy(self.encode(None, len(images)))
        level = self.told(torch.zeros(len(images), device=images.device))
        with torch.no_grad():
            slope, energies = energy_gradient(energy, images.unsqueeze(1), level)
        found |= {"gradient": slope.square().flatten(1).mean(1)}
        return found | ({"energy": energies[:, 0]} if self.has_energy else {})

    def energy_map(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The share of each patch in the energy of images (B, C, S, S): (B, S / P, S / P)."""
        with torch.no_grad():
            context = self.encode(labels, len(images))
            level = self.told(torch.zeros(len(images), device=images.device))
            return self.net.energy_map(context, images.unsqueeze(1), level)[:, 0]

    def target(self, batch: dict[str, Any]) -> Tensor:
        return batch["image"].unsqueeze(1)

    def energy(self, context: Context) -> EnergyFn:
        """Of images (B, U, C, S, S)."""
        return partial(self.net, context)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.net.encode(batch["label"])
        return self.objective(self.energy(context), self.target(batch), batch["draws"])

    def restore(
        self, noisy: Tensor, noise: int, labels: Tensor | None = None, generator: Generators = None
    ) -> DenoisingResult:
        config, context = self.inference, self.encode(labels, len(noisy))
        init = noisy.unsqueeze(1).repeat_interleave(config.num_candidates, dim=1)
        if config.num_candidates > 1:  # a model that starts from pure noise, which is drawn anew
            init = draw_normal(init, generator)
        result = self.descend_candidates(self.energy(context), init, generator)
        path, energies = [x[:, 0] for x in result.selected_path], result.energies[:, :, 0]
        missing = config.steps + 1 - len(path)  # steps not taken, since all had stopped
        path += path[-1:] * missing
        energies = torch.cat([energies, energies[-1:].expand(missing, -1)])
        return DenoisingResult(
            result.candidate[:, 0].clamp(-1, 1),
            path,
            energies if self.has_energy else None,
            result.steps_used[:, 0],
        )
