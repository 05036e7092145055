"""Perturbations: what goes wrong in an episode, the same for every policy.

A `Perturbation` is one kind at one strength; strength zero is the undisturbed episode. What befalls
the scene is done by the environment, which declares its kinds and their strengths (`perturbations`)
and has a method `perturb(kind, strength, rng) -> observation, info`. What befalls actions and
observations is done here, for any environment:

    action_noise   white noise on every executed action, standard deviation in units of the action
    delay          observations reach the policy so many environment steps late
    freeze         from some step on, the observation stays the same for so many steps

This module must not import torch: workers use it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

EVENT_STEPS = (20, 60)  # environment steps between which an event happens, both included
AT_RESET = ("start",)  # kinds of an environment that change the initial state
LASTING = ("action_noise", "delay")  # kinds of this module that act from the first step on
STEPS = ("delay", "freeze")  # kinds of this module whose strength is a number of steps


@dataclass(frozen=True)
class Kind:
    """A kind of perturbation that an environment declares.

    Attributes:
        unit, strengths: of a curve.
        held: it happens as soon as the robot holds the object (`holding` of the environment says
            so), not at a random step.
    """

    unit: str
    strengths: tuple[float, ...]
    held: bool = False


@dataclass(frozen=True)
class Perturbation:
    """One kind of perturbation at one strength, in the unit of its kind."""

    kind: str
    strength: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"the strength of {self.kind} must not be negative: {self.strength}")
        if self.kind in STEPS and self.strength != int(self.strength):
            raise ValueError(f"the strength of {self.kind} is a number of steps: {self.strength}")

    def __str__(self) -> str:
        return f"{self.kind} {self.strength:g}"


def kinds(env: gymnasium.Env) -> dict[str, Kind]:
    """The kinds of perturbation that `env` knows; none if it declares no `perturbations`."""
    return dict(getattr(env.unwrapped, "perturbations", {}))


def event(seed: int | None) -> tuple[np.random.Generator, int]:
    """What decides how the event of episode `seed` happens, and the environment step of it."""
    rng = np.random.default_rng(None if seed is None else [seed, 1])
    return rng, int(rng.integers(*EVENT_STEPS, endpoint=True))


class Perturbed(gymnasium.Wrapper):
    """An environment in which one thing goes wrong.

    When and in which direction depends on the seed of the episode alone, not on the strength, so
    that policies and strengths compare. At the step of an event (and at the reset where the initial
    state is changed) `info["perturbed"]` is true: scores count from there on. Where the environment
    says what it is `holding`, `info["retries"]` counts how often it was grasped anew since then.

    Args:
        env: it declares the kind (see `kinds`).
        perturbation: what goes wrong.

    Raises:
        ValueError: a kind that `env` does not know.
    """

    def __init__(self, env: gymnasium.Env, perturbation: Perturbation):
        super().__init__(env)
        known = kinds(env)
        if perturbation.kind not in known:
            raise ValueError(
                f"this environment has no perturbation {perturbation.kind!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        self.perturbation = perturbation
        self._kind = known[perturbation.kind]
        self._rng = np.random.default_rng()
        self._event, self._step = 0, 0
        self._happened, self._held, self._retries = False, False, 0
        self._late: deque[Any] = deque(maxlen=1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        (self._rng, self._event), self._step = event(seed), 0
        self._happened, self._held, self._retries = False, False, 0
        what = self.perturbation
        if what.kind in AT_RESET:
            obs, state = self._befall()
            info = info | state | {"perturbed": True}
        delay = int(what.strength) if what.kind == "delay" else 0
        self._late = deque([obs] * (delay + 1), maxlen=delay + 1)
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        what = self.perturbation
        now = self._held and not self._happened if self._kind.held else self._step == self._event
        happens = now and what.kind not in (*AT_RESET, *LASTING)
        if happens:
            self._happened = True
            if what.kind != "freeze":
                self._befall()
                self._held = self._holding()
        if what.kind == "action_noise":
            action = action + what.strength * self._rng.standard_normal(np.shape(action))
            if isinstance(self.action_space, Box):
                action = np.clip(action, self.action_space.low, self.action_space.high)
        obs, reward, terminated, truncated, info = self.env.step(action)
        frozen = what.kind == "freeze" and 0 <= self._step - self._event < what.strength
        if not frozen:
            self._late.append(obs)
        self._step += 1
        before, self._held = self._held, self._holding()
        self._retries += self._happened and self._held and not before
        info = info | {"retries": self._retries} | ({"perturbed": True} if happens else {})
        return self._late[0], float(reward), terminated, truncated, info

    def _holding(self) -> bool:
        scene: Any = self.env.unwrapped
        return bool(scene.holding()) if hasattr(scene, "holding") else False

    def _befall(self) -> tuple[Any, dict[str, Any]]:
        """Let the environment disturb its scene; returns observation and info after it."""
        scene: Any = self.env.unwrapped
        return scene.perturb(self.perturbation.kind, self.perturbation.strength, self._rng)
