"""Studies of the control loop: docs/real_robot.md."""

from __future__ import annotations

from benchmarks.measurements.execution_delay import execution_delay
from benchmarks.measurements.interventions import interventions
from benchmarks.measurements.real_time import real_time
from benchmarks.measurements.record_train_run import record_train_run
from benchmarks.measurements.teleop_end_to_end import teleop_end_to_end
from benchmarks.studies.push_t import SELECTION_SEED
from benchmarks.study import Part, Run, Study
from benchmarks.tables import control_loop

UPDATES = ("train.minutes=null", "train.steps=12500", "task.demos=human")
SELECTED = "steps=2,num_candidates=8,select=line_integral"
CONDITIONED = "task.max_prefix_len=8"  # The policy is conditioned on the committed actions.
CHECKPOINT = "runs/push_t/ebt-xs-seed0"

STUDIES = {
    "delay": Study(
        "scores over the inference delay, for each execution mode (2 h on 2 cores)",
        parts={
            "delay": Part(
                execution_delay,
                "delay",
                groups={
                    "ebt": ["ebt", "ebt_conditioned"],
                    "flow_matching": [
                        f"flow_matching@{SELECTED}",
                        f"flow_matching_conditioned@{SELECTED}",
                    ],
                },
            )
        },
        runs={
            "ebt": Run(UPDATES),
            "ebt_conditioned": Run((*UPDATES, CONDITIONED)),
            "flow_matching": Run((*UPDATES, "model=flow_matching")),
            "flow_matching_conditioned": Run((*UPDATES, "model=flow_matching", CONDITIONED)),
        },
        folder="runs/delay",
        options={"episodes": 50, "robot": "sim_push_t", "first_seed": SELECTION_SEED},
    ),
    "real_time": Study(
        "the control loop in real time and through ROS 2; needs an idle machine (20 min)",
        parts={"real_time": Part(real_time, "real_time", ("{checkpoint}",))},
        folder="runs/real_time",
        options={"checkpoint": CHECKPOINT, "episodes": 20, "ros": True, "lift_checkpoint": ""},
    ),
    "teleop": Study(
        "teleoperate, train and run Push-T, with a scripted mouse; needs an idle machine (30 min)",
        parts={"teleop": Part(teleop_end_to_end, "collect", ("{checkpoint}",))},
        folder="runs/collect",
        options={"checkpoint": CHECKPOINT, "demonstrations": 20, "episodes": 20, "minutes": 10.0},
    ),
    "record_train_run": Study(
        "record, train and run, with cameras or joints; needs an idle machine (2 h on 2 cores)",
        parts={
            "record_train_run": Part(
                record_train_run, "record_train_run", table=control_loop.record_train_run
            )
        },
        folder="runs/record_train_run",
        options={
            "robots": "sim_push_t_image,ros2_push_t_image,sim_lift_image,ros2_lift_joints",
            "person": "pretrained:push_t",
            "demonstrations": 60,
            "updates": 4000,
            "episodes": 20,
        },
    ),
    "interventions": Study(
        "corrections of a scripted person against fresh demonstrations (1 h on 2 cores)",
        parts={
            "interventions": Part(interventions, "interventions", table=control_loop.interventions)
        },
        folder="runs/interventions",
        options={
            "person": "pretrained:push_t",
            "demonstrations": 25,
            "updates": 4000,
            "episodes": 100,
        },
    ),
}
