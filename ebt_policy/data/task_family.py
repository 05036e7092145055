"""Families of robot tasks, which load demonstrations; ``task.family`` selects one by name.

A family outside this package registers a `TaskFamily` with ``@TASK_FAMILIES.register("name")``, in
a module that ``--module`` imports or in an entry point of the group ``ebt_policy.tasks``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.frame_cache import StoredFrames
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.errors import ConfigError
from ebt_policy.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DemonstrationConfig:
    """The options of the section ``task`` that select demonstrations.

    Args:
        name: name of the task in tables and file names.
        demos: "expert" for demonstrations of a scripted or learned expert, "human" for human
            demonstrations; None for the first that is available.
        path: a file or folder of the user, or a list of them (dataset only); None for the
            demonstrations of ``demos``.
        episodes: the part of the demonstrations to use, as a Python slice of their order in the
            file: ``:50`` for the first 50, ``1::2`` for every second one; None for all.
        family: a name in `TASK_FAMILIES`; None for the name of the task.
        scene: name of the task within its family.
        mask: name of a subset in a robomimic file; None for all demonstrations.
        actions: "delta" or "absolute" (robosuite only).
        relative_to: entries of the newest observation that actions are relative to (see
            `PolicyShape`), or ``auto`` for a guess (dataset only).
        state_keys, action_key: features of the observation, and of the action (dataset only); None
            for a guess.
        cameras: names of the cameras that the policy reads, or ``all`` (dataset only); None for no
            cameras.
        image_size: height and width of the frames (dataset only); None for a guess.
        frame_cache_gb: limit of the size of all decoded frames on disk, in GB (dataset only).
        resident_gb: frames up to this size in all, in GB, are kept on the training device; more are
            read from disk (dataset only).
        human_weight, policy_weight: number of times that a window counts in training if a person,
            or a policy, determined its newest action (recordings with the column "human").
        fps: rows per second (dataset only); None if the data set states it.
        horizon, n_obs_steps, n_action_steps: T, To, Ta (see `PolicyShape`); a family can choose
            None.
        validation_episodes: number of demonstrations held out of training; a family can choose
            None.
        align: move each demonstration so that it ends exactly on the goal (Push-T only).
        mirror: add the mirror images of the demonstrations (Push-T only).
    """

    name: str
    demos: Literal["human", "expert"] | None = None
    path: str | list[str] | None = None
    episodes: str | None = None
    family: str | None = None
    scene: str | None = None
    mask: str | None = None
    actions: Literal["delta", "absolute"] = "delta"
    relative_to: list[int | None] | str | None = None
    state_keys: list[str] | None = None
    action_key: str | None = None
    cameras: list[str] | str | None = None
    image_size: list[int] | None = None
    frame_cache_gb: float = 20.0
    resident_gb: float = 2.0
    human_weight: int = 1
    policy_weight: int = 1
    fps: float | None = None
    horizon: int | None
    n_obs_steps: int
    n_action_steps: int | None
    validation_episodes: int | None
    align: bool = False
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.family is None:
            object.__setattr__(self, "family", self.name)
        allowed_values: dict[str, tuple[str | None, ...]] = {
            "demos": (None, "human", "expert"),
            "actions": ("delta", "absolute"),
        }
        for option, allowed in allowed_values.items():
            if (received := getattr(self, option)) not in allowed:
                options = ", ".join("null" if value is None else value for value in allowed)
                raise ConfigError(f"task.{option}={received!r} is unknown; use {options}.")
        if self.fps is not None and not 0 < self.fps < 1e9:
            raise ConfigError(f"task.fps must be positive, got {self.fps}.")
        for option in ("human_weight", "policy_weight"):
            if getattr(self, option) < 0:
                raise ConfigError(f"task.{option} must be at least 0, got {getattr(self, option)}.")
        self.episode_slice  # noqa: B018  # checks the option before data is loaded

    @property
    def relative_entries(self) -> list[int | None] | None:
        """The entries of ``relative_to``, which must be resolved."""
        assert not isinstance(self.relative_to, str)
        return self.relative_to

    @property
    def sources(self) -> str | list[str]:
        """The option ``path``, which must be set: one data set or several."""
        assert self.path is not None
        return self.path

    @property
    def single_path(self) -> str | None:
        """The option ``path`` of a task that reads one file or folder.

        Raises:
            ConfigError: there are several.
        """
        if isinstance(self.path, list):
            raise ConfigError(
                f"task.path has {len(self.path)} entries; only task=dataset reads several."
            )
        return self.path

    @property
    def episode_slice(self) -> slice:
        """The slice that ``episodes`` describes.

        Raises:
            ConfigError: it is not a slice.
        """
        try:
            bounds = [int(x) if x else None for x in (self.episodes or ":").split(":")]
            if not 2 <= len(bounds) <= 3 or bounds[2:] == [0]:
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"task.episodes={self.episodes} is not a slice start:stop:step; use, for example, "
                ":50 for the first 50 demonstrations."
            ) from None
        return slice(*bounds)


class TaskFamily(ABC):
    """Base of task families, which load and write demonstrations.

    Attributes:
        has_scripted_expert: whether ``python -m ebt_policy.record`` works without a checkpoint.
        chooses_options: whether `resolve` chooses options from the data.
        selects_episodes: whether `load` returns only the episodes that ``episodes`` selects.
        recording_suffix: suffix of recorded files.
        recording_attrs: JSON attributes of recorded files.
    """

    has_scripted_expert: ClassVar[bool] = True
    chooses_options: ClassVar[bool] = False
    selects_episodes: ClassVar[bool] = False
    recording_suffix: ClassVar[str] = ".zarr.zip"
    recording_attrs: ClassVar[Mapping[str, Any]] = {}

    def check(self, config: DemonstrationConfig) -> None:
        """Check the options of a task of this family before data is loaded.

        Raises:
            ConfigError: this family does not have an option, or the scene is unknown.
        """
        if config.align or config.mirror:
            raise ConfigError("task.align and task.mirror belong to Push-T; remove them.")

    def resolve(self, config: DemonstrationConfig) -> dict[str, Any]:
        """Return values for the options that the family chooses from the data.

        Raises:
            UserError: an option does not fit the data, or the data cannot be read.
        """
        return {}

    @abstractmethod
    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        """Load episodes with "obs" and "action", and a description of their source.

        Raises:
            UserError: the episodes are missing or cannot be read.
        """

    def frames(self, config: DemonstrationConfig, episodes: Episodes) -> dict[str, StoredFrames]:
        """Return the recorded frames of episodes; {} for frames rendered from states."""
        return {}

    def mirror(self, episodes: Episodes) -> Episodes:
        """Return the mirror images of episodes; only for tasks with a symmetry."""
        raise NotImplementedError

    def expert_spec(self, spec: EnvSpec) -> EnvSpec:
        """Return the environment to record the scripted expert in, from the task's environment."""
        return spec

    def write_recording(
        self,
        path: Path,
        episodes: Episodes,
        config: DemonstrationConfig,
        on_progress: Callable[[int], None],
    ) -> None:
        """Write recorded episodes, with "obs", "state" and "action", to a file.

        Args:
            path: the file to write.
            episodes: the episodes.
            config: options of the task.
            on_progress: called with the number of finished episodes, if writing is slow.
        """
        write_episodes(path, episodes)


TASK_FAMILIES: Registry[type[TaskFamily]] = Registry("task.family", "ebt_policy.tasks")
