"""Studies of policies on Push-T: docs/push_t.md and the ablations of docs/experiments.md."""

from __future__ import annotations

from benchmarks.evaluations import PolicyEvaluation, RobustnessEvaluation
from benchmarks.measurements.energy_signals import SIGNAL_SAMPLES, energy_signals
from benchmarks.study import Part, Run, Study
from ebt_policy.envs.env_spec import EVALUATION_SEED

# No setting was chosen with the results of these seeds.
SELECTION_SEED = 500_000
FOLDER = "runs/compare"

# Updates that fit in ten minutes on two idle cores, two training runs at a time (push_t.json). With
# fixed numbers, the load of the machine has no effect. ebt_12500 has about as many updates as the
# baselines.
UPDATES = {
    "ebt": 9116, "ebt_12500": 12500, "diffusion": 12507, "flow_matching": 12632, "bc": 10626,
}  # fmt: skip
RUNS = {
    name: Run(
        (f"model={name.removesuffix('_12500')}", "train.minutes=null", f"train.steps={updates}")
    )
    for name, updates in UPDATES.items()
}

PUSH_T = Study(
    "every policy on Push-T: tables, more seeds, selection rules (4 h on 2 cores)",
    parts={
        # Every policy; one sample of each baseline.
        "table": Part(
            PolicyEvaluation(EVALUATION_SEED, videos=1),
            "push_t",
            (
                "ebt@steps=2,num_candidates=8",
                "ebt@steps=4,num_candidates=8",
                "ebt@steps=2,num_candidates=1",
                "ebt_12500@steps=2,num_candidates=8", "ebt_12500@steps=4,num_candidates=8",
                "ebt_12500@steps=2,num_candidates=1", "ebt_12500@steps=4,num_candidates=1",
                "flow_matching@steps=2", "flow_matching@steps=4", "flow_matching@steps=8",
                "diffusion@scheduler=ddpm,steps=100", "diffusion@scheduler=ddim,steps=10",
                "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddim,steps=2",
                "bc",
            ),
        ),
        # The next 100 seeds, for entries that were chosen on the first 100, at equal minutes.
        "next": Part(
            PolicyEvaluation(EVALUATION_SEED + 100),
            "push_t_next",
            (
                "ebt@steps=2,num_candidates=8", "ebt@steps=3,num_candidates=4",
                "ebt@steps=4,num_candidates=8",
                "flow_matching@steps=2", "diffusion@scheduler=ddim,steps=2",
                "diffusion@scheduler=ddim,steps=4", "diffusion@scheduler=ddpm,steps=100",
            ),
        ),
        # Every policy that samples, with several candidates and each selection rule.
        "selection": Part(
            PolicyEvaluation(SELECTION_SEED),
            "push_t_selection",
            (
                "ebt_12500@steps=2,num_candidates=8",
                "ebt_12500@steps=2,num_candidates=8,select=medoid",
                "ebt_12500@steps=2,num_candidates=8,select=density",
                "ebt_12500@steps=2,num_candidates=1",
                "ebt_12500@steps=4,num_candidates=8", "ebt@steps=2,num_candidates=8",
                "ebt@steps=4,num_candidates=8",
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
            ),
        ),
    },
    runs=RUNS,
    folder=FOLDER,
    options={"episodes": 100},
)  # fmt: skip

EQUAL_UPDATES = ("train.minutes=null", "train.steps={updates}")
ABLATED = {  # name -> one change of the energy policy
    "whole": (),
    "no_relative": ("task.relative_to=null",),
    "no_align": ("task.align=false",),
    "no_mirror": ("task.mirror=false",),
    "no_level": ("objective.condition_on_noise_level=false",),
    "two_samples": ("objective.noise_samples_per_target=2",),
    "equilibrium": ("objective=equilibrium",),
    "s1": ("objective=s1",),
    "s2": ("objective=s2",),
    # Ten minutes instead of equal updates: an update takes four times as long as the others, even
    # with fewer negatives than the default.
    "contrastive": (
        "objective=contrastive", "objective.negatives=4", "objective.steps=3",
        "train.batch_size=64", "train.steps=null", "train.minutes=10",
    ),
}  # fmt: skip
ABLATIONS = Study(
    "the energy policy on Push-T with one part changed at a time (1.5 h on 2 cores)",
    parts={
        "ablations": Part(
            PolicyEvaluation(workers=20),
            "ablations",
            # Energies without a level select the lowest energy. They get more steps if these help.
            (
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
            ),
        )
    },
    runs={name: Run((*EQUAL_UPDATES, *overrides)) for name, overrides in ABLATED.items()},
    folder="runs/ablations",
    options={"seeds": 1, "updates": 6000, "episodes": 100},
)  # fmt: skip

ENERGY_SIGNALS = Study(
    "energy signals of failures and unusual observations, early exit, best of M (30 min)",
    parts={
        "energy": Part(
            energy_signals,
            "energy",
            groups={
                "candidates": [
                    f"ebt_12500@steps=2,num_candidates={count}" for count in (1, 2, 4, 8, 16, 32)
                ],
                "early_exit": [  # pairs without and with early exit
                    "ebt_12500@steps=4,num_candidates=1",
                    "ebt_12500@steps=4,num_candidates=1,straightness_tol=0.5",
                    "ebt_12500@steps=4,num_candidates=8",
                    "ebt_12500@steps=4,num_candidates=8,straightness_tol=0.5",
                ],
                "signals": [f"ebt_12500@num_candidates={SIGNAL_SAMPLES}"],
            },
        )
    },
    runs=RUNS,
    folder=FOLDER,
    options={"episodes": 100},
)

RECOVERY = Study(
    "Push-T after every perturbation, one sample of each baseline (2.5 h on 2 cores)",
    parts={
        "recovery": Part(
            RobustnessEvaluation(("all",), workers=25),
            "recovery_push_t",
            (
                "ebt_12500@steps=2,num_candidates=8", "ebt_12500@steps=4,num_candidates=8",
                "ebt_12500@steps=2,num_candidates=1", "diffusion@scheduler=ddim,steps=10",
                "flow_matching@steps=2", "bc",
                "ibc@samples=32",  # The default number of samples takes hours and is no better.
            ),
        )
    },
    runs={**RUNS, "ibc": Run(("model=ibc", "train.minutes=10"))},
    folder=FOLDER,
    options={"episodes": 50},
)  # fmt: skip

RECOVERY_SELECTION = Study(
    "Push-T after four perturbations, eight samples of each policy (1 h on 2 cores)",
    parts={
        "recovery": Part(
            RobustnessEvaluation(
                ("agent=100", "kick=50", "action_noise=10", "delay=2"), SELECTION_SEED, workers=25
            ),
            "recovery_push_t_selection",
            (
                "ebt_12500@steps=2,num_candidates=8", "ebt_12500@steps=2,num_candidates=1",
                "flow_matching@steps=2,num_candidates=8,select=medoid",
                "flow_matching@steps=2,num_candidates=8,select=density",
                "flow_matching@steps=2,num_candidates=8,select=line_integral",
                "flow_matching@steps=2,num_candidates=1",
                "diffusion@scheduler=ddim,steps=4,num_candidates=8,select=density",
            ),
        )
    },
    runs=RUNS,
    folder=FOLDER,
    options={"episodes": 100},
)  # fmt: skip

STUDIES = {
    "push_t": PUSH_T,
    "ablations": ABLATIONS,
    "energy_signals": ENERGY_SIGNALS,
    "recovery_push_t": RECOVERY,
    "recovery_push_t_selection": RECOVERY_SELECTION,
}
