"""Record demonstrations: successful episodes of a scripted expert, or of a trained policy.

    python -m ebt_policy.record task=lift episodes=200

All options are in ``configs/record.yaml``. Run the same command again to resume an interrupted
recording, which is stored in `<output>.partial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from ebt_policy.cli import Entry, run_entry
from ebt_policy.config import options
from ebt_policy.data.convert import check_destination, convert
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.recordings import recording
from ebt_policy.errors import ConfigError
from ebt_policy.io.progress import ReportedProgress
from ebt_policy.policies.recording import find_demonstrator, record_demonstrations
from ebt_policy.policies.task_config import PolicyTaskConfig

console = Console()


@dataclass(frozen=True)
class RecordConfig:
    """The options of ``configs/record.yaml``, which describes them."""

    task: dict[str, Any]
    checkpoint: str | None
    episodes: int
    output: str | None
    lerobot: str | None
    workers: int
    perturb: list[str] | None


def run(config: dict[str, Any]) -> None:
    """Record demonstrations as configured, with a progress bar.

    Raises:
        UserError: if the configuration cannot be used; raised before any episode is played.
    """
    settings = options(RecordConfig, config, "the configuration")
    task = PolicyTaskConfig.from_config(config)
    family = task.task_family
    demonstrator = find_demonstrator(task, settings.checkpoint, settings.perturb)
    output = Path(settings.output or recording(task.name, family.recording_suffix))
    fps = None
    if settings.lerobot is not None:
        fps = control_rate(task)
        check_destination(Path(settings.lerobot), "lerobot", fps)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ReportedProgress(*columns, "{task.fields[rate]}", console=console) as progress:
        bar = progress.add_task("recording", total=settings.episodes, rate="")

        def show(successes: int, attempts: int) -> None:
            rate = f"{successes} successes in {attempts} attempts"
            progress.update(bar, completed=min(successes, settings.episodes), rate=rate)

        def write(path: Path, episodes: Episodes) -> None:
            bar = progress.add_task("writing", total=len(episodes), rate="")
            family.write_recording(
                path, episodes, task, lambda done: progress.update(bar, completed=done)
            )
            progress.update(bar, completed=len(episodes))

        episodes = record_demonstrations(
            demonstrator,
            settings.episodes,
            output,
            workers=settings.workers,
            write=write,
            on_progress=show,
        )
    summary = f"{output}: {len(episodes)} episodes, {episodes.ends[-1]} steps"
    console.print(summary, markup=False, soft_wrap=True)
    if settings.lerobot is not None:
        with convert(output, Path(settings.lerobot), to="lerobot", fps=fps):
            console.print(f"{settings.lerobot}: LeRobot format", markup=False, soft_wrap=True)


def control_rate(task: PolicyTaskConfig) -> float:
    """Return the steps per second of a task's environment.

    Raises:
        ConfigError: its metadata do not state them.
    """
    env = task.env_spec().make()
    rate = env.metadata.get("render_fps")
    env.close()
    if rate is None:
        raise ConfigError(
            f"lerobot= needs a rate, but the environment of task={task.name} has no "
            "metadata['render_fps']; record without it, and use ebt-convert with fps=N."
        )
    return float(rate)


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-record",
            "record",
            "Record demonstrations: successful episodes of a scripted expert or of a policy.",
            (
                "task=lift episodes=200",
                "task=metaworld task.scene=door-open",
                "task=push_t checkpoint=runs/push_t/ebt-xs-seed0",
                "task=lift perturb=object=8 output=demos/recoveries.hdf5",
            ),
            lambda config, _overrides: run(config),
            help_choices=("task=lift",),
            repeated=("perturb",),
        )
    )


if __name__ == "__main__":
    main()
