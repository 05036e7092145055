"""Construction of a run's action source: a policy, a recording or teleoperation."""

from __future__ import annotations

from dataclasses import dataclass

from ebt_policy.cli import pick_device
from ebt_policy.errors import ConfigError
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.action_source import RecordedActions
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, Renderable
from ebt_policy.real_robot.drivers.replay import Recording
from ebt_policy.real_robot.episode_runner import observation_shapes, tick_seconds
from ebt_policy.real_robot.inference_worker import ThreadWorker
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.run_options import RunMode, RunOptions
from ebt_policy.real_robot.teleop import TeleopSource


@dataclass(frozen=True)
class NamedSource:
    """An action source with its description for tables.

    Attributes:
        name: name of the policy, the recording or the teleoperation device.
        parameter_count: number of parameters of the policy, otherwise 0.
        actions: source of the action of each tick.
        shapes: name -> shape of each value that the driver must observe.
    """

    name: str
    parameter_count: int
    actions: Planner | RecordedActions | TeleopSource
    shapes: dict[str, tuple[int, ...]]


def build_source(robot: Robot, options: RunOptions, driver: Driver, clock: Clock) -> NamedSource:
    """Build the source of actions of a run.

    Raises:
        ConfigError, CheckpointError: the source cannot be loaded or does not fit the robot.
    """
    dt, worker = tick_seconds(robot, options.speed), ThreadWorker(clock)
    if options.mode == RunMode.REPLAY:
        recording = Recording(str(options.recording), options.recorded_episode)
        actions = RecordedActions(recording.rows["action"], dt, worker)
        return NamedSource(str(options.recording), 0, actions, {})
    if options.mode == RunMode.TELEOP:
        if not isinstance(driver, Renderable) or len(robot.action) != 2:
            raise ConfigError(
                "mode=teleop needs a simulated robot that can be rendered and whose actions have "
                f"two entries, got robot={robot.name}."
            )
        low, high = robot.safety.low, robot.safety.high
        teleop = TeleopSource(options.input, driver.render, low, high, dt, worker)
        return NamedSource(options.input, 0, teleop, {})
    entry = load_policy_entries([str(options.checkpoint)], pick_device(options.device))[0]
    if len(entry.models) > 1:
        raise ConfigError(
            f"checkpoint={options.checkpoint} matches several runs; name one of them."
        )
    if options.compile:
        entry.model.compile_prediction()
    planner = Planner(entry.model, robot.safety, dt, worker, clock, options.execution)
    shapes = observation_shapes(entry.model)
    return NamedSource(entry.name, entry.model.parameter_count, planner, shapes)
