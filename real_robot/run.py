"""Run a policy on a robot: ``python -m real_robot.run robot=sim_push_t checkpoint=RUN``.

Leaves ``summary.json``, ``table.md`` and ``timeline.svg`` in its output folder, the videos of
simulated robots, and with ``record=`` an episode store to learn from. Every option is in
``configs/run.yaml``, every robot in ``configs/robot/``. Keys: see `operator`.
"""

from __future__ import annotations

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
from real_robot.clock import MonotonicClock
from real_robot.dashboard import Dashboard, shown
from real_robot.drivers.base import DriverError
from real_robot.drivers.replay import Recording
from real_robot.drivers.sim import SimRobot
from real_robot.operator import Operator, listening
from real_robot.planner import Execution, Planner, PolicyError, Recorded
from real_robot.report import write_run
from real_robot.robots import Robot
from real_robot.session import Episode, Session, shapes_of, tick_s
from real_robot.supervisor import State

console = Console()
# The prediction's thread is to leave the interpreter to the loop's, which wakes for its tick, at
# once; by default that may take 5 ms.
SWITCH_S = 0.0005
MODES = ("run", "shadow", "dry", "replay")
FAULTY = 3  # exit code after a fault


@dataclass(frozen=True)
class RunOptions:
    """What `run` is told; see ``configs/run.yaml``."""

    checkpoint: str | None = None
    mode: str = "run"
    recording: str | None = None
    recorded_episode: int = -1
    episodes: int = 1
    seed: int = EVALUATION_SEED
    speed: float = 1.0
    execution: Execution = field(default_factory=Execution)
    compile: bool = False
    record: str | None = None
    live: bool = True
    video: bool = False
    device: str = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {self.mode}.")
        needs = "recording" if self.mode == "replay" else "checkpoint"
        if getattr(self, needs) is None:
            raise ConfigError(f"say what is to run: {needs}=...")
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {self.episodes}.")


def run(robot: Robot, given: RunOptions, command: str) -> int:
    """Run episodes; returns the exit code.

    Raises:
        ConfigError, CheckpointError, SafetyError, DriverError, PolicyError: before anything moves.
    """
    clock, dt = MonotonicClock(), tick_s(robot, given.speed)
    background = ThreadBackground(clock)
    if given.mode == "replay":
        recording = Recording(str(given.recording), given.recorded_episode)
        planner = Recorded(recording.rows["action"], dt, background)
        name, shapes, params = str(given.recording), recording.shapes, 0
        robot = replace(robot, episode_s=len(recording) / robot.rate_hz)
    else:
        one = load_contestants([str(given.checkpoint)], pick_device(given.device))[0]
        if given.compile:
            one.policy.compile_prediction()
        planner = Planner(one.policy, robot.safety, dt, background, clock, given.execution)
        name, shapes, params = one.name, shapes_of(one.policy), one.policy.parameter_count
    driver = robot.connect(clock, film=given.video)
    if given.video and not isinstance(driver, SimRobot):
        raise ConfigError("video=true films simulated robots; leave it out.")
    dashboard = Dashboard(f"{robot.name}: {name}, {given.mode}")
    output = Path(given.output or f"results/{robot.name}-{Path(name).name}")
    sys.setswitchinterval(SWITCH_S)
    session = Session(
        robot, driver, planner, clock, shapes, active=given.mode in ("run", "replay"),
        record=Path(given.record) if given.record else None, observers=[dashboard],
    )  # fmt: skip
    if session.recorder is not None and session.recorder.recovered:
        console.print(f"{session.recorder.recovered} ticks of an interrupted episode were kept.")
    dashboard.session = session
    episodes: list[Episode] = []
    operator = Operator(session.supervisor, session.estop)
    with ExitStack() as stack:
        stack.callback(session.close)
        console.print("connecting and warming up", highlight=False)
        session.prepare()
        slow = max(session.planner.latencies, default=0.0)
        console.print(f"ready: a chunk takes {1e3 * slow:.0f} ms", highlight=False)
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
        for i in range(given.episodes):
            with ExitStack() as films:
                if given.video and isinstance(driver, SimRobot):
                    path = output / "videos" / f"seed_{given.seed + i}.mp4"
                    add = films.enter_context(video_writer(path, round(robot.rate_hz)))
                    session.loop.observers = [
                        *session.loop.observers,
                        lambda _, a=add: a(driver.render()),
                    ]
                episodes.append(session.episode(given.seed + i, quits=operator.quits.is_set))
                if given.video:
                    session.loop.observers = session.loop.observers[:-1]
            if operator.quits.is_set() or session.supervisor.state is State.FAULT:
                break
    write_run(output, name, params, robot, given, episodes, command)
    console.print(Markdown((output / "table.md").read_text()))
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
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
