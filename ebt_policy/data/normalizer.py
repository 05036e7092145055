"""Scaling of observations and actions by the limits or the spread of the training data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A channel is constant if its range is below this fraction of its values, or too small to divide by
# in float32. Such a range is rounding and not motion.
_CONSTANT = 1e-6
_TINY = 1e-30
_LARGEST = float(torch.finfo(torch.float32).max)


class Normalizer(nn.Module):
    """Map of each channel (entry of the last dimension) to network units, and back.

    Formula: y = 2 (x - min) / (max - min) - 1 (Diffusion Policy's "limits" mode). For a key with
    mean and std, it is y = (x - mean) / std. A channel that is constant in the data maps to 0, and
    every value maps back to the constant. The numbers are buffers but not part of `state_dict`;
    they are stored as JSON.

    Args:
        limits: key -> {"min": D numbers, "max": D numbers}, optionally with "mean" and "std", as
            from `to_json`.

    Raises:
        ValueError: malformed limits (not a dict, missing min or max, different lengths, not
            finite, min above max, negative std).

    >>> normalizer = Normalizer.fit({"action": torch.tensor([[0.0, 5.0], [10.0, 5.0]])})
    >>> normalizer.normalize("action", torch.tensor([2.5, 5.0])).tolist()
    [-0.5, 0.0]
    """

    def __init__(self, limits: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(limits, Mapping) or not limits:
            raise ValueError(
                'A normalizer needs {key: {"min": [...], "max": [...]}} with at least one key.'
            )
        self._limits: dict[str, dict[str, list[float]]] = {}
        for key, entry in limits.items():
            low, high = (_channels(key, entry, name) for name in ("min", "max"))
            if len(low) != len(high) or (low > high).any():
                raise ValueError(
                    f'Normalizer key "{key}": "min" and "max" must have the same length, and no '
                    "min may be above its max."
                )
            zero, unit, shift = low, (high - low) / 2, 1.0
            statistics = {"min": low, "max": high}
            if "mean" in entry or "std" in entry:
                zero, unit = (_channels(key, entry, name) for name in ("mean", "std"))
                if not len(zero) == len(unit) == len(low) or (unit < 0).any():
                    raise ValueError(
                        f'Normalizer key "{key}": "mean" and "std" must be as long as "min", and '
                        "no std may be negative."
                    )
                shift = 0.0
                statistics |= {"mean": zero, "std": unit}
            constant = unit <= np.maximum(_TINY, _CONSTANT * np.maximum(abs(low), abs(high)))
            unit = np.where(constant, 0.0, unit)
            zero = np.where(constant, low, zero)
            scale = np.divide(1.0, unit, out=np.zeros_like(unit), where=~constant)
            shift = np.where(constant, 0.0, shift)
            ends = [(x - zero) * scale - shift for x in (low, high)]
            values = {"zero": zero, "unit": unit, "scale": scale, "shift": shift}
            for name, value in {**values, "low": ends[0], "high": ends[1]}.items():
                buffer = torch.from_numpy(value.astype(np.float32))
                self.register_buffer(_name(key, name), buffer, persistent=False)
            self._limits[key] = {name: value.tolist() for name, value in statistics.items()}

    @classmethod
    def fit(
        cls, arrays: Mapping[str, Tensor | np.ndarray], standardized: Collection[str] = ()
    ) -> Normalizer:
        """Return a normalizer with the limits of arrays over all dimensions but the last.

        Args:
            arrays: training data, key -> (..., D).
            standardized: keys that get zero mean and unit spread instead of limits of -1 and 1.

        Raises:
            ValueError: an array is empty or contains NaN or infinity.
        """
        limits = {}
        for key, array in arrays.items():
            values = torch.as_tensor(array)
            if values.ndim == 0 or values.numel() == 0:
                raise ValueError(f'Cannot normalise "{key}": it has no values.')
            flat = values.reshape(-1, values.shape[-1]).float()
            limits[key] = {"min": flat.amin(0).tolist(), "max": flat.amax(0).tolist()}
            if key in standardized:
                spread, mean = torch.std_mean(flat.double(), 0, correction=0)
                limits[key] |= {"mean": mean.tolist(), "std": spread.tolist()}
        return cls(limits)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that have limits."""
        return tuple(self._limits)

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Convert x (..., D) from env units to network units; keys with limits map to [-1, 1]."""
        zero, scale, shift = (self._buffer(key, x, name) for name in ("zero", "scale", "shift"))
        return (x - zero) * scale - shift

    def unnormalize(self, key: str, y: Tensor) -> Tensor:
        """Convert y (..., D) from network units to env units, the inverse of `normalize`."""
        zero, unit, shift = (self._buffer(key, y, name) for name in ("zero", "unit", "shift"))
        return (y + shift) * unit + zero

    def clamp(self, key: str, y: Tensor) -> Tensor:
        """Clamp y (..., D), in network units, to the limits of the training data."""
        return y.clamp(self._buffer(key, y, "low"), self._buffer(key, y, "high"))

    def box(self, key: str) -> tuple[Tensor, Tensor]:
        """Return the limits of the training data in network units: low and high, (D,) each."""
        self._require_key(key)
        return self.get_buffer(_name(key, "low")), self.get_buffer(_name(key, "high"))

    def _require_key(self, key: str) -> None:
        if key not in self._limits:
            raise ValueError(f'The normalizer has no limits for "{key}"; it has {list(self.keys)}.')

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Return key -> {"min": [...], "max": [...]}, with "mean" and "std" if standardized."""
        return {key: {name: list(v) for name, v in e.items()} for key, e in self._limits.items()}

    @classmethod
    def from_json(cls, limits: Mapping[str, Any]) -> Normalizer:
        """Return a normalizer from the output of `to_json`; ValueError if it is malformed."""
        return cls(limits)

    def _buffer(self, key: str, x: Tensor, name: str) -> Tensor:
        self._require_key(key)
        buffer = self.get_buffer(_name(key, name))
        if x.shape[-1:] != buffer.shape:
            raise ValueError(
                f'"{key}" has {buffer.shape[0]} channels in the normalizer, but the data has shape '
                f"{tuple(x.shape)}."
            )
        return buffer


def _name(key: str, buffer: str) -> str:
    return f"{key.replace('.', '/')}_{buffer}"  # names of buffers must not contain a dot


def _channels(key: str, entry: Any, name: str) -> np.ndarray:
    values = entry.get(name) if isinstance(entry, Mapping) else None
    if (
        not isinstance(values, list | tuple)
        or not values
        or not all(isinstance(v, int | float) and abs(v) <= _LARGEST for v in values)
    ):
        raise ValueError(
            f'Normalizer key "{key}": "{name}" must be a non-empty list of finite numbers of '
            "float32 (refit it on data without NaN or infinity, or restore the file)."
        )
    return np.asarray(values, dtype=np.float64)
