"""Perturbations: disturbances of an episode, the same for every policy.

A `Perturbation` is one kind at one strength. An environment declares its kinds and their strengths
in `perturbations`. It disturbs its own scene in the method
`perturb(kind, strength, rng) -> observation, info`. Three kinds disturb actions or observations.
They are implemented here, for every environment that declares them:

    action_noise   white noise on every executed action; strength: its standard deviation
    delay          late observations; strength: the delay in environment steps
    freeze         constant observations from a random step on; strength: number of steps

This module must not import torch, because rollout workers import it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from ebt_policy.envs.errors import EnvError

EVENT_STEP_RANGE = (20, 60)  # first and last environment step of a random event, by default
RESET_KINDS = ("start",)  # kinds that change the initial state
CONTINUOUS_KINDS = ("action_noise", "delay")  # kinds that act from step 0 on
STEP_COUNT_KINDS = ("delay", "freeze")  # kinds whose strength is a number of steps


@dataclass(frozen=True)
class PerturbationKind:
    """A kind of perturbation that an environment declares.

    Attributes:
        unit: unit of the strength.
        strengths: strengths at which a recovery curve is measured.
        held: whether the event happens as soon as the robot holds the object, instead of at a
            random step. The environment's method `holding` returns whether it does.
        event_steps: first and last environment step of a random event. It has to be earlier than
            the fastest success, which ends an episode.
    """

    unit: str
    strengths: tuple[float, ...]
    held: bool = False
    event_steps: tuple[int, int] = EVENT_STEP_RANGE


@dataclass(frozen=True)
class Perturbation:
    """One kind of perturbation at one strength, in the unit of its kind.

    Raises:
        EnvError: the strength is negative, not finite, or not a whole number of steps.
    """

    kind: str
    strength: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise EnvError(
                f"the strength of {self.kind} must be at least 0 and finite, got {self.strength}."
            )
        if self.kind in STEP_COUNT_KINDS and self.strength != int(self.strength):
            raise EnvError(
                f"the strength of {self.kind} must be a whole number of steps, got {self.strength}."
            )

    def __str__(self) -> str:
        return f"{self.kind} {self.strength:g}"


def perturbation_kinds(env: gymnasium.Env) -> dict[str, PerturbationKind]:
    """Return the kinds of perturbation that `env` declares in `perturbations`, by name."""
    return dict(getattr(env.unwrapped, "perturbations", {}))


def sample_event(
    seed: int | None, event_steps: tuple[int, int] = EVENT_STEP_RANGE
) -> tuple[np.random.Generator, int]:
    """Return the random generator of the event of episode `seed`, and its environment step."""
    rng = np.random.default_rng(None if seed is None else [seed, 1])
    return rng, int(rng.integers(*event_steps, endpoint=True))


class PerturbationWrapper(gymnasium.Wrapper):
    """An environment with one perturbation in every episode.

    The direction of the event and its random step depend on the seed of the episode alone. Policies
    and strengths are therefore compared on the same events. `info["perturbed"]` is True at the step
    of an event, and at the reset if the initial state is changed. Scores count from there on.
    `info["retries"]` counts the grasps after the event, if the environment has `holding`.

    Args:
        env: environment that declares the kind (see `perturbation_kinds`).
        perturbation: the perturbation of every episode.

    Raises:
        EnvError: `env` does not declare this kind.
    """

    def __init__(self, env: gymnasium.Env, perturbation: Perturbation):
        super().__init__(env)
        declared = perturbation_kinds(env)
        if perturbation.kind not in declared:
            raise EnvError(
                f"this environment has no perturbation {perturbation.kind!r}; "
                f"it has {', '.join(declared) or 'none'}."
            )
        self.perturbation = perturbation
        self._kind = declared[perturbation.kind]
        self._rng = np.random.default_rng()
        self._event_step, self._step = 0, 0
        self._event_done, self._was_holding, self._retries = False, False, 0
        self._delayed: deque[Any] = deque(maxlen=1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._rng, self._event_step = sample_event(seed, self._kind.event_steps)
        self._step = 0
        self._event_done, self._was_holding, self._retries = False, False, 0
        kind, strength = self.perturbation.kind, self.perturbation.strength
        if kind in RESET_KINDS:
            obs, scene_info = self._apply_perturbation()
            info = info | scene_info | {"perturbed": True}
        delay = int(strength) if kind == "delay" else 0
        self._delayed = deque([obs] * (delay + 1), maxlen=delay + 1)
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        kind, strength = self.perturbation.kind, self.perturbation.strength
        if self._kind.held:
            is_due = self._was_holding and not self._event_done
        else:
            is_due = self._step == self._event_step
        is_event = is_due and kind not in (*RESET_KINDS, *CONTINUOUS_KINDS)
        if is_event:
            self._event_done = True
            if kind != "freeze":
                self._apply_perturbation()
                self._was_holding = self._is_holding()
        if kind == "action_noise":
            action = action + strength * self._rng.standard_normal(np.shape(action))
            if isinstance(self.action_space, Box):
                action = np.clip(action, self.action_space.low, self.action_space.high)
        obs, reward, terminated, truncated, info = self.env.step(action)
        frozen = kind == "freeze" and 0 <= self._step - self._event_step < strength
        if not frozen:
            self._delayed.append(obs)
        self._step += 1
        was_holding, self._was_holding = self._was_holding, self._is_holding()
        self._retries += self._event_done and self._was_holding and not was_holding
        info = info | {"retries": self._retries} | ({"perturbed": True} if is_event else {})
        return self._delayed[0], float(reward), terminated, truncated, info

    def _is_holding(self) -> bool:
        scene: Any = self.env.unwrapped
        return bool(scene.holding()) if hasattr(scene, "holding") else False

    def _apply_perturbation(self) -> tuple[Any, dict[str, Any]]:
        """Let the environment disturb its scene, and return the observation and info afterwards."""
        scene: Any = self.env.unwrapped
        return scene.perturb(self.perturbation.kind, self.perturbation.strength, self._rng)
