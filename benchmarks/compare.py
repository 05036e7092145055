"""Policies compared on Push-T: ``python -m benchmarks.compare [part=all seeds=3 parallel=2]``.

Trains every policy on Push-T with several training seeds, ``parallel`` at a time on an equal share
of the cores, and plays the same ``episodes=100`` with each. Parts:

- ``table``: every policy, one sample of each baseline; ``docs/results/push_t.json``.
- ``next``: some of them on as many seeds again; ``push_t_next.json``.
- ``selection``: every policy that samples with several candidates and each rule to choose one,
  on seeds that nothing was chosen by; ``push_t_selection.json``.

Runs go to ``runs/compare`` and are resumed there, so the command may be repeated after a kill. All
of it takes four hours on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.runs import evaluate_all, train_all
from benchmarks.settings import command, settings
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.policies.eval_config import EvalConfig

# Updates that ten minutes gave on two idle cores, two trainings at a time (push_t.json): equal
# minutes, on a busy machine as well. Those of ebt_12500 are about as many as the baselines'.
UPDATES = {
    "ebt": 9116, "ebt_12500": 12500, "diffusion": 12507, "flow_matching": 12632, "bc": 10626,
}  # fmt: skip
RUNS = {
    name: [
        f"model={name.removesuffix('_12500')}", "train.minutes=null", f"train.steps={updates}",
    ]
    for name, updates in UPDATES.items()
}  # fmt: skip
TABLE = [
    "ebt@steps=2,num_candidates=8", "ebt@steps=4,num_candidates=8", "ebt@steps=2,num_candidates=1",
    "ebt_12500@steps=2,num_candidates=8", "ebt_12500@steps=4,num_candidates=8",
    "ebt_12500@steps=2,num_candidates=1", "ebt_12500@steps=4,num_candidates=1",
    "flow_matching@steps=2", "flow_matching@steps=4", "flow_matching@steps=8",
    "diffusion@scheduler=ddpm,steps=100", "diffusion@scheduler=ddim,steps=10",
    "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddim,steps=2",
    "bc",
]  # fmt: skip
# Once more on the next seeds, at equal minutes: chosen after the first were seen.
NEXT = [
    "ebt@steps=2,num_candidates=8", "ebt@steps=3,num_candidates=4", "ebt@steps=4,num_candidates=8",
    "flow_matching@steps=2", "diffusion@scheduler=ddim,steps=2",
    "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddpm,steps=100",
]  # fmt: skip
SELECTION_SEED = 500_000
SELECTION = [
    "ebt_12500@steps=2,num_candidates=8", "ebt_12500@steps=2,num_candidates=8,select=medoid",
    "ebt_12500@steps=2,num_candidates=8,select=density", "ebt_12500@steps=2,num_candidates=1",
    "ebt_12500@steps=4,num_candidates=8",
    "ebt@steps=2,num_candidates=8", "ebt@steps=4,num_candidates=8",
    "flow_matching@steps=2,num_candidates=8,select=medoid",
    "flow_matching@steps=2,num_candidates=8,select=density",
    "flow_matching@steps=2,num_candidates=8,select=line_integral",
    "flow_matching@steps=2,num_candidates=1",
    "flow_matching@steps=4,num_candidates=8,select=density",
    "flow_matching@steps=4,num_candidates=8,select=line_integral",
    "diffusion@scheduler=ddim,steps=4,num_candidates=8,select=medoid",
    "diffusion@scheduler=ddim,steps=4,num_candidates=8,select=density",
    "diffusion@scheduler=ddim,steps=4,num_candidates=8,select=line_integral",
    "diffusion@scheduler=ddim,steps=4,num_candidates=1",
]  # fmt: skip
PARTS = {  # name -> entries, first seed, videos of each
    "table": ("push_t", TABLE, EVALUATION_SEED, 1),
    "next": ("push_t_next", NEXT, EVALUATION_SEED + 100, 0),
    "selection": ("push_t_selection", SELECTION, SELECTION_SEED, 0),
}


def main() -> None:
    given = settings(part="all", seeds=3, parallel=2, episodes=100, folder="runs/compare")
    if given.part not in (known := ("all", *PARTS)):
        sys.exit(f"error: part must be one of {', '.join(known)}, got {given.part!r}.")
    parts = [part for name, part in PARTS.items() if given.part in ("all", name)]
    needed = {entry.partition("@")[0] for _, entries, _, _ in parts for entry in entries}
    runs = {name: overrides for name, overrides in RUNS.items() if name in needed}
    folder = Path(given.folder)
    train_all(runs, range(given.seeds), folder, given.parallel)
    for name, entries, seed, videos in parts:
        protocol = EvalConfig(given.episodes, seed, videos, workers=8)
        evaluate_all(name, entries, folder, protocol, command("compare"))


if __name__ == "__main__":
    main()
