"""The control loop: at every tick observe, plan, limit, send, record.

Ticks are due at fixed times of a monotonic clock. Every failure leads to one of two states
(`supervisor.State`). In HOLD, commands within the limits slow the robot down and hold it; it may
continue. In FAULT, the driver stops the robot, and no command is sent until a person re-arms it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebt_policy.real_robot.action_source import ActionSource
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, Observation
from ebt_policy.real_robot.errors import DriverError, PolicyError, SafetyError, driver_errors
from ebt_policy.real_robot.limits import Limits
from ebt_policy.real_robot.observation_reader import ObservationReader
from ebt_policy.real_robot.safety import Motion, brake, limit_command
from ebt_policy.real_robot.supervisor import EStop, State, StateChange, Supervisor
from ebt_policy.real_robot.watchdogs import LoopWatchdog, WatchdogTimeouts


@dataclass
class Tick:
    """The record of one tick.

    Attributes:
        number: index of the tick; skipped ticks count, too.
        due: time at which the tick was due, clock seconds.
        late: delay of its beginning, s.
        state: state of the supervisor at the end of the tick.
        observation: newest valid observation, None before the first.
        desired: (A,) action of the action source, None without a plan.
        command: (A,) allowed command, None if there was none.
        sent: whether the command was sent.
        clamped: (A,) bool, entries of the command that differ from the desired action.
        is_human: whether a person determined the desired action.
    """

    number: int
    due: float
    late: float
    state: State = State.DISARMED
    observation: Observation | None = None
    desired: np.ndarray | None = None
    command: np.ndarray | None = None
    sent: bool = False
    clamped: np.ndarray | None = None
    is_human: bool = False

    @property
    def began(self) -> float:
        """The time at which the tick began, clock seconds."""
        return self.due + self.late

    @property
    def is_clamped(self) -> bool:
        """Whether the command differs from the desired action."""
        return self.clamped is not None and bool(self.clamped.any())


@dataclass
class ControlLoop:
    """The loop that executes the actions of an action source on a robot.

    Args:
        driver: connected driver of the robot.
        source: source of the action of each tick.
        limits, timeouts: limits and timeouts of the robot.
        supervisor: supervisor of this run. Actions are executed only in the state RUNNING.
        estop: the emergency stop.
        clock: clock of all parts of the run.
        shapes: name -> shape of each value that must be observed, see `ObservationReader`.
        active: whether commands are sent; False is the shadow mode. There, clamped commands do not
            hold the robot, and the motion is that of a robot that follows the commands.
        resumes: whether a held robot moves again by itself when its source of actions has
            recovered; otherwise a person resumes it.
        observers: functions that are called with every `Tick`, after its command was sent.
        watchdog: watchdog that stops the robot if the loop hangs.

    Attributes:
        overruns: number of ticks that were skipped because an earlier tick took too long.
        ticks_without_plan: number of ticks at which the robot was running without a plan.
    """

    driver: Driver
    source: ActionSource
    limits: Limits
    timeouts: WatchdogTimeouts
    supervisor: Supervisor
    estop: EStop
    clock: Clock
    shapes: dict[str, tuple[int, ...]]
    active: bool = True
    resumes: bool = False
    observers: Sequence[Callable[[Tick], None]] = ()
    watchdog: LoopWatchdog | None = None
    overruns: int = 0
    ticks_without_plan: int = 0
    _consecutive_clamped: int = field(default=0, init=False)
    _motion: Motion | None = field(default=None, init=False)  # of the commands, None if stopped
    _needs_restart: bool = field(default=True, init=False)  # whether the last plan is outdated
    _last_command_at: float = field(default=-np.inf, init=False)
    _source_hold: StateChange | None = field(default=None, init=False)  # the last one of the source

    def run(self, is_done: Callable[[Tick], bool]) -> None:
        """Run ticks until `is_done` returns True for a tick, then stop the robot.

        The robot is also stopped after an error.
        """
        self.reader = self.make_reader()
        self._motion, self._needs_restart, self._consecutive_clamped = None, True, 0
        dt, start, number, done = self.source.dt, self.clock.now(), 0, False
        try:
            while not done:
                due = start + number * dt
                tick = Tick(number, due, self.clock.now() - due)
                if self.watchdog is not None:
                    self.watchdog.beat()
                self._step(tick)
                tick.state = self.supervisor.state
                for observer in self.observers:
                    observer(tick)
                done = is_done(tick)
                number += 1
                if (late := self.clock.now() - start - number * dt) > 0:
                    skipped = int(late / dt) + (late % dt > 0.5 * dt)
                    self.overruns += skipped
                    number += skipped
                    # The robot has come to rest during the skipped ticks.
                    if skipped and self._motion is not None:
                        self._motion = Motion.at_rest(self._motion.position)
                if not done and not self.estop.pressed.is_set():
                    self.clock.wait_until(start + number * dt, self.estop.pressed)
                    if self.estop.pressed.is_set():
                        self.fault(f"emergency stop: {self.estop.reason}")
                elif not done:
                    self.clock.wait_until(start + number * dt)
        finally:
            self.driver.stop()
            if self.watchdog is not None:
                self.watchdog.suspend()

    def make_reader(self) -> ObservationReader:
        """Return a new reader of the robot's observations."""
        return ObservationReader(self.driver, self.shapes, len(self.limits.names), self.clock)

    def fault(self, reason: str) -> None:
        """Stop the robot now, until a person re-arms it. May be called from any thread."""
        # The state comes first, so that the loop sends no command after the stop.
        self.supervisor.transition(State.FAULT, reason)
        self.driver.stop()

    def _step(self, tick: Tick) -> None:
        try:
            self.reader.read()
            tick.observation = self.reader.newest
            if self.resumes and self._source_hold is not None and self.source.has_recovered():
                self.supervisor.resume_by_itself(self._source_hold, "the policy is available again")
                self._source_hold = None
            self._check_timeouts(tick)
            if self.clock.now() - self._last_command_at > self.timeouts.command_s:
                # The driver has held the robot since then.
                self._motion, self._needs_restart = None, True
            if self.supervisor.state is State.RUNNING:
                self._plan(tick)
            elif self.supervisor.state is State.HOLD and self._motion is not None:
                tick.command = brake(self.limits, self._motion, self.source.dt)
                self._needs_restart = True
            else:
                self._motion, self._needs_restart = None, True
            self._send(tick)
        except (DriverError, PolicyError) as error:
            self.fault(str(error))
        except SafetyError as error:  # No command is allowed.
            self.driver.stop()
            self._motion = None
            self.supervisor.transition(State.HOLD, str(error))

    def _check_timeouts(self, tick: Tick) -> None:
        """Hold the robot if an observation or prediction is overdue; fault on an emergency stop."""
        if self.estop.pressed.is_set():
            self.fault(f"emergency stop: {self.estop.reason}")
        if self.supervisor.state is not State.RUNNING:
            return
        now, observation = self.clock.now(), tick.observation
        prediction_started_at = self.source.worker.started_at
        if observation is None or now - observation.stamp > self.timeouts.observation_s:
            detail = f": {self.reader.rejection}" if self.reader.rejection else ""
            reason = f"no observation for {self.timeouts.observation_s:g} s{detail}"
            self.supervisor.transition(State.HOLD, reason)
        elif (
            prediction_started_at is not None
            and now - prediction_started_at > self.timeouts.inference_s
        ):
            self.source.worker.abandon()
            reason = f"the policy did not answer for {self.timeouts.inference_s:g} s"
            self.supervisor.transition(State.HOLD, reason)

    def _plan(self, tick: Tick) -> None:
        """Set the desired action and the command of a tick at which the robot is running."""
        assert tick.observation is not None
        position = tick.observation.position
        if self._needs_restart:
            self.source.restart()
            self._needs_restart = False
        # Otherwise commands continue from the last one, in the shadow mode as if it had been sent.
        if self._motion is None:
            self._motion = Motion.at_rest(position)
        try:
            self.source.observe(tick.observation.values)
            tick.is_human = self.source.is_human
            tick.desired = self.source.action(tick.number, self._motion)
        except (DriverError, PolicyError, SafetyError):
            raise
        except Exception as error:  # An input device can fail, for example if it is unplugged.
            cause = f"{type(error).__name__}: {error}"
            raise DriverError(f"the source of actions failed ({cause}).") from error
        if tick.desired is None:
            self.ticks_without_plan += 1
        desired = self._motion.position if tick.desired is None else tick.desired
        followed = position if self.active else self._motion.position
        limited = limit_command(self.limits, desired, self._motion, self.source.dt, followed)
        tick.command = limited.command
        if reason := self.source.hold_reason(tick.number):
            held = self.supervisor.transition(State.HOLD, reason)
            self._source_hold = self.supervisor.changes[-1] if held else None
        if tick.desired is None:
            return
        tick.clamped = limited.clamped
        self._consecutive_clamped = self._consecutive_clamped + 1 if tick.is_clamped else 0
        longest = self.timeouts.max_consecutive_clamped_ticks
        if self.active and self._consecutive_clamped >= longest:
            self._consecutive_clamped = 0
            pairs = zip(self.limits.names, limited.clamped, strict=True)
            names = ", ".join(name for name, clamped in pairs if clamped)
            reason = f"{names} had to be clamped for {longest} ticks in a row"
            self.supervisor.transition(State.HOLD, reason)

    @property
    def _may_move(self) -> bool:
        """Whether the state allows commands."""
        return self.supervisor.state in (State.RUNNING, State.HOLD)

    def _send(self, tick: Tick) -> None:
        if tick.command is None or self._motion is None:
            return
        if self.estop.pressed.is_set():  # The stop was pressed during this tick.
            self.fault(f"emergency stop: {self.estop.reason}")
        if not self._may_move:  # Another thread may have stopped the robot during this tick.
            tick.command = None
            return
        if self.active:
            with driver_errors("send"):
                self.driver.send(tick.command, tick.due + self.source.dt)
            tick.sent = True
            if not self._may_move:  # The stop may have come before the command.
                self.driver.stop()
        self._last_command_at = self.clock.now()
        self._motion = self._motion.advance(tick.command)
        self.source.command_sent(tick.number, tick.command)
