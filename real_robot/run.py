"""Run a policy on a robot.

    python -m ebt_policy.real_robot.run robot=sim_push_t checkpoint=RUN

The output folder receives ``summary.json``, ``table.md``, ``timeline.svg`` and, with
``video=true``, videos of a simulated robot. ``record=`` writes an episode store for training.
``configs/run.yaml`` has all options, and ``configs/robot/`` all robots. ``--module my_robot``
imports a driver of your own. See `keyboard` for the keys and `episode_series.exit_code` for the
exit codes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ebt_policy.cli import Entry, command_line, run_entry
from ebt_policy.config import options
from ebt_policy.real_robot.episode_series import INTERRUPTED
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.run_robot import errors, run_robot


def _run(config: dict[str, Any], _overrides: Sequence[str]) -> None:
    robot = options(Robot, config.pop("robot"), "robot")
    if isinstance(execution := config["execution"], dict):
        config["execution"] = options(ExecutionOptions, execution, "execution")
    run_options = options(RunOptions, config, "the run")
    try:
        code = run_robot(robot, run_options, command_line("ebt_policy.real_robot.run"))
    except KeyboardInterrupt:
        errors.print("interrupted; the robot was stopped")
        code = INTERRUPTED
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    run_entry(
        Entry(
            "ebt-run",
            "run",
            "Run a policy, a recording or teleoperation on a robot.",
            (
                "robot=sim_push_t checkpoint=runs/push_t/ebt-xs-seed0",
                "robot=sim_push_t mode=teleop input=keyboard record=demos/mine",
                "robot=sim_push_t mode=replay recording=demos/mine",
                "--module my_robot robot=my_robot checkpoint=RUN mode=shadow",
            ),
            _run,
            help_choices=("robot=sim_push_t",),
        )
    )


if __name__ == "__main__":
    main()
