"""The window sampler: fixed-length windows of rows from episodes, stored on a device.

Shapes: B batch, N rows of all episodes together, E episodes, W windows, To `n_obs_steps`,
T `horizon`, Ta `n_action_steps`, Do observation dimension, A action dimension, H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebt_policy.data.episodes import EpisodeError
from ebt_policy.data.frame_cache import StoredFrames
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.data.relative_actions import action_origin, origin_index
from ebt_policy.errors import ConfigError


def long_enough(
    lengths: np.ndarray, *, horizon: int, n_obs_steps: int, n_action_steps: int
) -> np.ndarray:
    """Return which episodes are long enough for a window, (E,) bool; warn of the others.

    Args:
        lengths: (E,) number of rows of each episode.
        horizon, n_obs_steps, n_action_steps: T, To, Ta.

    Raises:
        ConfigError: all episodes are too short.

    >>> long_enough(np.array([50, 8]), horizon=16, n_obs_steps=2, n_action_steps=8)
    array([ True,  True])
    """
    min_length = horizon - n_action_steps - n_obs_steps + 2
    is_long_enough = lengths >= min_length
    if not is_long_enough.any():
        raise ConfigError(
            f"all of the {len(lengths)} episodes are too short: with horizon={horizon}, "
            f"n_obs_steps={n_obs_steps} and n_action_steps={n_action_steps} an episode needs "
            f"{min_length} rows; the longest has {int(lengths.max(initial=0))}."
        )
    if not is_long_enough.all():
        warnings.warn(
            f"{int((~is_long_enough).sum())} of {len(lengths)} episodes are too short for a window "
            f"of {horizon} rows and are skipped.",
            stacklevel=3,
        )
    return is_long_enough


class Windows:
    """Windows of `horizon` rows over episodes, gathered in batches without a Python loop.

    In each episode of length L, windows start at every row from -(To-1) to L - T + (Ta-1), as in
    Diffusion Policy (pad_before = To-1, pad_after = Ta-1). So the newest observation of the first
    window is the first row. Rows before and after the episode repeat its first and last row; a
    window has no rows of other episodes. Episodes that are too short are skipped with a warning.

    Args:
        arrays: "obs" (N, Do), "action" (N, A) and the images (N, H, W, 3) uint8 of each camera
            under its name, concatenated over time; tensors or NumPy arrays. `StoredFrames` are read
            from disk by batch. An optional "weight" (N,), whole numbers, repeats each window by the
            weight of the row of its newest observation.
        ends: (E,) exclusive end row of each episode.
        horizon, n_obs_steps, n_action_steps: T, To, Ta, with T >= To + Ta - 1.
        device: device of the arrays and the batches.
        cameras: names of the cameras to read. Their images stay uint8.

    Raises:
        ConfigError: the horizon is invalid, or all episodes are too short.
        EpisodeError: the images of a camera have another shape or data type.
        ValueError: a key is missing, the lengths differ, or the ends are not increasing.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor | np.ndarray | StoredFrames],
        ends: np.ndarray | Tensor | Sequence[int],
        *,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        device: torch.device | str = "cpu",
        cameras: Sequence[str] = (),
    ) -> None:
        if min(horizon, n_obs_steps, n_action_steps) < 1:
            raise ConfigError(
                f"horizon={horizon}, n_obs_steps={n_obs_steps} and "
                f"n_action_steps={n_action_steps} must all be at least 1."
            )
        if horizon < n_obs_steps + n_action_steps - 1:
            raise ConfigError(
                f"horizon={horizon} is too short to execute n_action_steps={n_action_steps} after "
                f"n_obs_steps={n_obs_steps}: set it to {n_obs_steps + n_action_steps - 1} or more."
            )
        bounds = np.asarray(ends, dtype=np.int64)
        if bounds.ndim != 1 or len(bounds) == 0 or (np.diff(bounds, prepend=0) <= 0).any():
            raise ValueError("Episode ends must be a non-empty, strictly increasing list of rows.")

        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.device = torch.device(device)
        rows = int(bounds[-1])
        self.obs = self._resident(arrays, "obs", rows).float()
        self.action = self._resident(arrays, "action", rows).float()
        self.images = {name: self._frames(arrays, name, rows) for name in cameras}
        for name, images in self.images.items():
            if isinstance(images, StoredFrames):
                continue
            if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
                raise EpisodeError(
                    f'the camera "{name}" must have images (rows, height, width, 3) uint8, got '
                    f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}."
                )

        # For each window: its start row among all rows, and the first and last row of its episode.
        first, last = np.concatenate([[0], bounds[:-1]]), bounds - 1
        length = last - first + 1
        count = np.maximum(length - horizon + n_action_steps + n_obs_steps - 1, 0)
        long_enough(length, horizon=horizon, n_obs_steps=n_obs_steps, n_action_steps=n_action_steps)
        index_in_episode = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        start = np.repeat(first, count) + index_in_episode - (n_obs_steps - 1)
        windows = np.stack([start, np.repeat(first, count), np.repeat(last, count)])
        if "weight" in arrays:
            weights = _window_weights(arrays["weight"], start + n_obs_steps - 1)
            windows = np.repeat(windows, weights, axis=1)
        self._start, self._first, self._last = torch.from_numpy(windows).to(self.device)
        self._offset = torch.arange(horizon, device=self.device)

    def _frames(self, arrays: Mapping[str, Any], key: str, rows: int) -> Tensor | StoredFrames:
        frames = arrays.get(key)
        return frames if isinstance(frames, StoredFrames) else self._resident(arrays, key, rows)

    def _resident(self, arrays: Mapping[str, Any], key: str, rows: int) -> Tensor:
        if key not in arrays:
            raise ValueError(f'Windows need the key "{key}"; the arrays have {sorted(arrays)}.')
        array = torch.as_tensor(arrays[key])
        if array.ndim < 2 or len(array) != rows:
            raise ValueError(
                f'"{key}" has shape {tuple(array.shape)}, but the episodes end at row {rows}: '
                f"expected ({rows}, dimension)."
            )
        return array.to(self.device)

    @property
    def is_streamed(self) -> bool:
        """Whether frames are read from disk."""
        return any(isinstance(images, StoredFrames) for images in self.images.values())

    def __len__(self) -> int:
        """Return the number of windows, W."""
        return len(self._start)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of windows `index` (B,) in 0..W-1: observed (B, To) and all (B, T)."""
        index = index.to(self.device, non_blocking=True)
        rows = self._start[index, None] + self._offset
        rows = rows.clamp(self._first[index, None], self._last[index, None])
        return rows[:, : self.n_obs_steps], rows

    def is_real(self, index: Tensor) -> Tensor:
        """Return which rows (B, T) of windows lie within their episode, and do not repeat a row."""
        index = index.to(self.device)
        rows = self._start[index, None] + self._offset
        return (rows >= self._first[index, None]) & (rows <= self._last[index, None])

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Return the windows `index` (B,), each in 0..W-1.

        Returns:
            {"obs": (B, To, Do), "action": (B, T, A)}, float32, and images (B, To, H, W, 3) uint8
            under the name of each camera, on the device of the sampler.
        """
        observed, rows = self.rows(index)
        images = {name: self._read(images, observed) for name, images in self.images.items()}
        return {"obs": self.obs[observed], "action": self.action[rows], **images}

    def _read(self, images: Tensor | StoredFrames, rows: Tensor) -> Tensor:
        if isinstance(images, Tensor):
            return images[rows]
        return torch.from_numpy(images.read(rows.cpu().numpy())).to(self.device)


def _window_weights(weight: Any, newest: np.ndarray) -> np.ndarray:
    """Return the weight of each window (W,).

    Args:
        weight: (N,) weights of the rows.
        newest: (W,) row of the newest observation.

    Raises:
        ConfigError: all windows have the weight 0.
    """
    weights = np.asarray(weight, dtype=np.int64)[newest]
    if not weights.any():
        raise ConfigError(
            "no window has a positive weight; raise task.human_weight or task.policy_weight."
        )
    return weights


def fit_normalizer(windows: Windows, relative_to: Sequence[int | None] | None) -> Normalizer:
    """Return the normalizer, with keys "obs" and "action", of a policy trained on these windows.

    Actions get zero mean and unit spread, the scale of the noise in denoising. With limits of -1
    and 1, as in Diffusion Policy, relevant differences of actions can be small beside the noise.

    Args:
        windows: the training data.
        relative_to: as in `PolicyShape`.
    """
    observed, rows = windows.rows(torch.arange(len(windows)))  # not `gather`, to skip the images
    index = origin_index(relative_to, windows.device)
    action = windows.action[rows] - action_origin(windows.obs[observed], index)
    return Normalizer.fit({"obs": windows.obs, "action": action}, standardized=("action",))
