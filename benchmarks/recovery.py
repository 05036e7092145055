"""Recovery of every policy: ``python -m benchmarks.recovery [runs=runs/compare] [episodes=50]``.

Plays all perturbations with the runs that ``benchmarks.compare`` trained, and with implicit
behaviour cloning, which it trains in the same way, and writes ``docs/results/recovery.json``.
Repeated after a kill it goes on. On two cores it takes two and a half hours.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.protocol import Protocol
from ebt_policy.recovery import evaluate_recovery
from envs.spec import EVALUATION_SEED

# Beside those of `benchmarks.compare`.
RUNS = {"ibc": ["model=ibc", "train.minutes=10"]}
# The first is the one that the others are compared with.
ENTRIES = [
    "ebt_12500@steps=2,candidates=8",
    "ebt_12500@steps=4,candidates=8",
    "ebt_12500@steps=2,candidates=1",
    "diffusion@scheduler=ddim,steps=10",
    "flow_matching@steps=2",
    "bc",
    "ibc@samples=32",  # with all its samples it plays for hours, no better
]


def main() -> None:
    given = settings(runs="runs/compare", episodes=50, folder="runs/recovery")
    folder = Path(given.folder)
    train_all(RUNS, range(3), Path(given.runs), parallel=2)
    evaluate_recovery(
        [f"{given.runs}/{entry_of_runs(entry)}" for entry in ENTRIES],
        Protocol(given.episodes, EVALUATION_SEED, videos=1, workers=25),
        "all",
        output=folder,
        device=DEVICE,
        command=command("recovery"),
    )
    store("recovery.json", (folder / "recovery.json").read_text())


if __name__ == "__main__":
    main()
