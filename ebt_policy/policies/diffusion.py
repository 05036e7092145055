"""Diffusion Policy (Chi et al. 2023) on this package's transformer or a conditional 1-D U-Net.

diffusers' DDPM and DDIM schedulers, set as in the published configuration (squared-cosine schedule,
100 training steps, clipped samples), but for where few steps lie and what is predicted.
Shapes: B batch, T horizon, A action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ebt_policy.config import options
from ebt_policy.data.normalizer import Normalizer
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
    # Few steps start at the last level, pure noise (Lin et al. 2024, "Common Diffusion Noise
    # Schedules and Sample Steps Are Flawed"); diffusers' default would start two of them half way.
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class DiffusionInference(SamplingInference):
    """Options of denoising, besides those of `SamplingInference`.

    Args:
        scheduler: ``ddpm`` (stochastic) or ``ddim`` (deterministic, for few steps).
        steps: denoising passes, 1 to 100.
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

    v = sqrt(abar_t) n - sqrt(1 - abar_t) y (Salimans & Ho 2022) gives y at every level; the noise
    gives nothing at the last, where few steps start (Lin et al. 2024).

    Args:
        prediction: ``epsilon``, as published, or ``v_prediction``.
        network: a name of `CHUNK_NETWORKS`: ``transformer``, or ``unet`` with as many parameters.
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
        # A clean action cannot lie beyond the limits of the demonstrations.
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
        scheduler = _scheduler(
            inference.scheduler,
            prediction_type=self.prediction,
            clip_sample_range=self.clip_range,
        )
        set_num_steps(scheduler, inference.steps)
        # diffusers samples DDPM's noise itself; it takes a generator or a list of them, as we do.
        extra = {"generator": generator} if inference.scheduler == "ddpm" else {}
        for t in scheduler.timesteps:
            if (prefix := constraints.prefix) is not None:
                # Inpainting: a committed action is as noisy as the others.
                clean = prefix.unsqueeze(1).expand_as(x)
                normal, step = draw_normal(clean, generator), t.view(1)
                noisy = scheduler.add_noise(clean, normal, step)
                x = constraints.hold_prefix(x, noisy)
            predicted = self.net(context, x, _level(x, int(t)))
            x = scheduler.step(predicted, t, x, **extra).prev_sample
        return x

    def score_field(self, context: Any, chunks: Tensor, level: float) -> Tensor:
        """At the time step whose share of signal a / (a + s) is nearest to the level.

        With x = a y, -grad_y log p(x) = a / s n, n the noise that the network sees in x: the score
        is -n / s (Song et al. 2021, "Score-Based Generative Modeling"). With v it is s x + a v.
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
    """Return a scheduler of diffusers, which is slow to import and so is imported here."""
    if name == "ddim":
        from ebt_policy.models.ddim import ExactDDIMScheduler

        return ExactDDIMScheduler(**SCHEDULE, **scheduler_options)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(**SCHEDULE, **scheduler_options)


def _level(x: Tensor, t: int) -> Tensor:
    """Return the level that the network reads for chunks (B, M, ...) at time step t: (B, M)."""
    return x.new_full(x.shape[:2], 1.0 - t / TRAIN_STEPS)
