"""Which parts matter: ``python -m benchmarks.ablations [steps=6000] [seeds=1] [parallel=2]``.

Trains the energy policy with one thing changed at a time, each for the same number of updates (but
``contrastive`` for ten minutes), and evaluates all on the same ``episodes=100``; the whole policy
is also evaluated with one thing changed in how it predicts. Runs go to ``runs/ablations`` and are
gone on with there. Writes ``docs/results/ablations.json`` and ``ablations.md``. On two cores it
takes an hour and a half.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.runs import evaluate_all, train_all
from benchmarks.settings import command, settings
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.policies.eval_config import EvalConfig

RUNS = {
    "whole": [],
    "no_relative": ["task.relative_to=null"],
    "no_align": ["task.align=false"],
    "no_mirror": ["task.mirror=false"],
    "no_level": ["objective.condition_on_noise_level=false"],
    "two_samples": ["objective.noise_samples_per_target=2"],
    "equilibrium": ["objective=equilibrium"],
    "s1": ["objective=s1"],
    "s2": ["objective=s2"],
    # Even with fewer negatives than by default its updates take four times as long as the whole's.
    "contrastive": [
        "objective=contrastive",
        "objective.negatives=4",
        "objective.steps=3",
        "train.batch_size=64",
        "train.steps=null",
        "train.minutes=10",
    ],
}
# Landscapes without a level are judged by their lowest energy; more steps where these help them.
ENTRIES = [
    "whole@steps=2,num_candidates=8", "whole@steps=4,num_candidates=8",
    "whole@steps=2,num_candidates=1", "whole@steps=4,num_candidates=1",
    "whole@steps=1,num_candidates=8", "whole@steps=8,num_candidates=8",
    "whole@steps=2,num_candidates=8,select=energy_decrease",
    "whole@steps=2,num_candidates=8,scoring_level=0.9",
    "whole@steps=2,num_candidates=8,scoring_level=0.2",
    "no_relative@steps=2,num_candidates=8", "no_align@steps=2,num_candidates=8",
    "no_mirror@steps=2,num_candidates=8", "two_samples@steps=2,num_candidates=8",
    "no_level@steps=4,num_candidates=1", "no_level@steps=4,num_candidates=8",
    "equilibrium@steps=4,num_candidates=1", "equilibrium@steps=4,num_candidates=8",
    "s1@steps=2,num_candidates=1", "s1@steps=2,num_candidates=8",
    "s2@steps=3,num_candidates=1", "s2@steps=3,num_candidates=8",
    "contrastive@steps=4,num_candidates=1", "contrastive@steps=4,num_candidates=8",
]  # fmt: skip


def main() -> None:
    given = settings(steps=6000, seeds=1, parallel=2, episodes=100, folder="runs/ablations")
    folder = Path(given.folder)
    budget = ["train.minutes=null", f"train.steps={given.steps}"]
    runs = {name: [*budget, *overrides] for name, overrides in RUNS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    protocol = EvalConfig(given.episodes, EVALUATION_SEED, videos=0, workers=20)
    evaluate_all("ablations", ENTRIES, folder, protocol, command("ablations"))


if __name__ == "__main__":
    main()
