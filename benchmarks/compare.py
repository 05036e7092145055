"""Policies compared on Push-T: ``python -m benchmarks.compare [minutes=10 seeds=3 parallel=2]``.

Trains every policy on Push-T with several training seeds, each for the same wall-clock minutes,
``parallel`` at a time on an equal share of the cores, plays the same ``episodes=100`` with each,
and writes ``docs/results/push_t.json`` and ``push_t.md``; some of them also play as many seeds
again (``push_t_next``). Runs go to ``runs/compare`` and are gone on with there, so the command may
be repeated after a kill; a run of other settings is refused. On two cores it takes two and a half
hours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.runs import evaluate_all, train_all
from benchmarks.settings import command, settings
from ebt_policy.evaluation.protocol import Protocol
from envs.spec import EVALUATION_SEED

RUNS = {
    "ebt": [],
    # As many updates as the baselines make in ten minutes.
    "ebt_12500": ["train.minutes=null", "train.steps=12500"],
    "diffusion": ["model=diffusion"],
    "flow_matching": ["model=flow_matching"],
    "bc": ["model=bc"],
}
ENTRIES = [
    "ebt@steps=2,candidates=8", "ebt@steps=4,candidates=8", "ebt@steps=2,candidates=1",
    "ebt_12500@steps=2,candidates=8", "ebt_12500@steps=4,candidates=8",
    "ebt_12500@steps=2,candidates=1", "ebt_12500@steps=4,candidates=1",
    "flow_matching@steps=2", "flow_matching@steps=4", "flow_matching@steps=8",
    "diffusion@scheduler=ddpm,steps=100", "diffusion@scheduler=ddim,steps=10",
    "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddim,steps=2",
    "bc",
]  # fmt: skip


# Once more on the next seeds, at equal minutes: chosen after the first were seen.
AGAIN = [
    "ebt@steps=2,candidates=8", "ebt@steps=3,candidates=4", "ebt@steps=4,candidates=8",
    "flow_matching@steps=2", "diffusion@scheduler=ddim,steps=2",
    "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddpm,steps=100",
]  # fmt: skip


def main() -> None:
    given = settings(minutes=10.0, seeds=3, parallel=2, episodes=100, folder="runs/compare")
    folder = Path(given.folder)
    runs = {name: [f"train.minutes={given.minutes}", *changes] for name, changes in RUNS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    protocol = Protocol(given.episodes, EVALUATION_SEED, videos=1, workers=8)
    evaluate_all("push_t", ENTRIES, folder, protocol, command("compare"))
    after = replace(protocol, seed=protocol.seeds.stop, videos=0)
    evaluate_all("push_t_next", AGAIN, folder, after, command("compare"))


if __name__ == "__main__":
    main()
