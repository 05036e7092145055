"""Studies of what an energy can do beyond choosing among its samples: docs/energy_uses.md.

The claims were written before the measurements (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.evaluations import PolicyEvaluation
from benchmarks.measurements.judging import judging
from benchmarks.measurements.streaming import streaming
from benchmarks.studies.push_t import RUNS
from benchmarks.study import Part, Run, Study

# No setting was chosen with the results of these seeds.
COMPOSITION_SEED, JUDGING_SEED, FEW_DATA_SEED = 810_000, 820_000, 830_000
ONE_STEP_SEED, STREAMING_SEED = 840_000, 850_000
HALVES = {"a": "::2", "b": "1::2"}
RULES = ("medoid", "density", "line_integral")


def trained(model: str, updates: int, *overrides: str) -> Run:
    """Return a training run with a fixed number of updates."""
    return Run((f"model={model}", "train.minutes=null", f"train.steps={updates}", *overrides))


def entries_of_flow(run: str, steps: tuple[int, ...]) -> list[str]:
    """Return eight samples of flow matching with each number of steps and each rule."""
    return [f"{run}@steps={n},num_candidates=8,select={rule}" for n in steps for rule in RULES]


COMPOSITION = Study(
    "products of policies trained on halves of the demonstrations of Push-T (1.5 h on 2 cores)",
    parts={
        "composition": Part(
            PolicyEvaluation(COMPOSITION_SEED),
            "composition",
            (
                "ebt_product@steps=2,num_candidates=8",
                "ebt_product@steps=2,num_candidates=8,select=medoid",
                "ebt_product@steps=2,num_candidates=8,metropolis_steps=2",
                "ebt_a@steps=2,num_candidates=8",
                "ebt_b@steps=2,num_candidates=8",
                "ebt_all@steps=2,num_candidates=8",
                *entries_of_flow("flow_product", (2, 4)),
            ),
        )
    },
    runs={
        **{f"ebt_{k}": trained("ebt", 5000, f"task.episodes={v}") for k, v in HALVES.items()},
        **{
            f"flow_{k}": trained("flow_matching", 8000, f"task.episodes={v}")
            for k, v in HALVES.items()
        },
        "ebt_all": trained("ebt", 10_000),
    },
    products={"ebt_product": ("ebt_a", "ebt_b"), "flow_product": ("flow_a", "flow_b")},
    folder="runs/composition",
    options={"episodes": 100},
)

JUDGES = ("ebt_12500", "flow_matching@steps=2")


def verifier(of: str) -> Run:
    """Return a verifier of another run's chunks, of about the same training time as the judges."""
    overrides = (
        "objective=contrastive", "objective.steps=0", "objective.negatives=2",
        f"model.teacher='{{folder}}/{of}-seed{{seed}}@steps=2'",
    )  # fmt: skip
    return replace(trained("ebt", 5000, *overrides), teacher=of)


JUDGING = Study(
    "proposed chunks, selected by an energy and by its rivals (2.5 h on 2 cores)",
    parts={
        "weak": Part(judging, "judging", ("weak@steps=2", *JUDGES, "verifier_of_weak")),
        "strong": Part(
            judging, "judging_strong", ("flow_matching@steps=2", *JUDGES, "verifier_of_flow")
        ),
    },
    runs={
        "weak": trained("flow_matching", 1500, f"task.episodes={HALVES['a']}"),
        **{name: RUNS[name] for name in ("ebt_12500", "flow_matching")},
        "verifier_of_weak": verifier("weak"),
        "verifier_of_flow": verifier("flow_matching"),
    },
    folder="runs/compare",
    options={"episodes": 100, "first_seed": JUDGING_SEED},
)

FEW_STEPS = (20, 4)  # Every 20th or every fourth demonstration, starting at the training seed.
FEW_DATA_TIME_SEED = 870_000


def few_data_run(model: str, step: int, updates: int) -> Run:
    """Return a training run on every ``step``-th demonstration, starting at the training seed."""
    return trained(model, updates, f"task.episodes={{seed}}::{step}", "task.validation_episodes=0")


FEW_DATA = Study(
    "few demonstrations of Push-T: energy against flow matching (2.5 h on 2 cores)",
    parts={
        "few_data": Part(
            PolicyEvaluation(FEW_DATA_SEED),
            "few_data",
            [
                entry
                for step in FEW_STEPS
                for entry in (
                    f"ebt_{step}@steps=2,num_candidates=8",
                    *entries_of_flow(f"flow_{step}", (2,)),
                )
            ],
        ),
        # With seeds=4, the training seeds have disjoint quarters of the demonstrations.
        "equal_time": Part(
            PolicyEvaluation(FEW_DATA_TIME_SEED),
            "few_data_equal_time",
            (
                "ebt_4@steps=2,num_candidates=8",
                "ebt_4@steps=4,num_candidates=8",
                *entries_of_flow("flow_4_longer", (2, 4)),
            ),
        ),
    },
    runs={
        **{
            f"{name}_{step}": few_data_run(model, step, 5000)
            for step in FEW_STEPS
            for name, model in (("ebt", "ebt"), ("flow", "flow_matching"))
        },
        # An update of the energy policy takes 1.4 times as long.
        "flow_4_longer": few_data_run("flow_matching", 4, 7000),
    },
    folder="runs/few_data",
    options={"episodes": 100},
)

REFLOW_UPDATES = 5000
TEACHER = "model.teacher='{folder}/TEACHER-seed{seed}@steps=4'"
ONE_STEP = Study(
    "one step after training on a teacher's chunks from the same noise (1.5 h on 2 cores)",
    parts={
        "one_step": Part(
            PolicyEvaluation(ONE_STEP_SEED),
            "one_step",
            (
                "ebt_reflow@steps=1,num_candidates=8", "ebt_reflow@steps=1,num_candidates=1",
                "ebt_reflow@steps=2,num_candidates=8", "ebt_12500@steps=2,num_candidates=8",
                *entries_of_flow("flow_reflow", (1,)),
                "flow_reflow@steps=1,num_candidates=1",
                "flow_matching@steps=2,num_candidates=8,select=line_integral",
            ),
        )
    },
    runs={
        **{name: RUNS[name] for name in ("ebt_12500", "flow_matching")},
        **{
            f"{name}_reflow": replace(
                trained(model, REFLOW_UPDATES, TEACHER.replace("TEACHER", teacher)),
                teacher=teacher,
            )
            for name, model, teacher in (
                ("ebt", "ebt", "ebt_12500"), ("flow", "flow_matching", "flow_matching"),
            )
        },
    },
    folder="runs/compare",
    options={"episodes": 100},
)  # fmt: skip

STREAMING = Study(
    "planning at every control tick: the last plan kept, correlated noise, warm starts (2 h)",
    parts={
        "streaming": Part(
            streaming,
            "streaming",
            (
                "ebt_12500@steps=2,num_candidates=8",
                "flow_matching@steps=2,num_candidates=8,select=line_integral",
            ),
        )
    },
    runs={name: RUNS[name] for name in ("ebt_12500", "flow_matching")},
    folder="runs/compare",
    options={
        "episodes": 50, "first_seed": STREAMING_SEED, "perturb": "kick=50,agent=100,delay=2",
    },
)  # fmt: skip

STUDIES = {
    "composition": COMPOSITION,
    "judging": JUDGING,
    "few_data": FEW_DATA,
    "one_step": ONE_STEP,
    "streaming": STREAMING,
}
