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
        path: a file or folder of the user; None for the demonstrations of ``demos``.
        family: a name in `TASK_FAMILIES`; None for the name of the task.
        scene: name of the task within its family.
        mask: name of a subset in a robomimic file; None for all demonstrations.
        actions: "delta" or "absolute" (robosuite only).
        relative_to: entries of the newest observation that actions are relative to (see
            `PolicyShape`).
        align: move each demonstration so that it ends exactly on the goal (Push-T only).
        mirror: add the mirror images of the demonstrations (Push-T only).
    """

    name: str
    demos: Literal["human", "expert"] | None
    path: str | None
    family: str | None = None
    scene: str | None = None
    mask: str | None = None
    actions: Literal["delta", "absolute"] = "delta"
    relative_to: list[int | None] | None = None
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


class TaskFamily(ABC):
    """Base of task families, which load and write demonstrations.

    Attributes:
        has_scripted_expert: whether ``python -m ebt_policy.record`` works without a checkpoint.
        recording_suffix: suffix of recorded files.
        recording_attrs: JSON attributes of recorded files.
    """

    has_scripted_expert: ClassVar[bool] = True
    recording_suffix: ClassVar[str] = ".zarr.zip"
    recording_attrs: ClassVar[Mapping[str, Any]] = {}

    def check(self, config: DemonstrationConfig) -> None:
        """Check the options of a task of this family before data is loaded.

        Raises:
            ConfigError: this family does not have an option, or the scene is unknown.
        """
        if config.align or config.mirror:
            raise ConfigError("task.align and task.mirror belong to Push-T; remove them.")

    @abstractmethod
    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        """Load episodes with "obs" and "action", and a one-line description of their source.

        Raises:
            UserError: the episodes are missing or cannot be read.
        """

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
