"""Options for the episodes of an evaluation, and the folders of their videos."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ebt_policy.errors import ConfigError


@dataclass(frozen=True)
class EvalConfig:
    """Episodes of an evaluation: one for each seed, the first few recorded as videos.

    Args:
        episodes: number of episodes, each with its own seed.
        seed: first seed; each further episode adds 1.
        videos: number of episodes to record as videos.
        workers: number of processes that play episodes.
        allow_pickle: whether checkpoints of robomimic, which are pickles, may be opened.
    """

    episodes: int
    seed: int
    videos: int
    workers: int
    allow_pickle: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in {"episodes": 0, "seed": 0, "videos": 0, "workers": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def seeds(self) -> range:
        """Seeds of the episodes.

        Raises:
            ConfigError: there are no episodes, or the last seed exceeds 2^32 - 1.
        """
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {self.episodes}.")
        if self.seed + self.episodes > 1 << 32:  # the limit of NumPy's seeds
            raise ConfigError(
                f"seed={self.seed} and episodes={self.episodes} go beyond the last seed, "
                f"{(1 << 32) - 1}."
            )
        return range(self.seed, self.seed + self.episodes)

    @property
    def processes(self) -> int:
        """Number of workers that have an episode to play."""
        return min(self.workers, self.episodes)


def video_folder(output: Path, name: str) -> Path:
    """Return the video folder of an entry or condition, with only safe characters in its name."""
    return output / "videos" / re.sub(r"[^\w.-]+", "_", name)
