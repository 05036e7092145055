"""Run a policy on a robot: ``python -m real_robot.run robot=sim_push_t checkpoint=RUN``.

Leaves ``summary.json``, ``table.md`` and ``timeline.svg`` in its output folder, the videos of
simulated robots, and with ``record=`` an episode store to learn from. Every option is in
``configs/run.yaml``, every robot in ``configs/robot/``. Keys: see `operator`.
"""

from __future__ import annotations

import itertools
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markdown import Markdown

from ebt_policy.entry import pick_device, report_errors
from ebt_policy.evaluation.contestants import load_contestants
from ebt_policy.options import ConfigError, options
from envs.spec import EVALUATION_SEED
from envs.video import video_writer
from real_robot.background import ThreadBackground
from real_robot.clock import Clock, MonotonicClock
from real_robot.dashboard import Dashboard, shown
from real_robot.drivers.base import Driver, DriverError, Scored
from real_robot.drivers.replay import Recording
from real_robot.drivers.sim import SimRobot
from real_robot.operator import Operator, listening
from real_robot.planner import Execution, Planner, PolicyError, Recorded
from real_robot.report import write_run
from real_robot.rerun_log import RerunLog
from real_robot.robots import Robot
from real_robot.session import Episode, Session, shapes_of, tick_s
from real_robot.supervisor import State
from real_robot.teleop import Hand

console = Console()
# The prediction's thread is to leave the interpreter to the loop's, which wakes for its tick, at
# once; by default that may take 5 ms.
SWITCH_S = 0.0005
MODES = {  # and what each needs
    "run": "checkpoint", "shadow": "checkpoint", "dry": "checkpoint", "replay": "recording",
    "teleop": None,
}  # fmt: skip
FAULTY = 3  # exit code after a fault


@dataclass(frozen=True)
class RunOptions:
    """What `run` is told; see ``configs/run.yaml``."""

    checkpoint: str | None = None
    mode: str = "run"
    recording: str | None = None
    recorded_episode: int = -1
    input: str = "mouse"
    episodes: int = 1
    keep: str = "all"
    seed: int = EVALUATION_SEED
    speed: float = 1.0
    execution: Execution = field(default_factory=Execution)
    compile: bool = False
    record: str | None = None
    rerun: str | None = None
    live: bool = True
    video: bool = False
    device: str = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {self.mode}.")
        if (needs := MODES[self.mode]) and getattr(self, needs) is None:
            raise ConfigError(f"say what is to run: {needs}=...")
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {self.episodes}.")
        if self.keep not in ("all", "solved"):
            raise ConfigError(f"keep must be all or solved, got {self.keep}.")


@dataclass(frozen=True)
class Mover:
    """What moves the robot: a policy, a recording or a hand.

    Attributes:
        name, params: of a policy, for tables.
        plans: has the action of each tick.
        shapes: of what the driver must give.
    """

    name: str
    params: int
    plans: Planner | Recorded | Hand
    shapes: dict[str, tuple[int, ...]]


def mover_of(robot: Robot, given: RunOptions, driver: Driver, clock: Clock) -> Mover:
    """What the mode says."""
    dt, background = tick_s(robot, given.speed), ThreadBackground(clock)
    if given.mode == "replay":
        recording = Recording(str(given.recording), given.recorded_episode)
        plans = Recorded(recording.rows["action"], dt, background)
        return Mover(str(given.recording), 0, plans, {})
    if given.mode == "teleop":
        if not isinstance(driver, SimRobot) or len(robot.action) != 2:
            raise ConfigError("mode=teleop is for simulated robots that move in a plane.")
        low, high = robot.safety.low, robot.safety.high
        return Mover(
            given.input, 0, Hand(given.input, driver.render, low, high, dt, background), {}
        )
    one = load_contestants([str(given.checkpoint)], pick_device(given.device))[0]
    if given.compile:
        one.policy.compile_prediction()
    plans = Planner(one.policy, robot.safety, dt, background, clock, given.execution)
    return Mover(one.name, one.policy.parameter_count, plans, shapes_of(one.policy))


def rearmed(session: Session, operator: Operator) -> bool:
    """After a fault wait for a person to re-arm the robot, and check it; False if they quit."""
    while session.supervisor.state is State.FAULT and not operator.quits.is_set():
        session.clock.wait_until(session.clock.now() + 0.05)
    if operator.quits.is_set():
        return False
    session.prepare()
    return True


def play(session: Session, robot: Robot, given: RunOptions, mover: Mover, output: Path,
         operator: Operator, keys: bool) -> list[Episode]:  # fmt: skip
    """All episodes; with ``keep=solved`` until so many were solved.

    Args:
        keys: whether a person can press some: then a fault does not end it.
    """
    episodes: list[Episode] = []
    hand, driver = mover.plans, session.driver
    usual = session.loop.observers

    def quits() -> bool:
        asked = isinstance(hand, Hand) and (hand.quits or hand.kept is not None)
        return asked or operator.quits.is_set()

    def keep(episode: Episode) -> bool:
        if isinstance(hand, Hand) and hand.kept is not None:
            return hand.kept
        return given.keep == "all" or bool(episode.success)

    for seed in itertools.count(given.seed):
        with ExitStack() as films:
            if given.video and isinstance(driver, SimRobot):
                path = output / "videos" / f"seed_{seed}.mp4"
                add = films.enter_context(video_writer(path, round(robot.rate_hz)))
                session.loop.observers = [*usual, lambda _, a=add, d=driver: a(d.render())]
            episodes.append(session.episode(seed, quits=quits, keep=keep))
        gone = operator.quits.is_set() or (isinstance(hand, Hand) and hand.quits)
        kept = sum(episode.kept for episode in episodes)
        if gone or kept >= given.episodes:
            return episodes
        fault = session.supervisor.state is State.FAULT
        if fault and not (keys and rearmed(session, operator)):
            return episodes
    raise AssertionError("seeds do not end")


def run(robot: Robot, given: RunOptions, command: str) -> int:
    """Run episodes; returns the exit code.

    Raises:
        ConfigError, CheckpointError, SafetyError, DriverError, PolicyError: before anything moves.
    """
    clock = MonotonicClock()
    driver = robot.connect(clock, film=given.video or given.mode == "teleop")
    if given.video and not isinstance(driver, SimRobot):
        raise ConfigError("video=true films simulated robots; leave it out.")
    if given.keep == "solved" and not isinstance(driver, Scored):
        raise ConfigError("keep=solved is for simulated robots, which know their task.")
    with ExitStack() as stack:
        stack.callback(driver.close)
        if given.mode == "teleop":
            driver.connect()  # the window shows its scene
        mover = mover_of(robot, given, driver, clock)
        if isinstance(mover.plans, Hand):
            stack.callback(mover.plans.close)
        if isinstance(mover.plans, Recorded):
            robot = replace(robot, episode_s=len(mover.plans) / robot.rate_hz)
        dashboard = Dashboard(f"{robot.name}: {mover.name}, {given.mode}")
        output = Path(given.output or f"results/{robot.name}-{Path(mover.name).name}")
        sys.setswitchinterval(SWITCH_S)
        observers: list[Dashboard | RerunLog] = [dashboard]
        if given.rerun is not None:
            observers.append(log := RerunLog(Path(given.rerun)))
            stack.callback(log.close)
        session = Session(
            robot, driver, mover.plans, clock, mover.shapes,
            active=given.mode != "shadow", observers=observers,
            record=Path(given.record) if given.record else None,
        )  # fmt: skip
        for observer in observers:
            observer.session = session
        operator = Operator(session.supervisor, session.estop)
        console.print("connecting and warming up", highlight=False)
        session.prepare()
        if session.recorder is not None and session.recorder.recovered:
            kept = session.recorder.recovered
            console.print(f"{kept} ticks of an interrupted episode were kept", highlight=False)
        if session.planner.latencies:
            slow = 1e3 * max(session.planner.latencies)
            console.print(f"ready: a chunk takes {slow:.0f} ms", highlight=False)
        if given.mode == "dry":
            return 0
        keys = stack.enter_context(listening(operator, session.estop))
        if robot.confirm and not keys:
            raise ConfigError(
                f"{robot.name} is started by a person with a key, but there is no terminal; use "
                "one, or robot.confirm=false."
            )
        assert session.heart is not None
        stack.enter_context(session.heart)
        stack.enter_context(shown(dashboard, console, given.live))
        episodes = play(session, robot, given, mover, output, operator, keys)
    write_run(output, mover.name, mover.params, robot, given, episodes, command)
    console.print(Markdown((output / "table.md").read_text()))
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    if given.record:
        kept = sum(episode.kept for episode in episodes)
        console.print(f"recorded: {kept} episodes in {given.record}", soft_wrap=True)
    if session.supervisor.state is State.FAULT:
        console.print(f"[bold red]fault:[/] {session.supervisor.reason}", soft_wrap=True)
        return FAULTY
    return 0


_original: list[str] = []


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="run")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        section: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        robot = options(Robot, section.pop("robot"), "robot")
        section["execution"] = options(Execution, section["execution"], "execution")
        given = options(RunOptions, section, "the run")
        try:
            code = run(robot, given, " ".join(["python -m real_robot.run", *_original]))
        except (DriverError, PolicyError) as error:
            raise ConfigError(str(error)) from error
    sys.exit(code)


def main() -> None:
    _original[:] = sys.argv[1:]
    _main()


if __name__ == "__main__":
    main()
