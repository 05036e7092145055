"""Robot drivers of a user's own module."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebt_policy.data.episode_store import read_episodes
from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import SimulatedClock
from ebt_policy.real_robot.robots import load_robot

MODULE = '''
"""An agent that jumps to its commands, on a table without a block."""

import numpy as np

from ebt_policy.real_robot.drivers.base import ROBOT_DRIVERS, Driver, DriverContext, Observation


@ROBOT_DRIVERS.register("jumper")
class Jumper(Driver):
    def __init__(self, context: DriverContext, start: list[float]) -> None:
        self.clock, self.position = context.clock, np.array(start)

    def connect(self) -> None:
        pass

    def read(self) -> Observation:
        obs = np.zeros(20, np.float32)
        obs[18:] = self.position
        return Observation({"obs": obs}, self.position, self.clock.now())

    def send(self, command: np.ndarray, due: float) -> None:
        self.position = command

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass
'''
ROBOT = """
defaults: [push_t]
name: desk
driver: { name: jumper, start: [100.0, 200.0] }
"""
TIMEOUTS = [f"robot.watch.{name}=60" for name in ("observation_s", "inference_s", "heartbeat_s")]


@pytest.fixture
def project(tmp_path):
    """Write a user's folder with a driver and the configuration of a robot."""
    (tmp_path / "my_robot.py").write_text(MODULE)
    (tmp_path / "conf" / "robot").mkdir(parents=True)
    (tmp_path / "conf" / "robot" / "desk.yaml").write_text(ROBOT)
    return tmp_path


def run(project, *arguments):
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "ebt_policy.real_robot.run", *arguments, "live=false"]
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_driver_of_a_user_module_runs_an_episode(project, tiny_run):
    conf = ("--config-dir", str(project / "conf"))
    options = (f"checkpoint={tiny_run}", "output=out", "robot.episode_s=2", *TIMEOUTS)
    program = run(project, "--module", "my_robot", *conf, "robot=desk", *options)
    assert program.returncode == 0, program.stderr
    summary = json.loads((project / "out" / "summary.json").read_text())
    assert summary["robot"] == "desk" and summary["completed"] == 1 and summary["ticks"] > 10
    program = run(project, *conf, "robot=desk", *options, "output=again")  # without the module
    assert program.returncode == 2
    assert "robot.driver.name=jumper is unknown; there are replay, ros2, sim" in program.stderr


def test_unknown_driver_error_lists_known_drivers():
    robot = load_robot("sim_push_t", "robot.driver.name=sin")
    message = (
        r"robot\.driver\.name=sin is unknown; there are .*replay, ros2, sim.*Did you mean sim\?"
    )
    with pytest.raises(ConfigError, match=message):
        robot.make_driver(SimulatedClock())


def test_options_of_a_driver_are_checked(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    import my_robot  # noqa: F401

    robot = load_robot("sim_push_t", "robot.driver.name=jumper", "~robot.driver.env_id")
    with pytest.raises(ConfigError, match=r"robot\.driver needs the option start"):
        robot.make_driver(SimulatedClock())


LEADER = '''
"""A leader arm that asks for a slow motion to the right, and ends the episode at a wall."""

import numpy as np

from ebt_policy.real_robot.teleop_device import TELEOP_DEVICES, TeleopContext, TeleopDevice


@TELEOP_DEVICES.register("leader")
class Leader(TeleopDevice):
    def __init__(self, context: TeleopContext, wall: float) -> None:
        super().__init__(context)
        self.wall = wall

    def action(self, tick, motion):
        wanted = np.array(motion.position) + [10.0, 0.0]
        if wanted[0] > self.wall:
            self.keep = True
        return wanted
'''


@pytest.mark.slow
def test_teleoperation_with_a_device_of_a_user_module(project):
    (project / "my_leader.py").write_text(LEADER)
    options = ("--module", "my_robot", "--module", "my_leader", "--config-dir",
               str(project / "conf"), "robot=desk", "mode=teleop", *TIMEOUTS)  # fmt: skip
    program = run(project, *options, "input={name: leader, wall: 150}", "record=demos")
    assert program.returncode == 0, program.stderr
    recorded = read_episodes(project / "demos")
    assert len(recorded) == 1 and recorded.arrays["human"].all()
    assert 140 < recorded.arrays["action"][-1, 0] < 180  # The device ended the episode.
    program = run(project, *options, "input=leader", "output=other")
    assert program.returncode == 2 and "input needs the option wall" in program.stderr
    program = run(project, *options, "input={wall: 150}", "output=other")
    assert program.returncode == 2 and "needs a name, such as" in program.stderr
    program = run(project, *options, "input=mouse", "output=other")
    assert program.returncode == 2
    assert "input=mouse needs a simulated robot that can be rendered" in program.stderr
