"""Run a policy on a robot.

    python -m ebt_policy.real_robot.run robot=sim_push_t checkpoint=RUN

Leaves ``summary.json``, ``table.md`` and ``timeline.svg`` in its output folder, the videos of
simulated robots, and with ``record=`` an episode store for training. ``configs/run.yaml`` has all
options and ``configs/robot/`` all robots; ``--module my_robot`` imports a driver of your own. Keys:
see `keyboard`. Exit codes: see `episode_series.exit_code`.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from ebt_policy.cli import report_errors, run_entry
from ebt_policy.cli.arguments import RAW_ARGV
from ebt_policy.config import options
from ebt_policy.real_robot.episode_series import INTERRUPTED
from ebt_policy.real_robot.execution import ExecutionOptions
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.run_options import RunOptions
from ebt_policy.real_robot.run_robot import errors, run_robot


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="run")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        robot = options(Robot, config.pop("robot"), "robot")
        if isinstance(execution := config["execution"], dict):
            config["execution"] = options(ExecutionOptions, execution, "execution")
        run_options = options(RunOptions, config, "the run")
        command = shlex.join(["python", "-m", "ebt_policy.real_robot.run", *RAW_ARGV])
        try:
            code = run_robot(robot, run_options, command)
        except KeyboardInterrupt:
            errors.print("interrupted; the robot was stopped")
            code = INTERRUPTED
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    run_entry(_main)


if __name__ == "__main__":
    main()
