"""Diffusion Policy (Chi et al. 2023) on this package's transformer or a conditional 1-D U-Net.

The DDPM and DDIM schedulers of diffusers have the published settings (squared-cosine schedule, 100
training steps, clipped samples). Two settings differ: the time steps of a short schedule and, by
default, the prediction target. Shapes: B batch, T horizon, A action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.energy.proximal import CostFn, proximal_point
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.two_stream import TransformerConfig
from ebt_policy.errors import ConfigError
from ebt_policy.models.denoising_steps import set_num_steps
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.chunk_networks import CHUNK_NETWORKS
from ebt_policy.policies.policy_shape import PolicyShape
from ebt_policy.policies.registry import POLICIES
from ebt_policy.policies.sampling_policy import SamplingInference, SamplingPolicy
from ebt_policy.policies.vision import VisionEncoder

TRAIN_STEPS = 100
SCHEDULE = {
    "num_train_timesteps": TRAIN_STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    # A short schedule must start at the last level, which is pure noise (Lin et al. 2024, "Common
    # Diffusion Noise Schedules and Sample Steps Are Flawed"). With the default of diffusers, a
    # schedule of two steps would start half way.
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class DiffusionInference(SamplingInference):
    """Denoising options, in addition to the options of `SamplingInference`.

    Args:
        scheduler: ``ddpm`` (stochastic) or ``ddim`` (deterministic, for few steps).
        steps: number of denoising passes, 1 to 100.
    """

    scheduler: Literal["ddpm", "ddim"] = "ddpm"
    steps: int = TRAIN_STEPS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheduler not in ("ddpm", "ddim"):
            raise ConfigError(f"inference.scheduler must be ddpm or ddim, got {self.scheduler}.")
        if not 1 <= self.steps <= TRAIN_STEPS:
            raise ConfigError(f"inference.steps must be 1 to {TRAIN_STEPS}, got {self.steps}.")


@POLICIES.register("diffusion")
class DiffusionPolicy(SamplingPolicy):
    """Policy whose network predicts the noise n in x_t = sqrt(abar_t) y + sqrt(1 - abar_t) n, or v.

    v is sqrt(abar_t) n - sqrt(1 - abar_t) y (Salimans & Ho 2022). The chunk y can be recovered from
    v at every level. From n it cannot be recovered at the last level, where short schedules start
    (Lin et al. 2024).

    Args:
        prediction: ``epsilon`` for n, as published, or ``v_prediction`` for v.
        network: name in `CHUNK_NETWORKS`: ``transformer``, or ``unet`` of about the same size.
        actions_per_token: as in `ChunkTransformer`.
        inference: options of `DiffusionInference`.
    """

    name = "diffusion"

    def __init__(
        self,
        shape: PolicyShape,
        normalizer: Normalizer,
        size: TransformerConfig,
        *,
        prediction: Literal["epsilon", "v_prediction"],
        network: str,
        actions_per_token: int,
        inference: dict[str, Any],
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.net = CHUNK_NETWORKS.get(network)(self.network_shape, size, actions_per_token)
        self.inference = options(DiffusionInference, inference, "model.inference")
        if prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"model.prediction must be epsilon or v_prediction, got {prediction}."
            )
        self.prediction: Literal["epsilon", "v_prediction"] = prediction
        self.train_schedule = _scheduler("ddpm", prediction_type=prediction)
        # Clean actions lie within the limits of the demonstrations, so samples are clipped.
        self.clip_range = max(float(end.abs().max()) for end in normalizer.box("action"))

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        action = batch["action"]
        normal = torch.randn_like(action)
        step = torch.randint(0, TRAIN_STEPS, (len(action),), device=action.device)
        noisy = self.train_schedule.add_noise(action, normal, step)
        target = normal
        if self.prediction == "v_prediction":
            target = self.train_schedule.get_velocity(action, normal, step)
        level = 1.0 - step.unsqueeze(1) / TRAIN_STEPS
        return {"target": target, "noisy": noisy, "level": level}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        noise = batch["noise"]
        context = self.net.encode(self.observation_features(batch))
        predicted = self.net(context, noise["noisy"].unsqueeze(1), noise["level"])
        return (predicted[:, 0] - noise["target"]).square().mean(), {}

    def sample(
        self, context: Any, noise: Tensor, constraints: NormalizedConstraints, generator: Generators
    ) -> Tensor:
        inference, x = self.inference, noise
        scheduler, timesteps = _inference_scheduler(
            inference.scheduler, inference.steps, self.prediction, self.clip_range, noise.device
        )
        # The DDPM scheduler samples its own noise, with one generator or a list of generators.
        extra = {"generator": generator} if inference.scheduler == "ddpm" else {}
        cost = None if constraints.costs is None else constraints.costs.differentiable
        for t, step in timesteps:
            if (prefix := constraints.prefix) is not None:
                # Inpainting: committed actions get the noise level of the other actions.
                clean = prefix.unsqueeze(1).expand_as(x)
                noisy = scheduler.add_noise(clean, draw_normal(clean, generator), step)
                x = constraints.hold_prefix(x, noisy)
            predicted = self.net(context, x, _level(x, t))
            if cost is not None:
                predicted = self._lower_cost(cost, x, predicted, t)
            x = scheduler.step(predicted, t, x, **extra).prev_sample
        return x

    def _lower_cost(self, cost: CostFn, x: Tensor, predicted: Tensor, t: int) -> Tensor:
        """Return the network's output after its predicted chunk has moved to a lower cost.

        With x = a y + s n and a^2 + s^2 = 1, the variance of y given x is s^2 for unit data.
        """
        a = float(self.train_schedule.alphas_cumprod[t]) ** 0.5
        s = (1 - a**2) ** 0.5
        is_v = self.prediction == "v_prediction"
        end = a * x - s * predicted if is_v else (x - s * predicted) / a
        end = end.clamp(-self.clip_range, self.clip_range)
        moved = proximal_point(cost, end, x.new_full((), s**2))
        return (a * x - moved) / s if is_v else (x - a * moved) / s

    def score_field(self, context: Any, chunks: Tensor, level: float) -> Tensor:
        """Return the gradient at the time step whose signal share a / (a + s) is nearest to level.

        With x = a y and the predicted noise n, grad_x log p(x) = -n / s (Song et al. 2021,
        "Score-Based Generative Modeling"), so -grad_y log p(x) = a / s n. A network that predicts v
        gives n = s x + a v.
        """
        signal = self.train_schedule.alphas_cumprod.sqrt()
        noise = (1 - self.train_schedule.alphas_cumprod).sqrt()
        t = int((signal / (signal + noise) - level).abs().argmin())
        a, s = float(signal[t]), float(noise[t])
        x = a * chunks
        predicted = self.net(context, x, _level(x, t))
        if self.prediction == "v_prediction":
            predicted = s * x + a * predicted
        return a / s * predicted


def _scheduler(name: Literal["ddpm", "ddim"], **scheduler_options: Any) -> Any:
    """Return a scheduler of diffusers, which is imported here because its import is slow."""
    if name == "ddim":
        from ebt_policy.models.ddim import ExactDDIMScheduler

        return ExactDDIMScheduler(**SCHEDULE, **scheduler_options)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(**SCHEDULE, **scheduler_options)


@lru_cache(maxsize=64)
def _inference_scheduler(
    name: Literal["ddpm", "ddim"],
    steps: int,
    prediction: str,
    clip_range: float,
    device: torch.device,
) -> tuple[Any, list[tuple[int, Tensor]]]:
    """Return a scheduler and its time steps, as numbers and as tensors (1,).

    They are computed once for each device, so that an export has them as constants.
    """
    scheduler = _scheduler(name, prediction_type=prediction, clip_sample_range=clip_range)
    set_num_steps(scheduler, steps)
    return scheduler, [(int(t), t.view(1)) for t in scheduler.timesteps]


def _level(x: Tensor, t: int) -> Tensor:
    """Return the network's level input (B, M) for chunks (B, M, ...) at time step t."""
    return x.new_full(x.shape[:2], 1.0 - t / TRAIN_STEPS)
