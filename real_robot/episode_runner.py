"""A robot, a policy and the loop between them, episode after episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.policies import Policy
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, DriverError, Observation, Scored
from ebt_policy.real_robot.loop import ControlLoop, LoopWatchdog, ObservationReader, Tick
from ebt_policy.real_robot.planner import ActionSource
from ebt_policy.real_robot.recorder import Layout, Recorder, RecordError
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import STOPPED, Change, EStop, State, Supervisor

FIRST_OBSERVATION_S = 10.0


@dataclass
class Episode:
    """What happened in one.

    Attributes:
        seed: of a simulated robot.
        score, success: of a simulated robot, else None.
        seconds: how long it took.
        ticks: all of them.
        overruns, starved: see `ControlLoop`.
        latencies: of its predictions, s.
        surprises: of its plans, where they were measured; see `Execution`.
        jumps, kinks: at the seams between chunks, in units of the action; see `ChunkTransition`.
        kink: mean of all changes of the commands' travel from one tick to the next that are at no
            seam, to compare with.
        ended: the state at the end, and why.
        stops: each time the robot was held or stopped.
        looked_at: whether a person let the robot go on, or re-armed it, after the episode.
        kept: whether it counts, and its recording stays.
    """

    seed: int
    score: float | None = None
    success: bool | None = None
    seconds: float = 0.0
    ticks: list[Tick] = field(default_factory=list)
    overruns: int = 0
    starved: int = 0
    latencies: list[float] = field(default_factory=list)
    surprises: list[float] = field(default_factory=list)
    jumps: list[float] = field(default_factory=list)
    kinks: list[float] = field(default_factory=list)
    kink: float | None = None
    ended: tuple[State, str] = (State.DISARMED, "")
    stops: list[Change] = field(default_factory=list)
    looked_at: bool = False
    kept: bool = True

    @property
    def completed(self) -> bool:
        """Whether it ended by itself or was ended by a person's key, not by a hold or a stop."""
        return self.ended[0] not in STOPPED

    def summary(self) -> dict[str, Any]:
        """Numbers for a table: times in ms."""
        late = [1e3 * tick.late for tick in self.ticks]
        span = self.ticks[-1].began - self.ticks[0].began
        clamped = sum(tick.limited for tick in self.ticks)
        return {
            "seed": self.seed,
            "score": self.score,
            "success": self.success,
            "seconds": self.seconds,
            "ticks": len(self.ticks),
            "rate_hz": (len(self.ticks) - 1) / max(span, 1e-9),
            "late_ms": percentiles(late),
            "latency_ms": percentiles([1e3 * s for s in self.latencies])
            if self.latencies
            else None,
            "overruns": self.overruns,
            "starved": self.starved,
            "clamped": clamped,
            "seam_jump": float(np.mean(self.jumps)) if self.jumps else None,
            "seam_kink": float(np.mean(self.kinks)) if self.kinks else None,
            "kink": self.kink,
            "ended": str(self.ended[0]),
            "reason": self.ended[1],
            "stops": [[str(change.state), change.reason] for change in self.stops],
            "kept": self.kept,
        }


def tick_s(robot: Robot, speed: float) -> float:
    """Seconds from tick to tick; at half the speed the same motion takes twice the time."""
    if not 0 < speed <= 1:
        raise ConfigError(f"speed must be in (0, 1], got {speed}.")
    return 1 / (robot.rate_hz * speed)


def shapes_of(policy: Policy) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a policy reads of an observation."""
    cameras = policy.shape.cameras or {}
    return {"obs": (policy.shape.obs_dim,)} | {name: (*size, 3) for name, size in cameras.items()}


class Session:
    """Everything that one run needs, put together.

    Args:
        robot, driver, planner, clock: what runs.
        shapes: name -> shape of each value that the driver must give, see `shapes_of`.
        active: whether commands are sent.
        record: an episode store to record into, see `Recorder`.
        observers: called with every tick.
        heart: whether another thread stops the robot when the loop hangs.
    """

    def __init__(
        self,
        robot: Robot,
        driver: Driver,
        planner: ActionSource,
        clock: Clock,
        shapes: dict[str, tuple[int, ...]],
        *,
        active: bool = True,
        record: Path | None = None,
        observers: Sequence[Callable[[Tick], None]] = (),
        heart: bool = True,
    ) -> None:
        self.robot, self.driver, self.clock, self.planner = robot, driver, clock, planner
        for name in ("command_s", "heartbeat_s"):
            if planner.dt >= (timeout := getattr(robot.timeouts, name)):
                raise ConfigError(
                    f"a tick takes {planner.dt:g} s, which is not within robot.watch.{name}="
                    f"{timeout:g}; raise one of them."
                )
        self.supervisor, self.estop = Supervisor(clock), EStop()
        driver.press = self.estop.press
        self._store: Path | None = record
        self.recorder: Recorder | None = None
        self.loop = ControlLoop(
            driver,
            self.planner,
            robot.safety,
            robot.timeouts,
            self.supervisor,
            self.estop,
            clock,
            shapes,
            active=active,
            observers=[*observers, self._record],
        )
        timeout = robot.timeouts.heartbeat_s
        self.heart = self.loop.heart = (
            LoopWatchdog(clock, timeout, self.loop.fault) if heart else None
        )

    def _record(self, tick: Tick) -> None:
        if self.recorder is not None:
            try:
                self.recorder.add(tick, self.planner.plan)
            except RecordError as error:
                self.loop.fault(str(error))

    def prepare(self) -> Observation:
        """Connect, see, warm up: only then is the robot READY.

        Raises:
            DriverError, PolicyError, RecordError: what is not ready.
            ConfigError: the robot does not see what the policy reads.
        """
        self.driver.connect()
        if self.loop.active:
            self.driver.check_alone()
        seen = self.first_observation()
        if self._store is not None and self.recorder is None:
            rate, name = 1 / self.planner.dt, self.robot.name
            layout = Layout.of(seen.values, self.robot.action, rate, name)
            self.recorder = Recorder(self._store, layout, self._longest)
        self.planner.warm_up(seen.values, seen.position)
        self.supervisor.to(State.READY, "checked and warmed up")
        return seen

    @property
    def _longest(self) -> int:
        """Ticks of an episode at most; a recording that stands in for a robot ends by itself."""
        if (seconds := self.driver.seconds) is not None:
            return int(seconds / self.planner.dt + 1e-6) + 1
        return round(self.robot.episode_s * self.robot.rate_hz)

    def first_observation(self) -> Observation:
        """Wait for one that the policy can read."""
        senses = ObservationReader(self.driver, self.loop.shapes, len(self.robot.action))
        end = self.clock.now() + FIRST_OBSERVATION_S
        while True:
            senses.look()
            if senses.newest is not None:
                return senses.newest
            if self.clock.now() >= end:
                why = senses.rejected or "nothing was measured"
                raise ConfigError(
                    f"{self.robot.name} gave no observation that the policy can read within "
                    f"{FIRST_OBSERVATION_S:g} s: {why}."
                )
            self.clock.wait_until(self.clock.now() + 0.05)

    def episode(
        self,
        seed: int,
        *,
        quits: Callable[[], bool] = lambda: False,
        keep: Callable[[Episode], bool] = lambda episode: True,
    ) -> Episode:
        """Run until the task is solved, the time is over, a fault, or `quits`.

        The robot starts by itself, unless its configuration wants a person to. What was recorded
        is kept where `keep` says so, and always when the program is interrupted. A robot that is
        held or stopped at the end stays in that state until the next episode, or until it is
        re-armed.
        """
        this = Episode(seed)
        if self.supervisor.state in (State.RUNNING, State.HOLD):  # of the episode before
            self._ready("a new episode")
        changes = len(self.supervisor.changes)
        try:
            self.driver.reset(seed)
            if self.recorder is not None:
                self.recorder.begin()
        except (DriverError, RecordError, ConfigError) as error:
            self.loop.fault(str(error))
        self.planner.reset(seed)
        before = len(self.planner.latencies)
        overruns, starved = self.loop.overruns, self.loop.starved
        if not self.robot.confirm:
            self.supervisor.to(State.RUNNING, "started")
        limit = self._longest

        def done(tick: Tick) -> bool:
            if tick.state is State.READY:  # a person has yet to start it
                return quits()
            this.ticks.append(tick)
            plan = self.planner.plan
            if plan is not None and plan.surprise is not None and plan.start == tick.tick:
                this.surprises.append(plan.surprise)
            solved = isinstance(self.driver, Scored) and self.driver.over
            over = tick.tick - this.ticks[0].tick + 1 >= limit
            return solved or over or tick.state is State.FAULT or quits()

        try:
            self.loop.run(done)
        except BaseException:
            if self.recorder is not None:
                self.recorder.end()
            raise
        if this.ticks:
            this.seconds = self.clock.now() - this.ticks[0].due
        if isinstance(self.driver, Scored):
            this.score, this.success = self.driver.score, self.driver.over
        this.overruns, this.starved = self.loop.overruns - overruns, self.loop.starved - starved
        this.latencies = self.planner.latencies[before:]
        this.jumps = [float(np.linalg.norm(seam.jump)) for seam in self.planner.seams]
        this.kinks = [float(np.linalg.norm(seam.kink)) for seam in self.planner.seams]
        this.kink = _kink(this.ticks, {seam.tick for seam in self.planner.seams})
        this.ended = (self.supervisor.state, self.supervisor.reason)
        if self.supervisor.state is State.RUNNING:
            self._ready("the episode is over")
        this.kept = keep(this)
        try:
            if self.recorder is not None and this.kept:
                self.recorder.end()
            elif self.recorder is not None:
                self.recorder.discard()
        except RecordError as error:
            this.kept = False
            self.loop.fault(str(error))
            this.ended = (self.supervisor.state, self.supervisor.reason)
        this.stops = [c for c in self.supervisor.changes[changes:] if c.state in STOPPED]
        return this

    def _ready(self, reason: str) -> None:
        self.supervisor.to(State.DISARMED, reason)
        self.supervisor.to(State.READY, "checked before")

    def close(self) -> None:
        self.driver.close()


def _kink(ticks: Sequence[Tick], seams: set[int]) -> float | None:
    """Mean length of the commands' second difference, but at some ticks; None without any."""
    sent = {tick.tick: tick.command for tick in ticks if tick.sent and tick.command is not None}
    kinks = [
        np.linalg.norm(command - 2 * sent[at - 1] + sent[at - 2])
        for at, command in sent.items()
        if at not in seams and at - 1 in sent and at - 2 in sent
    ]
    return float(np.mean(kinks)) if kinks else None
