"""Run a policy on a robot: ``python -m ebt_policy.real_robot.run robot=sim_push_t checkpoint=RUN``.

Leaves ``summary.json``, ``table.md`` and ``timeline.svg`` in its output folder, the videos of
simulated robots, and with ``record=`` an episode store to learn from. Every option is in
``configs/run.yaml``, every robot in ``configs/robot/``. Keys: see `operator`. Exit codes: see
`exit_code`.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from ebt_policy.cli import hydra_arguments, pick_device, report_errors
from ebt_policy.config import options
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import output_folder, output_store
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.best_effort import BestEffort, Film
from ebt_policy.real_robot.clock import Clock, MonotonicClock
from ebt_policy.real_robot.dashboard import Dashboard, announced, shown
from ebt_policy.real_robot.drivers.base import Driver, DriverError, Scored
from ebt_policy.real_robot.drivers.replay import Recording
from ebt_policy.real_robot.drivers.sim import SimRobot
from ebt_policy.real_robot.episode_runner import Episode, Session, shapes_of, tick_s
from ebt_policy.real_robot.inference_worker import ThreadBackground
from ebt_policy.real_robot.keyboard import Operator, listening
from ebt_policy.real_robot.planner import Execution, Planner, PolicyError, Recorded
from ebt_policy.real_robot.recorder import RecordError
from ebt_policy.real_robot.report import RESULTS, summarize, table, write_run
from ebt_policy.real_robot.rerun_log import RerunLog
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.supervisor import STOPPED, State
from ebt_policy.real_robot.teleop import TeleopSource

console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)
# The prediction's thread is to leave the interpreter to the loop's, which wakes for its tick, at
# once; by default that may take 5 ms.
SWITCH_S = 0.0005
MODES = {  # and what each needs
    "run": "checkpoint", "shadow": "checkpoint", "dry": "checkpoint", "replay": "recording",
    "teleop": None,
}  # fmt: skip
KEEP = ("completed", "solved", "all")
UNWRITTEN, FAULTY, HELD, INTERRUPTED = 2, 3, 4, 130  # exit codes, see docs/real_robot.md
REMEDIES = {State.HOLD: "r lets it go on, q quits", State.FAULT: "a re-arms it, q quits"}


@dataclass(frozen=True)
class RunOptions:
    """What `run` is told; see ``configs/run.yaml``."""

    checkpoint: str | None = None
    mode: str = "run"
    recording: str | None = None
    recorded_episode: int = -1
    input: str = "mouse"
    episodes: int = 1
    keep: str = "completed"
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
        if self.keep not in KEEP:
            raise ConfigError(f"keep must be one of {', '.join(KEEP)}, got {self.keep}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")

    @property
    def moves(self) -> str:
        """What moves the robot, as the user named it."""
        named = {"replay": self.recording, "teleop": self.input}.get(self.mode, self.checkpoint)
        return Path(str(named)).resolve().name


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
    plans: Planner | Recorded | TeleopSource
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
            given.input, 0, TeleopSource(given.input, driver.render, low, high, dt, background), {}
        )
    one = load_policy_entries([str(given.checkpoint)], pick_device(given.device))[0]
    if len(one.models) > 1:
        raise ConfigError(f"checkpoint={given.checkpoint} matches several runs; name one of them.")
    if given.compile:
        one.model.compile_prediction()
    plans = Planner(one.model, robot.safety, dt, background, clock, given.execution)
    return Mover(one.name, one.model.parameter_count, plans, shapes_of(one.model))


def exit_code(episodes: Sequence[Episode]) -> int:
    """0; 3 after an episode that ended in a fault or an emergency stop, else 4 after one at whose
    end the robot was held; those that a person has looked at do not count."""
    ends = {episode.ended[0] for episode in episodes if not episode.looked_at}
    return FAULTY if State.FAULT in ends else HELD if State.HOLD in ends else 0


def looked_at(session: Session, operator: Operator) -> bool:
    """Wait until a person lets a held robot go on, or re-arms a stopped one and it passes its
    checks; False if they quit."""
    supervisor, clock = session.supervisor, session.clock
    while not operator.quits.is_set():
        if supervisor.state is State.DISARMED:
            try:
                session.prepare()
            except (DriverError, PolicyError, RecordError, ConfigError) as error:
                session.loop.fault(str(error))
        elif supervisor.state not in STOPPED:
            return True
        elif supervisor.state is State.HOLD and session.estop.pressed.is_set():
            session.loop.fault(f"emergency stop: {session.estop.reason}")
        else:
            clock.wait_until(clock.now() + 0.05, operator.quits)
    return False


def goes_on(session: Session, episode: Episode, operator: Operator, keys: bool) -> bool:
    """Whether another episode may begin after this one.

    Args:
        keys: whether a person can press some.
    """
    if episode.completed:
        return True
    if keys:
        episode.looked_at = looked_at(session, operator)
        return episode.looked_at
    # Nobody can look. A simulated robot that was only held starts anew.
    held = session.supervisor.state is State.HOLD
    return held and episode.kept and isinstance(session.driver, Scored)


def play(session: Session, robot: Robot, given: RunOptions, mover: Mover, output: Path,
         operator: Operator, keys: bool, episodes: list[Episode],
         extras: list[BestEffort]) -> None:  # fmt: skip
    """Play until so many episodes were kept, a person leaves, or none may begin.

    Args:
        keys: see `goes_on`.
        episodes: takes each one as it ends.
        extras: takes the films.
    """
    hand, driver = mover.plans, session.driver
    usual = session.loop.observers

    def left() -> bool:
        return operator.quits.is_set() or (isinstance(hand, TeleopSource) and hand.quits)

    def quits() -> bool:
        return left() or (isinstance(hand, TeleopSource) and hand.kept is not None)

    def keep(episode: Episode) -> bool:
        if isinstance(hand, TeleopSource) and hand.kept is not None:
            return hand.kept
        if given.keep == "all":
            return True
        return episode.completed and (given.keep == "completed" or bool(episode.success))

    for seed in itertools.count(given.seed):
        with ExitStack() as closing:
            if given.video and isinstance(driver, SimRobot):
                path = output / "videos" / f"seed_{seed}.mp4"
                film = BestEffort("video", partial(Film, path, round(robot.rate_hz), driver.render))
                extras.append(film)
                closing.callback(film.close)
                session.loop.observers = [*usual, film]
            episodes.append(episode := session.episode(seed, quits=quits, keep=keep))
        if left() or not goes_on(session, episode, operator, keys):
            return
        if sum(episode.kept for episode in episodes) >= given.episodes:
            return


@contextmanager
def results_folder(robot: Robot, given: RunOptions) -> Iterator[Path]:
    """Own the folder of a run's results, in which there are none yet.

    Raises:
        ConfigError: it has results of another run, cannot be written or is in use.
    """
    if given.output is None:
        usual = Path("results") / f"{robot.name}-{given.moves}"
        numbered = (usual.with_name(f"{usual.name}-{i}") for i in itertools.count(2))
        folder = next(path for path in itertools.chain([usual], numbered) if not path.exists())
    else:
        folder = Path(given.output)
    with output_folder(folder, "output"):
        if present := [name for name in RESULTS if (folder / name).exists()]:
            raise ConfigError(
                f"output={folder} has results of another run ({present[0]}); give another folder."
            )
        yield folder


def finish(output: Path, mover: Mover, robot: Robot, given: RunOptions, episodes: list[Episode],
           extras: list[BestEffort], command: str) -> int:  # fmt: skip
    """Write and show what a run leaves; returns the exit code."""
    failures = [extra.failure for extra in extras if extra.failure]
    summary = summarize(episodes)
    try:
        write_run(output, mover.name, mover.params, robot, given, episodes, summary, command)
    except OSError as error:  # what the terminal shows is left, at least
        failures.append(f"output={output} cannot be written ({error.strerror or error})")
    console.print(Markdown(table(summary)))
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    if given.record:
        kept = sum(episode.kept for episode in episodes)
        dropped = len(episodes) - kept
        why = f"; {dropped} were not kept (keep={given.keep})" if dropped else ""
        console.print(
            f"recorded: {kept} episodes in {given.record}{why}",
            markup=False, soft_wrap=True, highlight=False,
        )  # fmt: skip
    for failure in failures:
        errors.print(f"[bold red]error:[/] {escape(failure)}")
    return exit_code(episodes) or (UNWRITTEN if failures else 0)


def run(robot: Robot, given: RunOptions, command: str) -> int:
    """Run episodes; returns the exit code.

    Raises:
        ConfigError, CheckpointError, SafetyError, DriverError, PolicyError, RecordError: before
            anything moves.
    """
    clock = MonotonicClock()
    driver = robot.connect(clock, film=given.video or given.mode == "teleop")
    if given.video and not isinstance(driver, SimRobot):
        raise ConfigError("video=true films simulated robots; leave it out.")
    if given.keep == "solved" and not isinstance(driver, Scored):
        raise ConfigError("keep=solved is for simulated robots, which know their task.")
    episodes: list[Episode] = []
    extras: list[BestEffort] = []
    with ExitStack() as stack:
        output = stack.enter_context(results_folder(robot, given))
        if given.record is not None:
            stack.enter_context(output_store(Path(given.record), "record"))
        stack.callback(driver.close)
        if given.mode == "teleop":
            driver.connect()  # the window shows its scene
        mover = mover_of(robot, given, driver, clock)
        if isinstance(mover.plans, TeleopSource):
            stack.callback(mover.plans.close)
        if isinstance(mover.plans, Recorded):
            robot = replace(robot, episode_s=len(mover.plans) / robot.rate_hz)
        dashboard = Dashboard(f"{robot.name}: {mover.name}, {given.mode}")
        sys.setswitchinterval(SWITCH_S)
        log = None if given.rerun is None else RerunLog(Path(given.rerun))
        if log is not None:
            extras.append(BestEffort("rerun", lambda: log))
            stack.callback(extras[0].close)
        session = Session(
            robot, driver, mover.plans, clock, mover.shapes,
            active=given.mode != "shadow", observers=[dashboard, *extras],
            record=Path(given.record) if given.record else None,
        )  # fmt: skip
        dashboard.session = session
        if log is not None:
            log.session = session
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
        keys = stack.enter_context(listening(operator))
        if robot.confirm and not keys:
            raise ConfigError(
                f"{robot.name} is started by a person with a key, but there is no terminal; use "
                "one, or robot.confirm=false."
            )
        remedies = REMEDIES if keys else {}
        if robot.confirm:
            remedies = remedies | {State.READY: "s starts it"}
        # A person who sends the output elsewhere still sees why the robot stands.
        terminal = console if console.is_terminal else errors
        assert session.heart is not None
        try:
            with (
                session.heart,
                announced(session.supervisor, terminal, remedies),
                shown(dashboard, console, given.live),
            ):
                play(session, robot, given, mover, output, operator, keys, episodes, extras)
        finally:
            for extra in extras:
                extra.close()
            if episodes:
                code = finish(output, mover, robot, given, episodes, extras, command)
    return code


_original: list[str] = []


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="run")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        section: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        robot = options(Robot, section.pop("robot"), "robot")
        if isinstance(execution := section["execution"], dict):
            section["execution"] = options(Execution, execution, "execution")
        given = options(RunOptions, section, "the run")
        try:
            code = run(
                robot, given, shlex.join(["python", "-m", "ebt_policy.real_robot.run", *_original])
            )
        except (DriverError, PolicyError) as error:
            raise ConfigError(str(error)) from error
        except KeyboardInterrupt:
            errors.print("interrupted; the robot was stopped")
            code = INTERRUPTED
    sys.exit(code)


def main() -> None:
    _original[:] = sys.argv[1:]
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:])
    _main()


if __name__ == "__main__":
    main()
