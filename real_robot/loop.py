"""The control loop: at every tick observe, plan, keep the limits, send, record.

Ticks are due at fixed times of a monotonic clock. Whatever goes wrong ends in one of two states
(`supervisor.State`): HOLD, the robot is slowed down by commands within its limits and held, and may
go on; or FAULT, it is stopped by its driver, and nothing is sent until a person re-arms it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, DriverError, Observation
from ebt_policy.real_robot.planner import ActionSource, PolicyError
from ebt_policy.real_robot.safety import Limits, Motion, SafetyError, brake, limit
from ebt_policy.real_robot.supervisor import EStop, State, Supervisor


@dataclass(frozen=True)
class WatchdogTimeouts:
    """How long, in seconds, things may take until the robot is held.

    Args:
        observation_s: age of the newest observation.
        inference_s: a prediction.
        command_s: without a command, the driver itself holds the robot.
        heartbeat_s: a tick of the loop, until another thread stops the robot.
        clamps: so many ticks in a row whose command had to be changed.
    """

    observation_s: float
    inference_s: float
    command_s: float
    heartbeat_s: float
    clamps: int

    def __post_init__(self) -> None:
        for name in ("observation_s", "inference_s", "command_s", "heartbeat_s"):
            if not 0 < (value := getattr(self, name)) < np.inf:
                raise ConfigError(f"robot.watch.{name} must be positive and finite, got {value}.")
        if self.clamps < 1:
            raise ConfigError(f"robot.watch.clamps must be at least 1, got {self.clamps}.")


@dataclass
class Tick:
    """What happened at a tick.

    Attributes:
        tick: its number.
        due: when it was to begin, clock seconds.
        late: by how much it began later, s.
        state: of the supervisor, at its end.
        observation: the newest valid one, None before the first.
        wanted: (A,) what the policy asked for, None without a plan.
        command: (A,) what was allowed, None if nothing was.
        sent: whether it was sent.
        clamped: (A,) bool, which numbers of what was wanted were changed.
    """

    tick: int
    due: float
    late: float
    state: State = State.DISARMED
    observation: Observation | None = None
    wanted: np.ndarray | None = None
    command: np.ndarray | None = None
    sent: bool = False
    clamped: np.ndarray | None = None

    @property
    def began(self) -> float:
        """When it did begin, clock seconds."""
        return self.due + self.late

    @property
    def limited(self) -> bool:
        """Whether what was wanted had to be changed."""
        return self.clamped is not None and bool(self.clamped.any())


class ObservationReader:
    """The newest valid observation of a robot.

    Args:
        driver: of the robot.
        shapes: name -> shape of each value that the policy reads.
        width: A.

    Attributes:
        newest: None before the first.
        rejected: why the last one was not taken, "" if it was.
    """

    def __init__(self, driver: Driver, shapes: dict[str, tuple[int, ...]], width: int) -> None:
        self._driver, self._shapes, self._width = driver, shapes, width
        self.newest: Observation | None = None
        self.rejected = ""

    def look(self) -> None:
        """Read; an observation that is broken or older than the newest does not count.

        Raises:
            DriverError: the robot is gone.
        """
        seen = self._driver.read()
        self.rejected = "" if seen is None else self._wrong(seen)
        if seen is not None and not self.rejected:
            self.newest = seen

    def _wrong(self, seen: Observation) -> str:
        given = {"position": seen.position, **seen.values}
        for name, shape in {"position": (self._width,), **self._shapes}.items():
            if name not in given:
                return f"the observation has no {name}; it has {', '.join(sorted(seen.values))}"
            if tuple(np.shape(given[name])) != shape:
                return f"the observation's {name} is {np.shape(given[name])} instead of {shape}"
            if not np.isfinite(given[name]).all():
                return f"the observation's {name} has NaN or infinity"
        if self.newest is not None and seen.stamp < self.newest.stamp:
            return "an observation came out of order"
        return ""


class LoopWatchdog:
    """Stops the robot from another thread when the loop does not beat: it hangs, or died."""

    def __init__(self, clock: Clock, timeout_s: float, stop: Callable[[str], None]) -> None:
        self._clock, self._timeout, self._stop = clock, timeout_s, stop
        self._last: float | None = None
        self._ended = threading.Event()

    def beat(self) -> None:
        self._last = self._clock.now()

    def rest(self) -> None:
        """The loop has ended; nothing beats until the next one."""
        self._last = None

    def check(self) -> None:
        """Stop the robot if the last beat is too long ago."""
        last = self._last
        if last is not None and self._clock.now() - last > self._timeout:
            self._last = None
            self._stop(f"the control loop did not beat for {self._timeout:g} s")

    def __enter__(self) -> LoopWatchdog:
        threading.Thread(target=self._watch, daemon=True, name="heart").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._timeout / 4):
            self.check()


@dataclass
class ControlLoop:
    """Runs a policy on a robot.

    Args:
        driver: of the robot, connected.
        planner: has the action of each tick.
        limits, watch: of the robot.
        supervisor: of this run; it must be READY to run.
        estop: the emergency stop.
        clock: of everything here.
        shapes: name -> shape of what the policy reads, see `ObservationReader`.
        active: whether commands are sent; without, everything else happens (shadow mode).
        observers: called with every `Tick`, after its command was sent.

    Attributes:
        overruns: ticks that were left out because one before took too long.
        starved: ticks of a running robot without a plan.
    """

    driver: Driver
    planner: ActionSource
    limits: Limits
    watch: WatchdogTimeouts
    supervisor: Supervisor
    estop: EStop
    clock: Clock
    shapes: dict[str, tuple[int, ...]]
    active: bool = True
    observers: Sequence[Callable[[Tick], None]] = ()
    heart: LoopWatchdog | None = None
    overruns: int = 0
    starved: int = 0
    _clamps: int = field(default=0, init=False)
    _motion: Motion | None = field(default=None, init=False)  # of what was sent, None if stopped
    _held: bool = field(default=True, init=False)  # since the last plan
    _sent: float = field(default=-np.inf, init=False)  # when the last command was

    def run(self, done: Callable[[Tick], bool]) -> None:
        """Tick until `done` says so; the robot is stopped then, whatever happened."""
        self.senses = ObservationReader(self.driver, self.shapes, len(self.limits.names))
        self._motion, self._held, self._clamps = None, True, 0
        dt, begin, tick, over = self.planner.dt, self.clock.now(), 0, False
        try:
            while not over:
                due = begin + tick * dt
                this = Tick(tick, due, self.clock.now() - due)
                if self.heart is not None:
                    self.heart.beat()
                self._step(this)
                this.state = self.supervisor.state
                for observer in self.observers:
                    observer(this)
                over = done(this)
                tick += 1
                if (late := self.clock.now() - begin - tick * dt) > 0:
                    missed = int(late / dt) + (late % dt > 0.5 * dt)
                    self.overruns += missed
                    tick += missed
                    if missed and self._motion is not None:  # the robot has come to rest since
                        self._motion = Motion.rest(self._motion.position)
                if not over and not self.estop.pressed.is_set():
                    self.clock.wait_until(begin + tick * dt, self.estop.pressed)
                    if self.estop.pressed.is_set():
                        self.fault(f"emergency stop: {self.estop.reason}")
                elif not over:
                    self.clock.wait_until(begin + tick * dt)
        finally:
            self.driver.stop()
            if self.heart is not None:
                self.heart.rest()

    def fault(self, reason: str) -> None:
        """Stop the robot now, until a person has looked; from any thread."""
        self.driver.stop()
        self.supervisor.to(State.FAULT, reason)

    def _step(self, this: Tick) -> None:
        try:
            self.senses.look()
            this.observation = self.senses.newest
            self._check(this)
            if self.clock.now() - self._sent > self.watch.command_s:
                self._motion, self._held = None, True  # the driver holds the robot by itself
            if self.supervisor.state is State.RUNNING:
                self._run(this)
            elif self.supervisor.state is State.HOLD and self._motion is not None:
                this.command, self._held = brake(self.limits, self._motion, self.planner.dt), True
            else:
                self._motion, self._held = None, True
            self._send(this)
        except (DriverError, PolicyError) as error:
            self.fault(str(error))
        except SafetyError as error:  # nothing that may be sent
            self.driver.stop()
            self._motion = None
            self.supervisor.to(State.HOLD, str(error))

    def _check(self, this: Tick) -> None:
        """The watchdogs."""
        if self.estop.pressed.is_set():
            self.fault(f"emergency stop: {self.estop.reason}")
        if self.supervisor.state is not State.RUNNING:
            return
        now, seen = self.clock.now(), this.observation
        since = self.planner.background.since
        if seen is None or now - seen.stamp > self.watch.observation_s:
            why = f": {self.senses.rejected}" if self.senses.rejected else ""
            late = f"no observation for {self.watch.observation_s:g} s{why}"
            self.supervisor.to(State.HOLD, late)
        elif since is not None and now - since > self.watch.inference_s:
            self.planner.background.abandon()
            self.supervisor.to(
                State.HOLD, f"the policy did not answer for {self.watch.inference_s:g} s"
            )

    def _run(self, this: Tick) -> None:
        assert this.observation is not None
        here = this.observation.position
        if self._held:
            self.planner.begin()
            self._held = False
        if self._motion is None or not self.active:  # else its commands go on from the last
            self._motion = Motion.rest(here)
        self.planner.observe(this.observation.values)
        this.wanted = self.planner.action(this.tick, self._motion)
        if this.wanted is None:
            self.starved += 1
        wanted = self._motion.position if this.wanted is None else this.wanted
        found = limit(self.limits, wanted, self._motion, self.planner.dt, here)
        this.command = found.command
        if this.wanted is None:
            return
        this.clamped = found.clamped
        if doubt := self.planner.doubt(this.tick):
            self.supervisor.to(State.HOLD, doubt)
        self._clamps = self._clamps + 1 if found.clamped.any() else 0
        if self._clamps >= self.watch.clamps:
            self._clamps = 0
            which = ", ".join(n for n, c in zip(self.limits.names, found.clamped, strict=True) if c)
            self.supervisor.to(
                State.HOLD, f"{which} had to be limited for {self.watch.clamps} ticks in a row"
            )

    def _send(self, this: Tick) -> None:
        if this.command is None or self._motion is None:
            return
        if self.estop.pressed.is_set():  # pressed while this tick was computed
            this.command = None
            self.fault(f"emergency stop: {self.estop.reason}")
            return
        if self.active:
            self.driver.send(this.command, this.due + self.planner.dt)
            this.sent = True
        self._sent = self.clock.now()
        self._motion = self._motion.then(this.command)
        self.planner.sent(this.tick, this.command)
