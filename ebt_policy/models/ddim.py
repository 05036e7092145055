"""DDIM (Song et al. 2021) whose steps end at the level where the next step starts.

The scheduler of diffusers always goes down T // N levels per step, for T levels and N steps. If N
does not divide T, the next step assumes a noise level that the sample does not have.
"""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from torch import Tensor


class ExactDDIMScheduler(DDIMScheduler):
    """Deterministic DDIM whose steps end at the level of the next entry of ``timesteps``."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any
    ) -> DDIMSchedulerOutput:
        """Return the sample after one step: equation 12 of the paper with sigma = 0.

        Args:
            model_output: prediction of the noise or of v, as configured by ``prediction_type``.
            timestep: time step of the sample.
            sample: noisy sample, of the shape of ``model_output``.
        """
        config: Any = self.config
        signal, noise, next_signal, next_noise = self._coefficients(int(timestep))
        if config.prediction_type == "v_prediction":
            clean = signal * sample - noise * model_output
            normal = signal * model_output + noise * sample
        else:
            clean, normal = (sample - noise * model_output) / signal, model_output
        if config.clip_sample:
            clean = clean.clamp(-config.clip_sample_range, config.clip_sample_range)
        return DDIMSchedulerOutput(next_signal * clean + next_noise * normal)

    def set_timesteps(self, *arguments: Any, **options: Any) -> None:
        super().set_timesteps(*arguments, **options)
        self._cache: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _coefficients(self, timestep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the shares of signal and noise at a time step and at the next one.

        They are computed once, so that an export has them as constants.
        """
        if timestep not in self._cache:
            abar = self.alphas_cumprod[timestep]
            later_steps = self.timesteps[self.timesteps < timestep]
            next_abar = (
                self.alphas_cumprod[later_steps[0]]
                if len(later_steps)
                else self.final_alpha_cumprod
            )
            self._cache[timestep] = (
                abar.sqrt(), (1 - abar).sqrt(), next_abar.sqrt(), (1 - next_abar).sqrt(),
            )  # fmt: skip
        return self._cache[timestep]
