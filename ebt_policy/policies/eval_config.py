"""What an evaluation plays, and how it shows that it does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ebt_policy.errors import ConfigError


@dataclass(frozen=True)
class EvalConfig:
    """What is played: one episode a seed, the first few of them filmed.

    Args:
        episodes: number of seeds.
        seed: the first of them.
        videos: episodes to film.
        workers: processes that play.
    """

    episodes: int
    seed: int
    videos: int
    workers: int

    def __post_init__(self) -> None:
        for name, least in {"episodes": 0, "seed": 0, "videos": 0, "workers": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def seeds(self) -> range:
        """The seeds to play.

        Raises:
            ConfigError: there are none, or they are too large.
        """
        if self.episodes < 1:
            raise ConfigError("episodes must be at least 1.")
        if self.seed + self.episodes > 1 << 32:  # as NumPy takes them
            raise ConfigError(
                f"seed={self.seed} and episodes={self.episodes} go beyond the last seed, "
                f"{(1 << 32) - 1}."
            )
        return range(self.seed, self.seed + self.episodes)

    @property
    def processes(self) -> int:
        """Workers that have something to do."""
        return min(self.workers, self.episodes)


def video_folder(output: Path, name: str) -> Path:
    """Where the videos of an entry or condition go, whatever characters its name has."""
    return output / "videos" / re.sub(r"[^\w.-]+", "_", name)
