"""Studies of policies on simulated robots: docs/simulated_robots.md.

Policies have equal numbers of parameters and training times that are equal within about 10 %. The
time is set by the number of updates, because other load would change the wall-clock time. The
numbers assume that an update of the energy policy takes 1.47 times as long as an update of the
others; it is 1.56 times for flow matching and 1.38 times for diffusion
(``docs/results/speed.json``). With cameras, the images take most of the time. An update of the
energy policy then takes as long as an update of diffusion, and 1.16 times as long as an update of
flow matching.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.evaluations import RobustnessEvaluation, SuiteEvaluation, load_suite_config
from benchmarks.measurements.g1 import HeldOutG1
from benchmarks.studies.push_t import SELECTION_SEED
from benchmarks.study import Part, Recording, Run, Study

FOLDER = "runs/manipulation"
MODELS = ("ebt", "diffusion", "flow_matching")
CAMERAS = {"lift": "agentview,robot0_eye_in_hand", "metaworld": "corner2"}
HUMAN_DEMONSTRATIONS = ("adroit_door", "push_t_image")  # tasks without a scripted expert
# Eight candidates of every policy that samples, with each rule, and one sample of the baselines.
ENTRIES = (
    "ebt@steps=2,num_candidates=8",
    *(
        f"flow_matching@steps=2,num_candidates=8,select={rule}"
        for rule in ("medoid", "density", "line_integral")
    ),
    *(
        f"diffusion@scheduler=ddim,steps=4,num_candidates=8,select={rule}"
        for rule in ("medoid", "density", "line_integral")
    ),
    "flow_matching@steps=2,num_candidates=1",
    "diffusion@scheduler=ddpm,steps=100",
)


@dataclass(frozen=True)
class Effort:
    """Amount of training for each task of a suite.

    Attributes:
        demos: number of demonstrations of a scripted expert.
        updates: number of updates of the energy policy.
        other_updates: number of updates of the other policies.
        batch_size: batch size of all policies.
    """

    demos: int
    updates: int
    other_updates: int
    batch_size: int = 128

    def overrides(self, model: str) -> tuple[str, ...]:
        """Return the training overrides of a model."""
        updates = self.updates if model == "ebt" else self.other_updates
        return (
            f"model={model}", "train.minutes=null", f"train.steps={updates}",
            f"train.batch_size={self.batch_size}",
        )  # fmt: skip


EFFORTS = {
    "metaworld_10": Effort(demos=10, updates=1500, other_updates=2200),
    "mujoco": Effort(demos=100, updates=3000, other_updates=4400),
    "cameras": Effort(demos=50, updates=2000, other_updates=2320, batch_size=64),
}
TASK_EFFORTS = {  # tasks that need more updates than the others of their suite
    "push_t_image": replace(EFFORTS["cameras"], updates=6000, other_updates=6960),
}


def task_overrides(name: str) -> tuple[str, ...]:
    """Return the overrides that select a task.

    For metaworld-door-open, they are ``task=metaworld task.scene=door-open``. A name that ends in
    ``-cameras`` selects the task with images.
    """
    family, _, scene = name.removesuffix("-cameras").partition("-")
    overrides = [f"task={family}", *([f"task.scene={scene}"] if scene else [])]
    if family == "push_t_image":
        overrides.append("task.demos=human")
    if name.endswith("-cameras"):
        overrides += [f"task.cameras=[{CAMERAS[family]}]", "vision=small"]
    return tuple(overrides)


def task_runs(
    task: str, effort: Effort, folder: str = "", perturbation: str = ""
) -> dict[str, Run]:
    """Return a run of every model on a task, ``FOLDER/MODEL``.

    Args:
        task: name of the task.
        effort: amount of training.
        folder: folder of the runs; default the task's name.
        perturbation: perturbation of every demonstration; "" for none.
    """
    recording = None
    if task not in HUMAN_DEMONSTRATIONS:
        recorded = task.removesuffix("-cameras")  # Images are rendered from the recorded states.
        recording = Recording(recorded, task_overrides(recorded), effort.demos, perturbation)
    overrides = task_overrides(task)
    return {
        f"{folder or task}/{model}": Run((*overrides, *effort.overrides(model)), recording)
        for model in MODELS
    }


def suite_study(suite: str, summary: str) -> Study:
    """Return the study of all policies on the tasks of a suite."""
    runs: dict[str, Run] = {}
    for task in load_suite_config(suite).tasks:
        runs |= task_runs(task, TASK_EFFORTS.get(task, EFFORTS[suite]))
    entries = [f"{{{{task}}}}/{entry}" for entry in ENTRIES]
    parts = {suite: Part(SuiteEvaluation(suite, SELECTION_SEED), suite, entries)}
    return Study(summary, parts, runs, FOLDER, {"episodes": 50})


def recovery_study(runs: dict[str, Run], summary: str) -> Study:
    """Return the study of policies after the object is taken away or the gripper is pushed."""
    name = next(iter(runs)).partition("/")[0]
    measure = RobustnessEvaluation(("object", "gripper"), SELECTION_SEED)
    entries = [f"{name}/{entry}" for entry in ENTRIES]
    parts = {"recovery": Part(measure, f"recovery_{name}", entries)}
    return Study(summary, parts, runs, FOLDER, {"episodes": 20})


def recovery_studies(task: str, suite: str, perturbation: str) -> dict[str, Study]:
    """Return studies of a task with policies trained on usual and on perturbed demonstrations."""
    usual = task_runs(task, EFFORTS[suite])
    perturbed = task_runs(task, EFFORTS["mujoco"], f"{task}_disturbed", perturbation)
    return {
        f"recovery_{task}": recovery_study(
            usual, f"{task} after perturbations, trained on usual demonstrations"
        ),
        f"recovery_{task}_disturbed": recovery_study(
            perturbed, f"{task} after perturbations, trained on perturbed demonstrations"
        ),
    }


STUDIES = {
    "metaworld_10": suite_study("metaworld_10", "every policy on ten tasks of Meta-World"),
    "mujoco": suite_study("mujoco", "every policy on Lift, Can, Square and Adroit's door"),
    "cameras": suite_study("cameras", "every policy on three tasks with cameras"),
    **recovery_studies("lift", "mujoco", "object=8"),
    **recovery_studies("metaworld-peg-insert-side", "metaworld_10", "object=5"),
    "g1": Study(
        "policies of a real humanoid on held-out episodes (4 h on 2 cores)",
        parts={
            "numbers": Part(HeldOutG1(has_cameras=False), "g1_numbers"),
            "short": Part(HeldOutG1(has_cameras=False, fraction=1 / 3), "g1_numbers_short"),
            # Images take most of the time of an update, so the models need about equally long.
            "cameras": Part(
                HeldOutG1(has_cameras=True, fraction=1 / 3, ratio=1.16, batch_size=64), "g1_cameras"
            ),
        },
        folder="runs/g1",
        options={"updates": 3000},
    ),
}
