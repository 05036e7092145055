"""Recovery of every policy: ``python -m benchmarks.recovery [study=push_t]``.

Settings: study (push_t, push_t_selection, lift, metaworld-peg-insert-side, or one of the latter two
followed by _disturbed), runs (the folder of its training runs: runs/compare, or
runs/manipulation/STUDY), seeds (3), folder (runs/recovery/STUDY).

Push-T: plays all perturbations with the runs that ``benchmarks.compare`` trained, and with implicit
behaviour cloning, which it trains in the same way; every baseline draws one sample.
``push_t_selection``: four perturbations, on seeds that nothing was chosen by; every policy draws
eight samples and chooses one, by each of its rules. Robots: what they hold is taken away, or they
are pushed, with the runs that ``benchmarks.manipulation`` trained, and with others that it trains
on demonstrations in each of which the object is taken away (STUDY_disturbed). Writes
``docs/results/recovery_STUDY.json``. Repeated after a kill it goes on. On two cores Push-T takes
two and a half hours, its selection one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare import SELECTION_SEED
from benchmarks.manipulation import EFFORTS, MODELS, demonstrations, task_overrides
from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.robustness import evaluate_robustness


@dataclass(frozen=True)
class Study:
    """What is played, where.

    Attributes:
        runs: the folder of the training runs.
        entries: of them; the first is the one that the others are compared with.
        perturbations: as `evaluate_robustness` takes them.
        workers: processes that play.
        episodes: of each run and condition; robots, which are slow to simulate, play fewer.
        seed: of the first episode.
        train: runs to train beside those that are there.
        task: of the robot.
        disturbed: what went wrong in the demonstrations of it that all runs are to be trained on.
    """

    runs: str
    entries: tuple[str, ...]
    perturbations: tuple[str, ...]
    workers: int
    episodes: int = 20
    seed: int = EVALUATION_SEED
    train: dict[str, list[str]] = field(default_factory=dict)
    task: str = ""
    disturbed: str = ""

    def to_train(self, runs: Path) -> dict[str, list[str]]:
        """Run -> overrides; demonstrations are recorded first, beside the folder ``runs``."""
        if not self.disturbed:
            return self.train
        effort = EFFORTS["mujoco"]
        shown = demonstrations(self.task, effort.demos, runs.parent, self.disturbed)
        return {model: [*task_overrides(self.task), *shown, *effort.of(model)] for model in MODELS}


ROBOTS = (
    "ebt@steps=2,candidates=8", "diffusion@scheduler=ddim,steps=10", "flow_matching@steps=2",
)  # fmt: skip
TAKEN = ("object", "gripper")
DISTURBED = {"lift": "object=8", "metaworld-peg-insert-side": "object=5"}


def robots(task: str, disturbed: str = "") -> Study:
    runs = f"runs/manipulation/{task}{'_disturbed' * bool(disturbed)}"
    return Study(runs, ROBOTS, TAKEN, workers=10, task=task, disturbed=disturbed)


STUDIES = {
    "push_t": Study(
        "runs/compare",
        (
            "ebt_12500@steps=2,candidates=8",
            "ebt_12500@steps=4,candidates=8",
            "ebt_12500@steps=2,candidates=1",
            "diffusion@scheduler=ddim,steps=10",
            "flow_matching@steps=2",
            "bc",
            "ibc@samples=32",  # with all its samples it plays for hours, no better
        ),
        ("all",),
        workers=25,
        episodes=50,
        train={"ibc": ["model=ibc", "train.minutes=10"]},
    ),
    "push_t_selection": Study(
        "runs/compare",
        (
            "ebt_12500@steps=2,candidates=8",
            "ebt_12500@steps=2,candidates=1",
            "flow_matching@steps=2,candidates=8,select=medoid",
            "flow_matching@steps=2,candidates=8,select=density",
            "flow_matching@steps=2,candidates=8,select=line_integral",
            "flow_matching@steps=2,candidates=1",
            "diffusion@scheduler=ddim,steps=4,candidates=8,select=density",
        ),
        ("agent=100", "kick=50", "action_noise=10", "delay=2"),
        workers=25,
        episodes=100,
        seed=SELECTION_SEED,
    ),
    **{task: robots(task) for task in DISTURBED},
    **{f"{task}_disturbed": robots(task, what) for task, what in DISTURBED.items()},
}


def main() -> None:
    given = settings(study="push_t", runs="", seeds=3, folder="")
    if (study := STUDIES.get(given.study)) is None:
        sys.exit(f"error: study must be one of {', '.join(STUDIES)}, got {given.study!r}.")
    runs = Path(given.runs or study.runs)
    folder = Path(given.folder or f"runs/recovery/{given.study}")
    train_all(study.to_train(runs), range(given.seeds), runs, parallel=2)
    evaluate_robustness(
        [str(runs / entry_of_runs(entry)) for entry in study.entries],
        EvalConfig(study.episodes, study.seed, videos=1, workers=study.workers),
        study.perturbations,
        output=folder,
        device=DEVICE,
        command=command("recovery"),
    )
    store(f"recovery_{given.study}.json", (folder / "recovery.json").read_text())


if __name__ == "__main__":
    main()
