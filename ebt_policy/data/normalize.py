"""Scaling of observations and actions to [-1, 1] by the limits of the training data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A range below this fraction of the values, or below what float32 can divide by, is rounding, not
# motion: the channel is constant.
_CONSTANT = 1e-6
_TINY = 1e-30


class Normalizer(nn.Module):
    """Maps each last-dimension channel's [min, max] to [-1, 1], and back.

    Formula (Diffusion Policy's "limits" mode): y = 2 (x - min) / (max - min) - 1. A channel that is
    constant in the data maps to 0, and anything maps back to its constant. The limits follow the
    module to a device but are not part of `state_dict`: they are kept as JSON.

    Args:
        limits: key -> {"min": D numbers, "max": D numbers}, the form of `to_json`.

    Raises:
        ValueError: malformed limits (not a dict, missing min or max, different lengths, not
            finite, min above max).
    """

    def __init__(self, limits: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(limits, Mapping) or not limits:
            raise ValueError(
                'A normalizer needs {key: {"min": [...], "max": [...]}}, at least one key.'
            )
        self._limits: dict[str, dict[str, list[float]]] = {}
        for key, entry in limits.items():
            low, high = (_channels(key, entry, name) for name in ("min", "max"))
            if len(low) != len(high) or (low > high).any():
                raise ValueError(
                    f'Normalizer key "{key}": "min" and "max" must have the same length, and no '
                    "min may be above its max."
                )
            half = (high - low) / 2
            half[half <= np.maximum(_TINY, _CONSTANT * np.maximum(abs(low), abs(high)))] = 0.0
            moving = half > 0
            scale = np.divide(1.0, half, out=np.zeros_like(half), where=moving)
            for name, value in (("min", low), ("half", half), ("scale", scale), ("shift", moving)):
                buffer = torch.from_numpy(value.astype(np.float32))
                self.register_buffer(_name(key, name), buffer, persistent=False)
            self._limits[key] = {"min": low.tolist(), "max": high.tolist()}

    @classmethod
    def fit(cls, arrays: Mapping[str, Tensor | np.ndarray]) -> Normalizer:
        """Take the limits of `arrays`, key -> (..., D), over all dimensions but the last.

        Raises:
            ValueError: an empty array, or NaN or infinity in one.
        """
        limits = {}
        for key, array in arrays.items():
            values = torch.as_tensor(array)
            if values.ndim == 0 or values.numel() == 0:
                raise ValueError(f'Cannot normalise "{key}": it has no values.')
            flat = values.reshape(-1, values.shape[-1]).float()
            limits[key] = {"min": flat.amin(0).tolist(), "max": flat.amax(0).tolist()}
        return cls(limits)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that have limits."""
        return tuple(self._limits)

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Environment units (..., D) -> [-1, 1] (..., D); values beyond the limits go beyond."""
        low, scale, shift = (self._buffer(key, x, name) for name in ("min", "scale", "shift"))
        return (x - low) * scale - shift

    def unnormalize(self, key: str, y: Tensor) -> Tensor:
        """Inverse of `normalize`: [-1, 1] (..., D) -> environment units (..., D)."""
        low, half = (self._buffer(key, y, name) for name in ("min", "half"))
        return (y + 1) * half + low

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Plain lists: key -> {"min": [...], "max": [...]}."""
        return {key: {name: list(v) for name, v in e.items()} for key, e in self._limits.items()}

    @classmethod
    def from_json(cls, limits: Mapping[str, Any]) -> Normalizer:
        """Inverse of `to_json`; ValueError says what is malformed."""
        return cls(limits)

    def _buffer(self, key: str, x: Tensor, name: str) -> Tensor:
        if key not in self._limits:
            raise ValueError(f'The normalizer has no limits for "{key}"; it has {list(self.keys)}.')
        buffer = self.get_buffer(_name(key, name))
        if x.shape[-1:] != buffer.shape:
            raise ValueError(
                f'"{key}" has {buffer.shape[0]} channels in the normalizer, but the data has shape '
                f"{tuple(x.shape)}."
            )
        return buffer


def _name(key: str, part: str) -> str:
    return f"{key.replace('.', '/')}_{part}"  # module buffers may not have a dot in their name


def _channels(key: str, entry: Any, name: str) -> np.ndarray:
    values = entry.get(name) if isinstance(entry, Mapping) else None
    if (
        not isinstance(values, list | tuple)
        or not values
        or not all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    ):
        raise ValueError(
            f'Normalizer key "{key}": "{name}" must be a non-empty list of finite numbers '
            "(refit it on data without NaN or infinity, or restore the file)."
        )
    return np.asarray(values, dtype=np.float64)
