"""Image models without an energy: DiT, the baseline of the EBT paper, and the refiner.

DiT (Peebles & Xie 2023) is a bidirectional transformer over patches whose blocks are modulated by
the noise level and the class. It samples with DDPM or DDIM of the library diffusers.

Shapes: B batch, C channels, S side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.energy import DirectUpdate
from ebt_policy.energy.sampling import Generators
from ebt_policy.energy.two_stream import Context, TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.image.model import IMAGE_MODELS, DenoisingResult, EnergyImageModel, ImageModel
from ebt_policy.image.patch_transformer import LEVELS, ImageShape, PatchTransformer
from ebt_policy.models.denoising_steps import set_num_steps
from ebt_policy.models.refiner import NoEnergyMixin


@dataclass(frozen=True)
class DiTInference:
    """Inference options of a DiT.

    Args:
        scheduler: ``ddpm`` (stochastic) or ``ddim`` (deterministic).
        steps: number of passes. If there are more passes than levels, they run through the levels
            several times. This gives the 300 passes at twice the training noise of Gladstone et al.
            2025.
        start_at_noise_level: whether to start at the noise level of the images, at most the highest
            of training. False always starts at the highest, as in the paper.
    """

    scheduler: Literal["ddpm", "ddim"] = "ddim"
    steps: int = 100
    start_at_noise_level: bool = True

    def __post_init__(self) -> None:
        if self.scheduler not in ("ddpm", "ddim"):
            raise ConfigError(f"inference.scheduler must be ddpm or ddim, got {self.scheduler}.")
        if self.steps < 1:
            raise ConfigError(f"inference.steps must be at least 1, got {self.steps}.")


@IMAGE_MODELS.register("dit")
class DiT(ImageModel):
    """DiT, which predicts the noise n of sqrt(abar_k) y + sqrt(1 - abar_k) n at level k.

    Args:
        shape: as in `ImageModel`; training draws levels up to ``shape.max_noise_level`` uniformly.
        size: depth, width and heads of the network.
        inference: options of `DiTInference`.
    """

    name = "dit"

    def __init__(
        self, shape: ImageShape, size: TransformerConfig, *, inference: dict[str, Any]
    ) -> None:
        super().__init__(shape, PatchTransformer(shape, size, output="vector", level=True))
        self.inference = options(DiTInference, inference, "model.inference")

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["image"]
        level = torch.randint(
            1, self.shape.max_noise_level + 1, (len(images),), device=images.device
        )
        normal = torch.randn_like(images)
        noisy = self.forward_process(images, normal, level)
        return {"noisy": noisy, "normal": normal, "level": level}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        noise = batch["noise"]
        context = self.net.encode(batch["label"])
        predicted = self._noise_in(noise["noisy"], context, noise["level"])
        return (predicted - noise["normal"]).square().mean(), {}

    def network_level(self, noise: Tensor) -> Tensor:
        return (1.0 - noise.clamp(min=1) / LEVELS).unsqueeze(1)

    def _noise_in(self, noisy: Tensor, context: Any, level: Tensor) -> Tensor:
        return self.net(context, noisy.unsqueeze(1), self.network_level(level))[:, 0]

    def denoise(
        self, noisy: Tensor, noise: int, labels: Tensor | None = None, generator: Generators = None
    ) -> DenoisingResult:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # slow to import

        from ebt_policy.models.ddim import ExactDDIMScheduler

        config = self.inference
        top = (
            min(noise, self.shape.max_noise_level)
            if config.start_at_noise_level
            else self.shape.max_noise_level
        )
        kind = DDPMScheduler if config.scheduler == "ddpm" else ExactDDIMScheduler
        betas = DDPMScheduler(LEVELS).betas[:top].numpy()
        scheduler = kind(num_train_timesteps=top, trained_betas=betas, timestep_spacing="trailing")
        extra = {"generator": generator} if config.scheduler == "ddpm" else {}
        cycles = math.ceil(config.steps / top)
        x, path = noisy, [noisy]
        with torch.no_grad():
            context = self.encode(labels, len(noisy))
            for k in range(cycles):
                set_num_steps(scheduler, (config.steps + k) // cycles)
                for t in scheduler.timesteps:
                    level = torch.full((len(x),), int(t) + 1, device=x.device)
                    predicted = self._noise_in(x, context, level)
                    x = scheduler.step(predicted, t, x, **extra).prev_sample  # type: ignore[arg-type]
                    path.append(x)
        used = torch.full((len(x),), config.steps, device=x.device)
        return DenoisingResult(x.clamp(-1, 1), path, None, used)


@IMAGE_MODELS.register("refiner")
class ImageRefiner(NoEnergyMixin, EnergyImageModel):
    """A model without an energy: its network outputs the update of the image directly."""

    def energy(self, context: Context) -> DirectUpdate:
        """Return the update instead of an energy."""
        return DirectUpdate(partial(self.net, context))
