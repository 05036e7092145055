"""The scaling studies of docs/scaling.md: ``python -m benchmarks.scaling [seeds=3]``.

Settings: seeds, folder, parallel (trainings at once; more than one needs the extra sweeps). Runs
`ebt_policy.scaling` along data, width and depth on WikiText-2 and writes
``docs/results/scaling_AXIS.json``. It may be repeated after a kill; with parallel=2 on two cores
it takes two hours.
"""

from __future__ import annotations

import json

from benchmarks.settings import settings, store
from ebt_policy.scaling import scaling

AXES = ("data", "width", "depth")
CORPUS = "task.corpus=wikitext2"


def main() -> None:
    given = settings(seeds=3, folder="runs/scaling", parallel=1)
    for axis in AXES:
        arguments = [f"axis={axis}", CORPUS]
        told = [f"seeds={given.seeds}", f"folder={given.folder}"]
        if given.parallel > 1:
            told += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={given.parallel}"]
        result = scaling([*arguments, *told])
        result["command"] = " ".join(["python -m ebt_policy.scaling", *arguments])
        store(f"scaling_{axis}.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
