"""The policies on simulated robots: ``python -m benchmarks.manipulation [suite=metaworld_10]``.

Settings: suite (a file of ``configs/suite``), seeds (3), parallel (2), episodes (50), demos (10),
folder (runs/manipulation). Records demonstrations of the scripted experts where there are none,
trains every policy on every task with every training seed, evaluates all of them as a suite, and
writes ``docs/results/SUITE.json``, ``SUITE.md`` and ``docs/assets/SUITE.svg``. It may be repeated
after a kill, and with more ``seeds``.

Policies have equal numbers of parameters and, by their number of updates, equal time: an update of
the energy policy takes 1.47 times that of the others (``benchmarks.speed``), which a clock would
measure badly beside other work.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.protocol import Protocol
from ebt_policy.suite import Suite, evaluate_suite
from envs.spec import EVALUATION_SEED

UPDATES = {"ebt": 1500, "diffusion": 2200, "flow_matching": 2200}
ENTRIES = [
    "ebt@steps=2,candidates=8", "ebt@steps=4,candidates=8", "ebt@steps=2,candidates=1",
    "diffusion@scheduler=ddpm,steps=100", "diffusion@scheduler=ddim,steps=10",
    "flow_matching@steps=2", "flow_matching@steps=4",
]  # fmt: skip
ASSETS = Path("docs/assets")


def task_overrides(name: str) -> list[str]:
    """``metaworld-door-open`` -> what selects this task on the command line."""
    family, _, scene = name.partition("-")
    return [f"task={family}", *([f"task.scene={scene}"] if scene else [])]


def demonstrations(name: str, count: int, folder: Path) -> list[str]:
    """Record a scripted expert's demonstrations of a task, once; returns what selects them."""
    if name == "adroit_door":  # shown by humans alone
        return []
    suffix = ".zarr.zip" if name.startswith("metaworld") else ".hdf5"
    path = folder / "demos" / f"{name}-{count}{suffix}"
    if not path.exists():
        recorder = [sys.executable, "-m", "envs.record", *task_overrides(name)]
        subprocess.run([*recorder, f"episodes={count}", f"output={path}", "workers=2"], check=True)
    return [f"task.path={path}", "task.validation_episodes=0"]


def main() -> None:
    given = settings(
        suite="metaworld_10", seeds=3, parallel=2, episodes=50, demos=10,
        folder="runs/manipulation",
    )  # fmt: skip
    file, folder = Path("configs/suite") / f"{given.suite}.yaml", Path(given.folder)
    if not file.is_file():
        sys.exit(f"error: there is no {file}; suites are the files of configs/suite.")
    suite = Suite(**yaml.safe_load(file.read_text()))
    runs = {}
    for task in suite.tasks:
        shown = demonstrations(task, given.demos, folder)
        for model, updates in UPDATES.items():
            length = ["train.minutes=null", f"train.steps={updates}"]
            runs[f"{task}/{model}"] = [*task_overrides(task), *shown, f"model={model}", *length]
    train_all(runs, range(given.seeds), folder, given.parallel)
    output = folder / "evaluation" / suite.name
    evaluate_suite(
        [str(folder / "{task}" / entry_of_runs(entry)) for entry in ENTRIES],
        Protocol(given.episodes, EVALUATION_SEED, videos=0, workers=2),
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
