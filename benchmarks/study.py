"""Studies as data: what to train, what to evaluate, and where to store the result.

A `Study` names training runs and `Part`s. A part measures entries, which are checkpoints with
inference options, and stores one JSON file. `benchmarks.run` executes studies.

Overrides, entries and names of results may contain ``{option}``. It is replaced by the value of
this option of the study. Overrides may also contain ``{seed}``, the training seed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ebt_policy.data.recordings import recording

# Options of every study, and their defaults.
COMMON_OPTIONS: dict[str, Any] = {
    "part": "all",  # one of the study's parts
    "seeds": 3,  # training seeds
    "parallel": 2,  # training runs at the same time
    "folder": "",  # folder of the training runs
    "overrides": "",  # further overrides of all training runs, separated by spaces
    "docs": "docs",  # folder that contains results/ and assets/
    "dry_run": False,  # print the commands and the entries without running them
}


@dataclass(frozen=True)
class Recording:
    """Demonstrations that a scripted expert records.

    Attributes:
        task: name of the task, as in a suite.
        overrides: overrides that select the task.
        episodes: number of demonstrations.
        perturbation: perturbation of each demonstration, as in ``perturb=`` of
            ``ebt_policy.record``; "" for none.
    """

    task: str
    overrides: tuple[str, ...]
    episodes: int
    perturbation: str = ""

    def path(self, folder: Path) -> Path:
        """Return the file of the demonstrations in a folder of training runs."""
        words = [f"demos-{self.episodes}", self.perturbation.replace("=", "-")]
        return folder / "-".join(filter(None, words)) / recording(self.task).name

    def command(self, folder: Path) -> list[str]:
        """Return the command that records the demonstrations."""
        perturb = [f"perturb={self.perturbation}"] if self.perturbation else []
        return [
            sys.executable, "-m", "ebt_policy.record", *self.overrides, "workers=2",
            f"episodes={self.episodes}", f"output={self.path(folder)}", *perturb,
        ]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A model to train with every training seed.

    Attributes:
        overrides: overrides of ``ebt_policy.train``.
        recording: demonstrations to train on, if they must be recorded first.
        after: another run of the study that is trained first, with seed 0 only. The overrides refer
            to its folder as ``{folder}/NAME-seed0``.
        teacher: another run of the study that is trained first with every seed. The overrides refer
            to its folder as ``{folder}/NAME-seed{seed}``.
    """

    overrides: tuple[str, ...]
    recording: Recording | None = None
    after: str = ""
    teacher: str = ""


@dataclass(frozen=True)
class TrainingCommand:
    """One training run with one seed, in the folder ``RUN-seedSEED``."""

    run: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        return self.folder / f"{self.run}-seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``ebt_policy.train``; without a task in the overrides, it is Push-T."""
        tasks = [override for override in self.overrides if override.startswith("task=")]
        plays_episodes = not {"task=text", "task=image", "task=video"} & set(tasks)
        final = "evaluation.episodes=0" if plays_episodes else "evaluation.final=false"
        return [
            *([] if tasks else ["task=push_t"]), f"run_dir={self.run_dir}", "resume=true",
            "train.eval_every=0", final, f"seed={self.seed}", *self.overrides,
        ]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One stored result of a study.

    Attributes:
        measure: computes the result from a `StudyContext`.
        result: name of the file, ``docs/results/RESULT.json``; "" stores nothing.
        entries: checkpoints with inference options, ``RUN@name=value,...``. RUN is a run of the
            study with all its seeds, or ``RUN-seed0``. ``{{task}}`` in it stands for each task of a
            suite. If the study has no runs, RUN is a path.
        groups: purpose -> further entries.
        follow_ups: further steps, which may add to the result or draw figures.
        table: returns the result as a Markdown table, which is printed at the end.
    """

    measure: Callable[[StudyContext], Any]
    result: str = ""
    entries: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    follow_ups: Sequence[Callable[[StudyContext, Any], None]] = ()
    table: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Study:
    """Training runs and what is measured with them.

    Attributes:
        summary: one line for the list of studies.
        parts: name -> part.
        runs: name -> model to train.
        folder: default folder of the training runs.
        options: further options and their defaults, as `parse_options` takes them.
        packages: modules that the study needs and this project does not install.
        products: name -> runs whose product is an entry (see ``ebt_policy.compose``).
    """

    summary: str
    parts: Mapping[str, Part]
    runs: Mapping[str, Run] = field(default_factory=dict)
    folder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """All options of the study and their defaults."""
        parts = ("all", *self.parts) if len(self.parts) > 1 else ("all",)
        return {**COMMON_OPTIONS, "part": parts, "folder": self.folder, **self.options}

    def selected_parts(self, options: SimpleNamespace) -> dict[str, Part]:
        """Return the part that ``part=`` names, or all parts."""
        return {k: v for k, v in self.parts.items() if options.part in ("all", k)}

    def training_commands(self, options: SimpleNamespace) -> list[list[TrainingCommand]]:
        """Return the training runs that the selected parts need, in consecutive stages."""
        parts = self.selected_parts(options).values()
        used = {run for part in parts for entry in all_entries(part) for run in self.runs_of(entry)}
        needed_runs = [name for name in self.runs if name in used]
        first = dict.fromkeys(
            self.runs[name].after for name in needed_runs if self.runs[name].after
        )
        teachers = dict.fromkeys(
            self.runs[name].teacher for name in needed_runs if self.runs[name].teacher
        )
        others = [name for name in needed_runs if name not in teachers]
        seeds = range(options.seeds)
        return [
            [
                *(self._training(name, 0, options) for name in first),
                *(self._training(name, seed, options) for seed in seeds for name in teachers),
            ],
            [self._training(name, seed, options) for seed in seeds for name in others],
        ]

    def recordings(self, options: SimpleNamespace) -> list[Recording]:
        """Return the demonstrations that these training runs need."""
        commands = [command for stage in self.training_commands(options) for command in stage]
        recordings = (self.runs[command.run].recording for command in commands)
        return list(dict.fromkeys(recording for recording in recordings if recording))

    def used_products(self, options: SimpleNamespace) -> dict[str, tuple[str, ...]]:
        """Return the products that the selected parts evaluate."""
        parts = self.selected_parts(options).values()
        names = {run_name(entry) for part in parts for entry in all_entries(part)}
        return {name: runs for name, runs in self.products.items() if name in names}

    def runs_of(self, entry: str) -> list[str]:
        """Return the runs that an entry evaluates."""
        pattern = run_name(entry).replace("{{task}}", "*")
        if pattern in self.products:
            return list(self.products[pattern])
        return [name for name in self.runs if fnmatchcase(name, pattern)]

    def _training(self, name: str, seed: int, options: SimpleNamespace) -> TrainingCommand:
        run, folder = self.runs[name], Path(options.folder)
        overrides = [text.format(seed=seed, **vars(options)) for text in run.overrides]
        if run.recording:
            path = run.recording.path(folder)
            overrides += [f"task.path={path}", "task.validation_episodes=0"]
        return TrainingCommand(name, seed, folder, (*overrides, *shlex.split(options.overrides)))


def all_entries(part: Part) -> list[str]:
    """Return the entries of a part and of its groups."""
    return [*part.entries, *(entry for group in part.groups.values() for entry in group)]


def run_name(entry: str) -> str:
    """Return the run of an entry: ``ebt`` for ``ebt@steps=2`` and for ``ebt-seed0``."""
    return entry.partition("@")[0].partition("-seed")[0]


@dataclass(frozen=True)
class StudyContext:
    """The arguments of a measurement: the study, one of its parts, the options and the command."""

    study: Study
    part: Part
    options: SimpleNamespace
    command: str

    @property
    def folder(self) -> Path:
        """The folder of the training runs."""
        return Path(self.options.folder)

    @property
    def result(self) -> str:
        """The name of the stored result."""
        return self.part.result.format(**vars(self.options))

    @property
    def output(self) -> Path:
        """The folder of the caches, reports and figures of the measurement."""
        return self.folder / "evaluation" / self.result

    @property
    def results(self) -> Path:
        return Path(self.options.docs) / "results"

    @property
    def assets(self) -> Path:
        return Path(self.options.docs) / "assets"

    def checkpoints(self, group: str = "") -> list[str]:
        """Return the entries of the part or of one of its groups as values of ``checkpoint=``."""
        entries = self.part.groups[group] if group else self.part.entries
        return [self.checkpoint(entry) for entry in entries]

    def checkpoint(self, entry: str) -> str:
        """Return one entry as a value of ``checkpoint=``."""
        run, separator, inference = entry.format(**vars(self.options)).partition("@")
        if not self.study.runs:
            return f"{run}{separator}{inference}"
        seeds = "" if "-seed" in run else "-seed*"
        return f"{self.folder / run}{seeds}{separator}{inference}"
