"""A complete run: connect, prepare, run episodes, write and print the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ebt_policy.data.convert import check_destination, convert
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.terminal import print_markdown
from ebt_policy.io.output import numbered, output_folder, output_store
from ebt_policy.io.paths import reason
from ebt_policy.real_robot.action_source import RecordedActions
from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.dashboard import Dashboard, announce_changes, live_dashboard
from ebt_policy.real_robot.drivers.base import Driver, Renderable, SimulatedDriver
from ebt_policy.real_robot.episode_runner import EpisodeRunner, tick_seconds
from ebt_policy.real_robot.episode_series import OUTPUT_FAILED, EpisodeSeries, exit_code
from ebt_policy.real_robot.keyboard import Operator, listen_to_operator
from ebt_policy.real_robot.optional_outputs import BestEffort
from ebt_policy.real_robot.report import RESULT_NAMES, markdown_table, summarize, write_results
from ebt_policy.real_robot.rerun_log import RerunLog
from ebt_policy.real_robot.robots import Robot
from ebt_policy.real_robot.run_options import KeepRule, RunMode, RunOptions
from ebt_policy.real_robot.source_factory import NamedSource, build_source
from ebt_policy.real_robot.supervisor import EStop, State
from ebt_policy.real_robot.teleop_device import TeleopDevice

console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)
# The prediction thread must release the interpreter as soon as the control loop wakes for a tick.
# With Python's default switch interval this takes up to 5 ms.
SWITCH_INTERVAL_S = 0.0005
REMEDIES = {State.HOLD: "r resumes it, q quits", State.FAULT: "a re-arms it, q quits"}


def run_robot(robot: Robot, options: RunOptions, command: str) -> int:
    """Run episodes on a robot, and return the exit code.

    Args:
        command: the command line, which is stored with the results.

    Raises:
        ConfigError, CheckpointError, SafetyError, DriverError, PolicyError, RecordError: the run
            cannot start. These errors are raised before the robot moves.
    """
    clock = MonotonicClock()
    has_person = options.mode == RunMode.TELEOP or options.takeover
    render = options.video or has_person
    driver = robot.make_driver(clock, tick_s=tick_seconds(robot, options.speed), render=render)
    estop = EStop()
    driver.press = estop.press  # A stop may arrive as soon as the driver is connected.
    _check_driver(driver, options)
    if options.lerobot is not None:
        check_destination(Path(options.lerobot), "lerobot", robot.rate_hz * options.speed)
    with ExitStack() as stack:
        output = stack.enter_context(results_folder(robot, options))
        if options.record is not None:
            stack.enter_context(output_store(Path(options.record), "record"))
        stack.callback(driver.close)
        if has_person:
            driver.connect()  # A teleoperation window shows the scene of the driver.
        operators: list[Operator] = []  # The operator exists once the runner does.
        source = build_source(
            robot, options, driver, clock, lambda: any(o.wants_control for o in operators)
        )
        stack.callback(source.close)
        for actions in (source.actions, getattr(source.actions, "person", None)):
            if isinstance(actions, TeleopDevice):
                stack.callback(actions.close)
        if isinstance(source.actions, RecordedActions):
            robot = replace(robot, episode_s=len(source.actions) / robot.rate_hz)
        dashboard = Dashboard(f"{robot.name}: {source.name}, {options.mode}")
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        log = None if options.rerun is None else RerunLog(options.rerun)
        if log is not None and log.page:
            console.print(f"live view: {log.page}", markup=False, soft_wrap=True, highlight=False)
        extras = [] if log is None else [BestEffort("rerun", lambda: log)]
        for extra in extras:
            stack.callback(extra.close)
        runner = EpisodeRunner(
            robot, driver, source.actions, clock, source.shapes,
            active=options.mode != RunMode.SHADOW, observers=[dashboard, *extras],
            record=Path(options.record) if options.record else None, estop=estop,
        )  # fmt: skip
        dashboard.runner = runner
        if log is not None:
            log.runner = runner
        _prepare(runner)
        if options.mode == RunMode.DRY_RUN:
            return 0
        operator = Operator(runner.supervisor, runner.estop)
        operators.append(operator)
        has_keys = stack.enter_context(listen_to_operator(operator))
        series = EpisodeSeries(runner, options, output, operator, has_keys, extras=extras)
        code = _run_series(series, dashboard, source, command)
    if options.lerobot is not None and Path(str(options.record)).exists():
        code = code or _write_lerobot(Path(str(options.record)), Path(options.lerobot))
    return code


def _check_driver(driver: Driver, options: RunOptions) -> None:
    """Check that the driver supports the options."""
    if options.video and not isinstance(driver, Renderable):
        raise ConfigError("video=true needs a simulated robot that can be rendered; remove it.")
    if options.keep == KeepRule.SUCCESSFUL and not isinstance(driver, SimulatedDriver):
        raise ConfigError(
            "keep=successful needs a simulated robot, which reports success; use keep=completed."
        )


def _prepare(runner: EpisodeRunner) -> None:
    """Prepare the robot, and print recovered ticks and the latency of a prediction."""
    console.print("connecting and warming up", highlight=False)
    runner.prepare()
    if runner.recorder is not None and (count := runner.recorder.recovered):
        console.print(f"{count} ticks of an interrupted episode were recovered", highlight=False)
    if runner.source.latencies:
        slowest_ms = 1e3 * max(runner.source.latencies)
        console.print(f"ready: a prediction takes {slowest_ms:.0f} ms", highlight=False)


def _run_series(
    series: EpisodeSeries, dashboard: Dashboard, source: NamedSource, command: str
) -> int:
    """Run the episodes with a live view in the terminal, report, and return the exit code."""
    runner, robot, options = series.runner, series.runner.robot, series.options
    if robot.confirm and not series.has_keys:
        raise ConfigError(
            f"robot={robot.name} is started by a person with a key, but there is no terminal; use "
            "a terminal or robot.confirm=false."
        )
    remedies = dict(REMEDIES) if series.has_keys else {}
    if series.has_keys and options.takeover:
        remedies[State.HOLD] = f"t takes over, {remedies[State.HOLD]}"
    if robot.confirm:
        remedies = remedies | {State.READY: "s starts it"}
    # If the output is redirected, a person still sees on stderr why the robot does not move.
    terminal = console if console.is_terminal else errors
    assert runner.watchdog is not None
    code = 0
    try:
        with (
            runner.watchdog,
            announce_changes(runner.supervisor, terminal, remedies),
            live_dashboard(dashboard, console, options.live),
        ):
            series.run()
    finally:
        for extra in series.extras:
            extra.close()
        if series.results:
            code = report_results(series, source, command)
    return code


@contextmanager
def results_folder(robot: Robot, options: RunOptions) -> Iterator[Path]:
    """Create and lock the folder of a run's results, which must not have results yet.

    Raises:
        ConfigError: the folder has results of another run, cannot be written or is in use.
    """
    if options.output is None:
        default = Path("results") / f"{robot.name}-{options.source_name}"
        folder = next(path for path in numbered(default) if not path.exists())
    else:
        folder = Path(options.output)
    with output_folder(folder, "output"):
        if present := [name for name in RESULT_NAMES if (folder / name).exists()]:
            raise ConfigError(
                f"output={folder} has results of another run ({present[0]}); give another folder."
            )
        yield folder


def report_results(series: EpisodeSeries, source: NamedSource, command: str) -> int:
    """Write and print the results of a run, and return the exit code."""
    options, results, output = series.options, series.results, series.output
    failures = [extra.failure for extra in series.extras if extra.failure]
    summary = summarize(results)
    try:
        write_results(
            output, source.name, source.parameter_count, series.runner.robot, options, results,
            summary, command,
        )  # fmt: skip
    except OSError as error:  # The results are still printed.
        failures.append(f"output={output} cannot be written ({error.strerror or error})")
    print_markdown(markdown_table(summary), console)
    console.print(f"results: {output}", markup=False, soft_wrap=True, highlight=False)
    if options.record:
        num_kept = sum(result.kept for result in results)
        num_dropped = len(results) - num_kept
        dropped = f"; {num_dropped} were dropped (keep={options.keep})" if num_dropped else ""
        console.print(
            f"recorded: {num_kept} episodes in {options.record}{dropped}",
            markup=False, soft_wrap=True, highlight=False,
        )  # fmt: skip
    for failure in failures:
        errors.print(f"[bold red]error:[/] {escape(failure)}")
    return exit_code(results) or (OUTPUT_FAILED if failures else 0)


def _write_lerobot(store: Path, folder: Path) -> int:
    """Write a recording as a LeRobot data set after the run, and return an exit code."""
    try:
        with convert(store, folder, to="lerobot") as dataset:
            line = f"LeRobot data set: {len(dataset)} episodes in {folder}"
            console.print(line, markup=False, soft_wrap=True, highlight=False)
    except Exception as error:  # The recording is complete, whatever failed here.
        cause = f"lerobot={folder} was not written ({reason(error)})"
        message = f"{cause}; try ebt-convert {store} {folder}"
        errors.print(f"[bold red]error:[/] {escape(message)}")
        return OUTPUT_FAILED
    return 0
