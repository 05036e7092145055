"""Demonstrations of robosuite tasks: recorded here, published by robomimic, or user files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ebt_policy.data.episodes import EpisodeError, Episodes
from ebt_policy.data.recordings import is_store, load_recorded, record_command, recording
from ebt_policy.data.robomimic import read_robomimic
from ebt_policy.data.task_family import TASK_FAMILIES, DemonstrationConfig, TaskFamily
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.robosuite_tasks import RATE_HZ, SCENES
from ebt_policy.errors import ConfigError
from ebt_policy.io.download import DownloadError, fetch_from_hub
from ebt_policy.io.local_data import local_data

HUB = "amandlek/robomimic"  # robomimic's data set on the Hugging Face hub


@TASK_FAMILIES.register("robosuite")
class RobosuiteFamily(TaskFamily):
    """Manipulation tasks of robosuite, with robomimic's demonstrations."""

    recording_suffix = ".hdf5"

    def check(self, config: DemonstrationConfig) -> None:
        super().check(config)
        if config.scene not in SCENES:
            raise ConfigError(f"task.scene must be one of {', '.join(SCENES)}, got {config.scene}.")
        if config.actions == "delta" and config.relative_to:
            raise ConfigError(
                "task.relative_to needs absolute actions; with task.actions=delta set "
                "task.relative_to=null."
            )

    def load(self, config: DemonstrationConfig) -> tuple[Episodes, str]:
        if is_store(config.single_path):
            if config.actions != "absolute":
                raise ConfigError(
                    f"{config.single_path} was recorded by a control loop and has absolute "
                    "actions; remove task.actions=delta."
                )
            episodes, origin = load_recorded(config.name, config.single_path, RATE_HZ)
            width, arms = episodes.arrays["action"].shape[1], SCENES[str(config.scene)].arms
            if width != 10 * arms:
                raise ConfigError(
                    f"{config.single_path} has {width} numbers in an action, but task={config.name}"
                    f" has {10 * arms}, the poses of its hands; train on it with task=dataset."
                )
        else:
            scene = str(config.scene)
            episodes, origin = load_demonstrations(
                config.name, scene, config.single_path, config.demos,
                lambda file: read_robomimic(
                    scene, file, mask=config.mask, actions=config.actions
                ),
            )  # fmt: skip
        return episodes, f"{config.name}: {len(episodes)} demonstrations {origin}."

    def expert_spec(self, spec: EnvSpec) -> EnvSpec:
        """Return the environment with relative actions, as in the files of robomimic."""
        return replace(spec, kwargs={**spec.kwargs, "actions": "delta"})

    def write_recording(
        self,
        path: Path,
        episodes: Episodes,
        config: DemonstrationConfig,
        on_progress: Callable[[int], None],
    ) -> None:
        """Write a file in robomimic's format, with the simulator's observations."""
        from ebt_policy.data.robomimic_writer import write_robomimic  # loads the simulator

        write_robomimic(path, str(config.scene), episodes, on_progress)


def load_demonstrations(
    name: str,
    scene: str,
    path: str | None,
    demos: str | None,
    reader: Callable[[Path], Episodes],
) -> tuple[Episodes, str]:
    """Load the demonstrations of a robosuite task from a file in robomimic's format.

    Args:
        name: name of the task.
        scene: its key in `SCENES`.
        path: a file of the user; None to choose by ``demos``.
        demos: "expert" for the ones recorded here, "human" for the published ones of a proficient
            human; None for the first of both that is available.
        reader: function that reads episodes from a file.

    Returns:
        The episodes, and their source as text.

    Raises:
        EpisodeError, DownloadError: the demonstrations are not available, or the file is malformed.
    """
    if path is not None:
        return reader(Path(path)), f"from {path}"
    recorded = recording(name, RobosuiteFamily.recording_suffix)
    if demos != "human" and recorded.exists():
        return reader(recorded), f"by a scripted expert, from {recorded}"
    if demos == "expert":
        raise EpisodeError(f"There is no {recorded}; record it with: {record_command(name)}")
    folder = SCENES[scene].folder
    local = local_data("robomimic", folder, "ph", "low_dim_v15.hdf5")
    try:
        file = local or published(scene)
    except DownloadError as error:
        raise DownloadError(
            f"{str(error).rstrip('.')}; or record a scripted expert's demonstrations with: "
            f"{record_command(name)}"
        ) from error
    return reader(file), f"by a human, from {file}"


def published(scene: str) -> Path:
    """Return the file of a proficient human's published demonstrations; download it if necessary.

    Raises:
        DownloadError: the file cannot be downloaded.
    """
    folder = SCENES[scene].folder
    return fetch_from_hub(HUB, f"v1.5/{folder}/ph/low_dim_v15.hdf5", f"robomimic/{folder}.hdf5")
