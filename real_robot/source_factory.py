"""Construction of a run's action source: a policy, a recording or teleoperation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ebt_policy.cli import pick_device
from ebt_policy.policies import ChunkPredictor
from ebt_policy.policies.entries import load_single_entry
from ebt_policy.real_robot.action_source import RecordedActions
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver
from ebt_policy.real_robot.drivers.replay import Recording
from ebt_policy.real_robot.episode_runner import observation_shapes, tick_seconds
from ebt_policy.real_robot.inference_worker import InferenceWorker, ThreadWorker
from ebt_policy.real_robot.interventions import InterventionSource
from ebt_policy.real_robot.planner import Planner
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.run_options import RunMode, RunOptions
from ebt_policy.real_robot.teleop_device import TeleopContext, TeleopDevice, build_device
from ebt_policy.serving.remote_policy import RemotePolicy

SERVER_TIMEOUT = 0.8  # of the robot's own timeout of a prediction


@dataclass(frozen=True)
class NamedSource:
    """An action source with its description for tables.

    Attributes:
        name: name of the policy, the recording or the teleoperation device.
        parameter_count: number of parameters of the policy, otherwise 0.
        actions: source of the action of each tick.
        shapes: name -> shape of each value that the driver must observe.
        close: function to call at the end of the run.
    """

    name: str
    parameter_count: int
    actions: Planner | RecordedActions | TeleopDevice | InterventionSource
    shapes: dict[str, tuple[int, ...]]
    close: Callable[[], None] = lambda: None


def build_source(
    robot: Robot,
    options: RunOptions,
    driver: Driver,
    clock: Clock,
    wants_control: Callable[[], bool],
) -> NamedSource:
    """Build the source of actions of a run.

    Args:
        wants_control: whether the person wants to move the robot, with ``takeover``.

    Raises:
        ConfigError, CheckpointError: the source cannot be loaded or does not fit the robot.
    """
    dt, worker = tick_seconds(robot, options.speed), ThreadWorker(clock)
    if options.mode == RunMode.REPLAY:
        recording = Recording(str(options.recording), options.recorded_episode)
        recorded = RecordedActions(recording.rows["action"], dt, worker)
        return NamedSource(str(options.recording), 0, recorded, {})
    if options.mode == RunMode.TELEOP:
        teleop = _teleop(robot, options, driver, dt, worker)
        return NamedSource(options.source_name, 0, teleop, {})
    name, policy = _load_policy(robot, options)
    planner = Planner(policy, robot.safety, dt, worker, clock, options.execution, robot.chunk_costs)
    actions: Planner | InterventionSource = planner
    if options.takeover:
        teleop = _teleop(robot, options, driver, dt, worker)
        actions = InterventionSource(planner, teleop, wants_control)
    close = policy.close if isinstance(policy, RemotePolicy) else lambda: None
    return NamedSource(name, policy.parameter_count, actions, observation_shapes(policy), close)


def _load_policy(robot: Robot, options: RunOptions) -> tuple[str, ChunkPredictor]:
    """Return the policy of a run, on a server or in this process, and its name for tables."""
    if options.policy is not None:
        # The loop holds the robot at the timeout; a policy that reports it can also recover.
        timeout_s = SERVER_TIMEOUT * robot.timeouts.inference_s
        remote = RemotePolicy(options.policy, timeout_s)
        return remote.name, remote
    entry = load_single_entry(str(options.checkpoint), pick_device(options.device))
    if options.compile:
        entry.model.compile_prediction()
    return entry.name, entry.model


def _teleop(
    robot: Robot, options: RunOptions, driver: Driver, dt: float, worker: InferenceWorker
) -> TeleopDevice:
    return build_device(options.input, TeleopContext(driver, robot.safety, dt, worker))
