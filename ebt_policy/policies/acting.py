"""A policy in your own control loop: history, batching and chunks are handled here.

Shapes: N environments, Do observation and A action dimension, To `n_obs_steps`, Ta
`n_action_steps`, H x W pixels of a camera.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from ebt_policy.envs.rollout import EpisodeResult

if TYPE_CHECKING:
    from ebt_policy.policies.base import Policy


class ChunkedActor:
    """Executor of a policy's action chunks, one action at a time.

    Args:
        policy: predicts a new chunk after every Ta actions.
        seed: seed of the policy's noise; None for torch's global generator.
    """

    def __init__(self, policy: Policy, seed: int | None = None) -> None:
        self._policy = policy
        self._generator = None
        if seed is not None:
            self._generator = torch.Generator(policy.device).manual_seed(seed)
        self._history: deque[dict[str, torch.Tensor]] = deque(maxlen=policy.shape.n_obs_steps)
        self._actions: deque[np.ndarray] = deque()

    def act(self, observation: Any) -> np.ndarray:
        """Return the action for an observation (see `Policy.act`)."""
        shape = self._policy.shape
        arrays, is_single = self._to_batch(observation)
        if self._history and len(self._history[-1]["obs"]) != len(arrays["obs"]):
            raise ValueError(
                f"the number of environments changed from {len(self._history[-1]['obs'])} to "
                f"{len(arrays['obs'])}; call policy.reset() first."
            )
        # The first observation of an episode also stands for the missing history.
        self._history.extend([arrays] * (1 if self._history else shape.n_obs_steps))
        if not self._actions:
            stacked = {
                key: torch.stack([past[key] for past in self._history], dim=1) for key in arrays
            }
            chunk = self._policy.predict_chunk(stacked, generator=self._generator)
            first = shape.n_obs_steps - 1
            actions = chunk.actions[:, first : first + shape.n_action_steps]
            self._actions.extend(actions.transpose(0, 1).cpu().numpy())
        action = self._actions.popleft()
        return action[0] if is_single else action

    def _to_batch(self, observation: Any) -> tuple[dict[str, torch.Tensor], bool]:
        """Return "obs" (N, Do) and images (N, H, W, 3), and whether the input was unbatched."""
        shape = self._policy.shape
        given = observation if isinstance(observation, Mapping) else {"obs": observation}
        names = ("obs", *(shape.cameras or {}))
        if missing := [name for name in names if name not in given]:
            raise ValueError(
                f"the observation has no {', '.join(missing)}; this policy reads "
                f"{', '.join(names)}."
            )
        state = torch.as_tensor(np.asarray(given["obs"], dtype=np.float32))
        if state.ndim not in (1, 2) or state.shape[-1] != shape.obs_dim:
            raise ValueError(
                f"the observation must be ({shape.obs_dim},) or (N, {shape.obs_dim}) for N "
                f"environments, got {tuple(state.shape)}."
            )
        is_single = state.ndim == 1
        arrays = {"obs": state}
        for name in names[1:]:
            arrays[name] = torch.as_tensor(np.asarray(given[name]))
        if is_single:
            arrays = {name: array.unsqueeze(0) for name, array in arrays.items()}
        return arrays, is_single


def evaluate(
    policy: Policy, env: gymnasium.Env, *, episodes: int = 10, seed: int = 100_000
) -> list[EpisodeResult]:
    """Run episodes of a policy in your own environment, one after another.

    ``python -m ebt_policy.eval`` runs episodes in parallel processes and compares policies.

    Args:
        policy: a policy whose observations and actions fit the environment.
        env: a Gymnasium environment, which reports success as ``info["is_success"]``. Actions are
            clipped to its action space if that is a `Box`.
        episodes: number of episodes.
        seed: seed of the first episode; each further episode adds 1.

    Returns:
        The score (highest reward), success and length of each episode.

    Raises:
        ValueError: an observation does not fit the policy.

    >>> import gymnasium, ebt_policy.envs
    >>> from ebt_policy.policies import load_policy
    >>> env = gymnasium.make("ebt_policy/PushT-v0", max_episode_steps=20)
    >>> [result] = evaluate(load_policy("pretrained:push_t"), env, episodes=1)
    >>> result.length, result.success, 0 <= result.score <= 1
    (20, False, True)
    """
    results = []
    for episode_seed in range(seed, seed + episodes):
        policy.reset(seed=episode_seed)
        observation, _ = env.reset(seed=episode_seed)
        result, is_over = EpisodeResult(episode_seed, score=-np.inf), False
        while not is_over:
            action = policy.act(observation)
            if isinstance(env.action_space, Box):
                action = np.clip(action, env.action_space.low, env.action_space.high)
            observation, reward, terminated, truncated, info = env.step(action)
            result.score = max(result.score, float(reward))
            result.success = result.success or bool(info.get("is_success", False))
            result.length += 1
            is_over = terminated or truncated
        results.append(result)
    return results
