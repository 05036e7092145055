"""Image models that denoise or generate: their base class, and the energy model.

Noise is added as in diffusion models (Ho et al. 2020): level k of `LEVELS` turns an image y into
sqrt(abar_k) y + sqrt(1 - abar_k) n with normal noise n. Removing noise of a low level is denoising.
The last level is pure noise, and removing it is generation.

Shapes: B batch, U units (candidates of an image), C channels, S side, P side of a patch, L patches.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.energy import EnergyFn
from ebt_policy.energy.candidate_space import CandidateSpace
from ebt_policy.energy.gradients import energy_gradient
from ebt_policy.energy.objectives import Flow, ObjectiveFactory
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.two_stream import Context, TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.image.patch_transformer import LEVELS, ImageShape, PatchTransformer
from ebt_policy.models.base import Domain, Model
from ebt_policy.models.energy_model import DescentInference, EnergyModel
from ebt_policy.models.factory import build_model, build_size
from ebt_policy.registry import Registry


class DenoisingResult(NamedTuple):
    """Denoised images.

    Attributes:
        images: (B, C, S, S) in [-1, 1].
        path: the noisy images, then the images after each of N passes or steps; N + 1 in all.
        energies: (N + 1, B), before each step and at the end; None without an energy.
        steps_used: (B,), number of passes or steps of each image.
    """

    images: Tensor
    path: list[Tensor]
    energies: Tensor | None
    steps_used: Tensor


class ImageModel(Model):
    """Base of all image models.

    Args:
        shape: size, channels, noise levels and classes of the images.
        net: the network.
    """

    domain = Domain.IMAGE

    def __init__(self, shape: ImageShape, net: PatchTransformer) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # slow to import

        super().__init__()
        self.shape, self.net = shape, net
        abar = torch.cat([torch.ones(1), DDPMScheduler(LEVELS).alphas_cumprod])
        self.abar: Tensor
        self.register_buffer("abar", abar, persistent=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return ("image", "label")

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert bytes (B, S, S, C) to (B, C, S, S) in [-1, 1]."""
        return {**batch, "image": batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1}

    def forward_process(self, images: Tensor, normal: Tensor, noise: Tensor) -> Tensor:
        """Return images (B, *, C, S, S) with noise of levels (B, *), where 0 is no noise."""
        abar = self.abar[noise].reshape(*noise.shape, 1, 1, 1)
        return abar.sqrt() * images + (1 - abar).sqrt() * normal

    def add_noise(self, images: Tensor, noise: int, generator: Generators) -> Tensor:
        """Add noise of one level to images (B, C, H, W) of any size."""
        level = torch.full((len(images),), noise, device=images.device)
        return self.forward_process(images, draw_normal(images, generator), level)

    @abstractmethod
    def denoise(
        self, noisy: Tensor, noise: int, labels: Tensor | None = None, generator: Generators = None
    ) -> DenoisingResult:
        """Remove the noise from images (B, C, S, S).

        Args:
            noise: level of the noise; not every model uses it.
            labels: classes (B,), required if the model was trained with classes.
        """

    @abstractmethod
    def network_level(self, noise: Tensor) -> Tensor | None:
        """Return the network's level (B, 1) at noise levels (B,); None if it reads no level."""

    def features(
        self, images: Tensor, noise: int = 0, labels: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:  # fmt: skip
        """Return hidden features (B, layers * D) of images (B, C, S, S), for a probe.

        Args:
            noise: level of the noise that is added to the images first.
            labels: as in `denoise`.
        """
        with torch.no_grad():
            level = torch.full((len(images),), noise, device=images.device)
            noisy = self.add_noise(images, noise, generator) if noise else images
            context = self.encode(labels, len(images))
            features = self.net.transformer.features(
                context, self.net.patches(noisy.unsqueeze(1)), self.network_level(level)
            )
        return features.flatten(1)

    def ood_scores(self, images: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """Return out-of-distribution scores (B,) of images (B, C, S, S), by name.

        ``restoring`` is a reconstruction error (Graham et al. 2023): the mean squared error after
        noise of the highest training level was added and removed.
        """
        noise = self.shape.max_noise_level
        result = self.denoise(self.add_noise(images, noise, generator), noise, generator=generator)
        return {"restoring": (result.images - images).square().flatten(1).mean(1)}

    def encode(self, labels: Tensor | None, rows: int) -> Context:
        """Encode classes (B,), or ``rows`` images without classes.

        Raises:
            ConfigError: the model was trained with classes, and ``labels`` is None.
        """
        if labels is None:
            if self.shape.classes:
                raise ConfigError("this model was trained with classes; pass labels.")
            labels = torch.zeros(rows, dtype=torch.long, device=self.abar.device)
        return self.net.encode(labels)

    @property
    def _data_config(self) -> dict[str, Any]:
        return {"shape": asdict(self.shape)}

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        return build_image_model(config)


IMAGE_MODELS: Registry[type[ImageModel]] = Registry("model", "ebt_policy.image_models")


def build_image_model(config: dict[str, Any]) -> ImageModel:
    """Build an untrained image model.

    Args:
        config: the sections ``shape`` (see `ImageShape`), ``size`` (see `TransformerConfig`),
            ``model`` with its ``name``, and ``objective`` for models that descend.

    Raises:
        ConfigError: a name or an option is unknown.
    """
    shape = options(ImageShape, config["shape"], "task")
    return build_model(IMAGE_MODELS, config, shape, build_size(config))


@IMAGE_MODELS.register("ebt")
class EnergyImageModel(EnergyModel, ImageModel):
    """Energy image model: the noisy image descends an energy, which does not read the noise level.

    Args:
        shape: as in `ImageModel`.
        size: depth, width and heads of the network.
        inference: options of `DescentInference`.
        objective: factory of the training objective. With s1 and s2, candidates start from noisy
            images; with flow, for generation, they follow the path from noise to images.

    Attributes:
        has_energy: False if the network outputs the update directly.
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
        bound = objective(CandidateSpace(forward_process=self._corrupt))
        if isinstance(bound, Flow) and shape.max_noise_level < LEVELS:
            raise ConfigError(
                "this objective is for generation from pure noise; set "
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

    def _corrupt(self, target: Tensor, normal: Tensor, level: Tensor) -> Tensor:
        """Return noisy targets: the highest training noise at level 0, no noise at level 1."""
        return self.forward_process(
            target, normal, ((1 - level) * self.shape.max_noise_level).round().long()
        )

    @property
    def has_random_init(self) -> bool:
        return self.shape.max_noise_level == LEVELS  # Otherwise all start from the noisy image.

    def network_level(self, noise: Tensor) -> Tensor | None:
        """Return 0, the level of the first step, if the network reads a level; otherwise None."""
        return noise.new_zeros(len(noise), 1).float() if self.objective.level_conditioned else None

    def ood_scores(self, images: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """Return also ``gradient``, its mean square, and ``energy`` if the model has an energy."""
        scores = super().ood_scores(images, generator)
        energy = self.energy(self.encode(None, len(images)))
        level = self.network_level(torch.zeros(len(images), device=images.device))
        with torch.no_grad():
            gradient, energies = energy_gradient(energy, images.unsqueeze(1), level)
        scores |= {"gradient": gradient.square().flatten(1).mean(1)}
        return scores | ({"energy": energies[:, 0]} if self.has_energy else {})

    def energy_map(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the contribution (B, S / P, S / P) of each patch to the energy of images."""
        with torch.no_grad():
            context = self.encode(labels, len(images))
            level = self.network_level(torch.zeros(len(images), device=images.device))
            return self.net.energy_map(context, images.unsqueeze(1), level)[:, 0]

    def target(self, batch: dict[str, Any]) -> Tensor:
        return batch["image"].unsqueeze(1)

    def energy(self, context: Context) -> EnergyFn:
        """Return the energy of images (B, U, C, S, S)."""
        return partial(self.net, context)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.net.encode(batch["label"])
        return self.objective(self.energy(context), self.target(batch), batch["noise"])

    def denoise(
        self, noisy: Tensor, noise: int, labels: Tensor | None = None, generator: Generators = None
    ) -> DenoisingResult:
        config, context = self.inference, self.encode(labels, len(noisy))
        init = noisy.unsqueeze(1).repeat_interleave(config.num_candidates, dim=1)
        if config.num_candidates > 1:  # Only if the model starts from noise: draw it for each.
            init = draw_normal(init, generator)
        result = self.descend_candidates(self.energy(context), init, generator)
        path, energies = [x[:, 0] for x in result.selected_path], result.energies[:, :, 0]
        missing = config.steps + 1 - len(path)  # Steps after all candidates had stopped.
        path += path[-1:] * missing
        energies = torch.cat([energies, energies[-1:].expand(missing, -1)])
        return DenoisingResult(
            result.candidate[:, 0].clamp(-1, 1),
            path,
            energies if self.has_energy else None,
            result.steps_used[:, 0],
        )
