"""The policies on simulated robots: ``python -m benchmarks.manipulation [suite=metaworld_10]``.

Settings: suite (metaworld_10, mujoco or cameras), seeds (3), parallel (2), episodes (50), folder
(runs/manipulation). Records demonstrations of the scripted experts where there are none, trains
every policy on every task with every training seed, evaluates all of them as a suite, and writes
``docs/results/SUITE.json``, ``SUITE.md`` and ``docs/assets/SUITE.svg``. It may be repeated after a
kill, and with more ``seeds``.

Policies have equal numbers of parameters and, by their number of updates, equal time, which a clock
would measure badly beside other work: an update of the energy policy takes 1.47 times that of the
others (``benchmarks.speed``); with cameras, whose images take most of it, as long as diffusion's
and 1.16 times flow matching's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.data.recordings import recording
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.suite import Suite, evaluate_suite


@dataclass(frozen=True)
class Effort:
    """What a suite's tasks are learned from: demonstrations of scripted experts, and updates."""

    demos: int
    updates: int  # of the energy policy
    others: int  # of the others
    batch_size: int = 128

    def of(self, model: str) -> list[str]:
        updates = self.updates if model == "ebt" else self.others
        length = ["train.minutes=null", f"train.steps={updates}"]
        return [f"model={model}", *length, f"train.batch_size={self.batch_size}"]


EFFORTS = {
    "metaworld_10": Effort(demos=10, updates=1500, others=2200),
    "mujoco": Effort(demos=100, updates=3000, others=4400),
    "cameras": Effort(demos=50, updates=2000, others=2320, batch_size=64),
}
OF_ITS_OWN = {  # a task that needs more updates than the others of its suite
    "push_t_image": replace(EFFORTS["cameras"], updates=6000, others=6960),
}
MODELS = ("ebt", "diffusion", "flow_matching")
ENTRIES = [
    "ebt@steps=2,num_candidates=8", "ebt@steps=4,num_candidates=8",
    "diffusion@scheduler=ddpm,steps=100", "diffusion@scheduler=ddim,steps=10",
    "flow_matching@steps=2", "flow_matching@steps=4",
]  # fmt: skip
CAMERAS = {"lift": "agentview,robot0_eye_in_hand", "metaworld": "corner2"}
ASSETS = Path("docs/assets")


def task_overrides(name: str) -> list[str]:
    """``metaworld-door-open`` -> what selects this task on the command line.

    With ``-cameras`` at its end, it is seen by cameras.
    """
    family, _, scene = name.removesuffix("-cameras").partition("-")
    chosen = [f"task={family}", *([f"task.scene={scene}"] if scene else [])]
    if name.endswith("-cameras"):
        chosen += [f"task.cameras=[{CAMERAS[family]}]", "vision=small"]
    return chosen


def demonstrations(name: str, count: int, folder: Path, disturbed: str = "") -> list[str]:
    """Record a scripted expert's demonstrations of a task, once; returns what selects them.

    Args:
        disturbed: what goes wrong in every one, as ``ebt_policy.record`` takes it.
    """
    if name in ("adroit_door", "push_t_image"):  # shown by humans
        return []
    name = name.removesuffix("-cameras")  # frames are drawn from the states
    kind = [f"demos-{count}", *([disturbed.replace("=", "-")] if disturbed else [])]
    path = folder / "-".join(kind) / recording(name).name
    if not path.exists():
        recorder = [sys.executable, "-m", "ebt_policy.record", *task_overrides(name), "workers=2"]
        recorder += [f"episodes={count}", f"output={path}"]
        subprocess.run(recorder + [f"perturb={disturbed}"] * bool(disturbed), check=True)
    return [f"task.path={path}", "task.validation_episodes=0"]


def main() -> None:
    given = settings(
        suite="metaworld_10", seeds=3, parallel=2, episodes=50, folder="runs/manipulation"
    )
    folder = Path(given.folder)
    if given.suite not in EFFORTS:
        sys.exit(f"error: suite must be one of {', '.join(EFFORTS)}, got {given.suite!r}.")
    suite = Suite(**yaml.safe_load((Path("configs/suite") / f"{given.suite}.yaml").read_text()))
    runs = {}
    for task in suite.tasks:
        effort = OF_ITS_OWN.get(task, EFFORTS[given.suite])
        shown = demonstrations(task, effort.demos, folder)
        for model in MODELS:
            runs[f"{task}/{model}"] = [*task_overrides(task), *shown, *effort.of(model)]
    train_all(runs, range(given.seeds), folder, given.parallel)
    output = folder / "evaluation" / suite.name
    evaluate_suite(
        [str(folder / "{task}" / entry_of_runs(entry)) for entry in ENTRIES],
        EvalConfig(given.episodes, EVALUATION_SEED, videos=0, workers=12),
        suite,
        output=output,
        device=DEVICE,
        command=command("manipulation"),
    )
    for kind in ("json", "md"):
        store(f"{suite.name}.{kind}", (output / f"suite.{kind}").read_text())
    shutil.copyfile(output / "suite.svg", ASSETS / f"{suite.name}.svg")


if __name__ == "__main__":
    main()
