"""Execution of episodes: a robot, an action source and the control loop between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ebt_policy.data.zarr_store import is_episode_store
from ebt_policy.errors import ConfigError
from ebt_policy.policies import ChunkPredictor
from ebt_policy.real_robot.action_source import ActionSource
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, Observation, SimulatedDriver
from ebt_policy.real_robot.episode_result import EpisodeResult, mean_second_difference
from ebt_policy.real_robot.errors import DriverError, RecordError, driver_errors
from ebt_policy.real_robot.loop import ControlLoop, Tick
from ebt_policy.real_robot.recorder import Recorder, stored_shapes
from ebt_policy.real_robot.recording_layout import Layout
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import STOPPED, EStop, State, Supervisor
from ebt_policy.real_robot.watchdogs import LoopWatchdog

FIRST_OBSERVATION_S = 10.0


def tick_seconds(robot: Robot, speed: float) -> float:
    """Return the time from tick to tick, s.

    Args:
        robot: the robot, with its control rate.
        speed: speed of the motion relative to the demonstrations, in (0, 1].

    Raises:
        ConfigError: the speed is outside its range.
    """
    if not 0 < speed <= 1:
        raise ConfigError(f"speed must be in (0, 1], got {speed}.")
    return 1 / (robot.rate_hz * speed)


def observation_shapes(policy: ChunkPredictor) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of each value of an observation that a policy reads."""
    cameras = policy.shape.cameras or {}
    return {"obs": (policy.shape.obs_dim,)} | {name: (*size, 3) for name, size in cameras.items()}


class EpisodeRunner:
    """A runner of episodes on one robot.

    Args:
        robot: description of the robot, with its limits and timeouts.
        driver: driver of the robot; `prepare` connects it.
        source: source of the action of each tick.
        clock: clock of all parts of the run.
        shapes: name -> shape of each value that the driver must observe, see `observation_shapes`.
        active: whether commands are sent.
        record: episode store to record into, see `Recorder`.
        observers: functions that are called with every tick.
        watchdog: whether another thread stops the robot if the loop hangs.
        estop: the emergency stop, which the driver presses; None for a new one. A driver that is
            connected before must already press it.

    Raises:
        ConfigError: a tick is longer than a timeout of the robot.
    """

    def __init__(
        self,
        robot: Robot,
        driver: Driver,
        source: ActionSource,
        clock: Clock,
        shapes: dict[str, tuple[int, ...]],
        *,
        active: bool = True,
        record: Path | None = None,
        observers: Sequence[Callable[[Tick], None]] = (),
        watchdog: bool = True,
        estop: EStop | None = None,
    ) -> None:
        self.robot, self.driver, self.clock, self.source = robot, driver, clock, source
        for name in ("command_s", "heartbeat_s"):
            if source.dt >= (timeout := getattr(robot.timeouts, name)):
                raise ConfigError(
                    f"a tick takes {source.dt:g} s, which is not less than robot.watch.{name}="
                    f"{timeout:g}; raise robot.watch.{name} or speed."
                )
        self.supervisor, self.estop = Supervisor(clock), estop or EStop()
        driver.press = self.estop.press
        self._store: Path | None = record
        self.recorder: Recorder | None = None
        self.loop = ControlLoop(
            driver,
            source,
            robot.safety,
            robot.timeouts,
            self.supervisor,
            self.estop,
            clock,
            shapes,
            active=active,
            resumes=not robot.confirm,
            observers=[*observers, self._record],
        )
        timeout = robot.timeouts.heartbeat_s
        self.watchdog = self.loop.watchdog = (
            LoopWatchdog(clock, timeout, self.loop.fault) if watchdog else None
        )

    def _record(self, tick: Tick) -> None:
        if self.recorder is not None:
            try:
                self.recorder.add(tick, self.source.plan)
            except RecordError as error:
                self.loop.fault(str(error))

    def prepare(self) -> Observation:
        """Connect, observe and warm up, then set the state READY.

        Returns:
            The first observation in which all values are valid, also those that are only recorded.

        Raises:
            DriverError, PolicyError, RecordError: a part of the run is not ready.
            ConfigError: the robot does not observe all values that the policy reads.
        """
        self.driver.connect()
        if self.loop.active:
            self.driver.check_exclusive()
            self.driver.check_estop()
        observation = self.first_observation()
        if self._store is not None and self.recorder is None:
            rate_hz, name = 1 / self.source.dt, self.robot.name
            is_new = not is_episode_store(self._store)
            layout = Layout.from_values(
                observation.values, self.robot.action, rate_hz, name,
                has_costs=bool(self.robot.costs),
                has_human=is_new or "human" in stored_shapes(self._store),
                value_names=self.driver.value_names,
            )  # fmt: skip
            self.recorder = Recorder(self._store, layout, self._max_ticks)
            self.loop.shapes = {name: shape for name, (_, shape) in layout.values.items()}
            observation = self.first_observation()
        self.source.warm_up(observation.values, observation.position)
        self.supervisor.transition(State.READY, "checked and warmed up")
        return observation

    @property
    def _max_ticks(self) -> int:
        """The number of ticks of the longest episode."""
        if (seconds := self.driver.seconds) is not None:
            return int(seconds / self.source.dt + 1e-6) + 1
        return round(self.robot.episode_s * self.robot.rate_hz)

    def first_observation(self) -> Observation:
        """Wait for a recent and valid observation, at most `FIRST_OBSERVATION_S`.

        Raises:
            ConfigError: there was no such observation.
            DriverError: the robot cannot be reached.
        """
        reader, longest_s = self.loop.make_reader(), self.robot.timeouts.observation_s
        end = self.clock.now() + FIRST_OBSERVATION_S
        while True:
            reader.read()
            now, newest = self.clock.now(), reader.newest
            if newest is not None and now - newest.stamp <= longest_s:
                return newest
            if now >= end:
                reason = reader.rejection or "no observation arrived"
                if newest is not None and not reader.rejection:
                    reason = (
                        f"the newest is {now - newest.stamp:.3g} s old, and "
                        f"robot.watch.observation_s={longest_s:g}; if the robot has another clock, "
                        "use the time of arrival (robot.driver.stamps=arrival with ROS 2)"
                    )
                raise ConfigError(
                    f"robot={self.robot.name} had no valid observation within "
                    f"{FIRST_OBSERVATION_S:g} s: {reason}."
                )
            self.clock.wait_until(self.clock.now() + 0.05)

    def run_episode(
        self,
        seed: int,
        *,
        should_quit: Callable[[], bool] = lambda: False,
        should_keep: Callable[[EpisodeResult], bool] = lambda result: True,
    ) -> EpisodeResult:
        """Run until the task is solved, the time is over, a fault occurs or `should_quit` is True.

        The episode starts at once, or by a person if ``robot.confirm`` is set. A robot that is held
        at the end stays held until the next episode. A stopped one must be re-armed.

        Args:
            seed: seed of a simulated robot and of the policy's noise.
            should_quit: whether the episode must end now; called at every tick.
            should_keep: whether the recording of the finished episode is kept. An interrupted
                episode is always kept.
        """
        result = EpisodeResult(seed)
        if self.supervisor.state in (State.RUNNING, State.HOLD):  # left by the previous episode
            self._make_ready("a new episode")
        num_changes = len(self.supervisor.changes)
        num_latencies = len(self.source.latencies)
        overruns, ticks_without_plan = self.loop.overruns, self.loop.ticks_without_plan
        self._begin(seed)
        try:
            self.loop.run(lambda tick: self._is_done(tick, result, should_quit))
        except BaseException:
            if self.recorder is not None:
                self.recorder.end()
            raise
        result.overruns = self.loop.overruns - overruns
        result.ticks_without_plan = self.loop.ticks_without_plan - ticks_without_plan
        result.latencies = self.source.latencies[num_latencies:]
        self._complete(result, num_changes)
        if self.supervisor.state is State.RUNNING:
            self._make_ready("the episode is over")
        self._end_recording(result, should_keep)
        changes = self.supervisor.changes[num_changes:]
        result.stops = [change for change in changes if change.state in STOPPED]
        return result

    def _begin(self, seed: int) -> None:
        """Reset all parts and start the robot."""
        try:
            with driver_errors("reset"):
                self.driver.reset(seed)
            if self.recorder is not None:
                self.recorder.begin()
        except (DriverError, RecordError, ConfigError) as error:
            self.loop.fault(str(error))
        self.source.reset(seed)
        if not self.robot.confirm:
            self.supervisor.transition(State.RUNNING, "started")

    def _is_done(self, tick: Tick, result: EpisodeResult, should_quit: Callable[[], bool]) -> bool:
        """Add a tick to the result, and return whether it was the last."""
        if tick.state is State.READY:  # A person has not started the episode yet.
            return should_quit()
        result.ticks.append(replace(tick, observation=None))  # Frames would fill the memory.
        plan = self.source.plan
        if plan is not None and plan.inconsistency is not None and plan.start == tick.number:
            result.plan_inconsistencies.append(plan.inconsistency)
        if plan is not None and plan.cost is not None and plan.start == tick.number:
            result.plan_costs.append(plan.cost)
        solved = isinstance(self.driver, SimulatedDriver) and self.driver.solved
        timed_out = tick.number - result.ticks[0].number + 1 >= self._max_ticks
        # The state is DISARMED if a person has re-armed a stopped robot during the tick.
        stopped = tick.state in (State.FAULT, State.DISARMED)
        return solved or timed_out or stopped or should_quit()

    def _complete(self, result: EpisodeResult, num_changes: int) -> None:
        """Add the values that are known after the end of the loop.

        Args:
            num_changes: number of changes of state before the episode.
        """
        if result.ticks:
            result.seconds = self.clock.now() - result.ticks[0].due
        if isinstance(self.driver, SimulatedDriver):
            result.score, result.success = self.driver.score, self.driver.solved
        for transition in self.source.transitions:
            result.transition_jumps.append(float(np.linalg.norm(transition.jump)))
            length = float(np.linalg.norm(transition.second_difference))
            result.transition_second_differences.append(length)
        excluded = {transition.tick for transition in self.source.transitions}
        result.second_difference = mean_second_difference(result.ticks, excluded)
        # A fault ends the episode, also if a person re-armed the robot before the loop ended.
        changes = self.supervisor.changes
        faults = [change for change in changes[num_changes:] if change.state is State.FAULT]
        end = (faults or changes)[-1]
        result.ended = (end.state, end.reason)

    def _end_recording(
        self, result: EpisodeResult, should_keep: Callable[[EpisodeResult], bool]
    ) -> None:
        result.kept = should_keep(result)
        try:
            if self.recorder is not None and result.kept:
                self.recorder.end()
            elif self.recorder is not None:
                self.recorder.discard()
        except RecordError as error:
            result.kept = False
            self.loop.fault(str(error))
            result.ended = (self.supervisor.state, self.supervisor.reason)

    def _make_ready(self, reason: str) -> None:
        self.supervisor.transition(State.DISARMED, reason)
        self.supervisor.transition(State.READY, "checked before")

    def close(self) -> None:
        """Disconnect from the robot, which holds its position."""
        self.driver.close()
