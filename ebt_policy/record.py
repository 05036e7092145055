"""Record demonstrations: successful episodes of a scripted expert, or of a trained policy.

    python -m ebt_policy.record task=lift episodes=200

Every setting is in ``configs/record.yaml``. Run the same command again to resume an interrupted
recording, which is kept in `<output>.partial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from ebt_policy.cli import report_errors, run_entry
from ebt_policy.config import options
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.recordings import recording
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
    workers: int
    perturb: list[str] | None


def run(config: dict[str, Any]) -> None:
    """Record demonstrations as configured, with a progress bar.

    Raises:
        UserError: before anything is played, for a configuration that cannot be used.
    """
    settings = options(RecordConfig, config, "the configuration")
    task = PolicyTaskConfig.from_config(config)
    family = task.task_family
    demonstrator = find_demonstrator(task, settings.checkpoint, settings.perturb)
    output = Path(settings.output or recording(task.name, family.recording_suffix))
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, "{task.fields[rate]}", console=console) as progress:
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


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="record")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        config = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(config, dict)
        run({str(key): value for key, value in config.items()})


def main() -> None:
    """Run the command line."""
    run_entry(_main, "perturb")


if __name__ == "__main__":
    main()
