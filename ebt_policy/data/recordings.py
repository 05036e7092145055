"""Recorded demonstrations: episode stores in ``demos/`` or written by a control loop."""

from __future__ import annotations

from pathlib import Path

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.data.episodes import EpisodeError, Episodes, check_meaning
from ebt_policy.data.task_family import TASK_FAMILIES, DemonstrationConfig, TaskFamily

RECORDINGS = Path("demos")  # default folder of `python -m ebt_policy.record`


def recording(name: str, suffix: str = TaskFamily.recording_suffix) -> Path:
    """Return the default path of the recorded demonstrations of a task."""
    return RECORDINGS / f"{name}{suffix}"


def record_command(name: str) -> str:
    """Return the command that records the demonstrations of a task."""
    family, _, scene = name.partition("-")
    task = f"task={family} task.scene={scene}" if scene else f"task={name}"
    return f"python -m ebt_policy.record {task}"


def is_store(path: str | None) -> bool:
    """Return whether a path can be an episode store: a folder or a name that ends in .zip."""
    return path is not None and (Path(path).is_dir() or path.endswith(".zip"))


def load_recorded(
    name: str, path: str | None, rate_hz: float | None = None
) -> tuple[Episodes, str]:
    """Load the arrays of an episode store, at least "obs" and "action".

    Args:
        name: name of the task.
        path: folder or zip of the store; None for the default path of the task.
        rate_hz: rate of the task, which the store must have; None for any rate.

    Returns:
        The episodes, and the source as text.

    Raises:
        EpisodeError: the store is missing or malformed, or has no "obs" or "action".
    """
    file = Path(path) if path is not None else recording(name)
    if not file.exists():
        advice = f"record them with: {record_command(name)}" if path is None else "check task.path"
        raise EpisodeError(f"There are no demonstrations of {name} at {file}; {advice}")
    episodes = read_episodes(file)
    if missing := [key for key in ("obs", "action") if key not in episodes.arrays]:
        raise EpisodeError(
            f"{file} has no {' and no '.join(missing)}, which {name} needs; it has "
            f"{', '.join(episodes.arrays)}."
        )
    if rate_hz is not None:
        check_meaning(episodes.attrs, str(file), rate_hz=rate_hz)
    return episodes, f"from {file}"


@TASK_FAMILIES.register("recorded")
@TASK_FAMILIES.register("metaworld")
class RecordedFamily(TaskFamily):
    """Tasks whose demonstrations are recorded and not downloaded."""

    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        episodes, origin = load_recorded(config.name, config.single_path)
        return episodes, f"{config.name}: {len(episodes)} demonstrations {origin}."
