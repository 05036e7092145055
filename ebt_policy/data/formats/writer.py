"""The interface of writers of data sets (see `ebt_policy.data.convert`).

Shapes: L rows of one episode, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from ebt_policy.data.dataset import Feature, Role

Frames = Iterable[np.ndarray]
"""Consecutive frames of an episode, in batches (n, H, W, 3) uint8."""


class DatasetWriter(ABC):
    """A writer of a new data set.

    Args:
        path: temporary file or folder, which the caller renames. It does not exist, or is an empty
            folder.
        features: features of the new data set, with their names in the format (see `name_of`).
        fps: rows per second; None if unknown.

    Attributes:
        is_folder: whether the format is a folder.
    """

    is_folder: ClassVar[bool]

    @abstractmethod
    def __init__(self, path: Path, features: Sequence[Feature], fps: float | None) -> None: ...

    @classmethod  # noqa: B027  # most formats take any rate
    def check_rate(cls, fps: float) -> None:
        """Check a rate in rows per second.

        Raises:
            ConfigError: the format cannot have it.
        """

    @classmethod
    @abstractmethod
    def name_of(cls, base: str, role: Role) -> str:
        """Return the name of a feature in this format.

        Args:
            base: its name without the prefixes of a format (see `base_name`).
            role: its role.
        """

    @abstractmethod
    def add(
        self, rows: Mapping[str, np.ndarray], frames: Mapping[str, Frames], instruction: str
    ) -> None:
        """Append an episode.

        Args:
            rows: name -> numbers (L, ...) of each feature that is no camera.
            frames: name -> frames of each camera.
            instruction: what the robot was asked to do; "" if unknown.
        """

    @abstractmethod
    def finish(self) -> None:
        """Complete the files, after the last episode."""

    @abstractmethod
    def close(self) -> None:
        """Release open files, also after an error."""


def base_name(name: str, role: Role) -> str:
    """Return the name of a feature without the prefixes of its format.

    >>> base_name("observation.images.top", Role.IMAGE), base_name("obs/joint_pos", Role.STATE)
    ('top', 'joint_pos')
    """
    if role is Role.ACTION:
        return "action" if name in ("action", "actions") else name
    for prefix in ("observation.images.", "observation.", "obs/"):
        name = name.removeprefix(prefix)
    return name.replace("/", "_")
