"""The episodes of a run: whether the next one may begin, which are kept, and the exit code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ebt_policy.errors import ConfigError
from ebt_policy.real_robot.drivers.base import Renderable, SimulatedDriver
from ebt_policy.real_robot.episode_result import EpisodeResult
from ebt_policy.real_robot.episode_runner import EpisodeRunner
from ebt_policy.real_robot.errors import DriverError, PolicyError, RecordError
from ebt_policy.real_robot.keyboard import Operator
from ebt_policy.real_robot.optional_outputs import BestEffort, TickVideo
from ebt_policy.real_robot.run_options import KeepRule, RunOptions
from ebt_policy.real_robot.supervisor import STOPPED, State
from ebt_policy.real_robot.teleop_device import TeleopDevice

# Exit codes, see docs/real_robot.md.
OUTPUT_FAILED, FAULTED, HELD, INTERRUPTED = 2, 3, 4, 130


@dataclass
class EpisodeSeries:
    """The episodes of a run.

    Args:
        runner: runner of each episode.
        options: options of the run.
        output: folder of the results, for the videos.
        operator: requests of the person at the terminal.
        has_keys: whether there is a terminal at which a person can press keys.
        results: results of the episodes so far.
        extras: optional outputs, whose failures are reported at the end.
    """

    runner: EpisodeRunner
    options: RunOptions
    output: Path
    operator: Operator
    has_keys: bool = False
    results: list[EpisodeResult] = field(default_factory=list)
    extras: list[BestEffort] = field(default_factory=list)

    def run(self) -> None:
        """Run episodes until enough are kept, a person quits, or the next one may not begin."""
        for seed in itertools.count(self.options.seed):
            result = self._run_episode(seed)
            if self._has_quit() or not self._may_continue(result):
                return
            if sum(result.kept for result in self.results) >= self.options.episodes:
                return

    def _run_episode(self, seed: int) -> EpisodeResult:
        observers, driver = self.runner.loop.observers, self.runner.driver
        self.operator.keep = None
        with ExitStack() as stack:
            if self.options.video and isinstance(driver, Renderable):
                path = self.output / "videos" / f"seed_{seed}.mp4"
                fps = round(self.runner.robot.rate_hz)
                video = BestEffort("video", partial(TickVideo, path, fps, driver.render))
                self.extras.append(video)
                stack.callback(video.close)
                self.runner.loop.observers = [*observers, video]
            result = self.runner.run_episode(
                seed, should_quit=self._should_end, should_keep=self._should_keep
            )
        self.runner.loop.observers = observers
        self.results.append(result)
        return result

    @property
    def _teleop(self) -> TeleopDevice | None:
        source = self.runner.source
        return source if isinstance(source, TeleopDevice) else None

    @property
    def _decision(self) -> bool | None:
        """Whether the person keeps the episode of teleoperation; None before they end it."""
        if self._teleop is None:
            return None
        return self.operator.keep if self._teleop.keep is None else self._teleop.keep

    def _has_quit(self) -> bool:
        """Return whether a person has ended the run."""
        return self.operator.quit.is_set() or (self._teleop is not None and self._teleop.quit)

    def _should_end(self) -> bool:
        """Return whether a person has ended the episode."""
        return self._has_quit() or self._decision is not None

    def _should_keep(self, result: EpisodeResult) -> bool:
        if self._decision is not None:
            return self._decision
        if self.options.keep == KeepRule.ALL:
            return True
        successful = self.options.keep == KeepRule.COMPLETED or bool(result.success)
        return result.completed and successful

    def _may_continue(self, result: EpisodeResult) -> bool:
        """Return whether another episode may begin, after waiting for the operator if necessary."""
        if result.completed:
            return True
        if self.has_keys:
            result.acknowledged = self._wait_for_operator()
            return result.acknowledged
        # Without a terminal, only a simulated robot that was held may start again.
        held = self.runner.supervisor.state is State.HOLD
        return held and result.kept and isinstance(self.runner.driver, SimulatedDriver)

    def _wait_for_operator(self) -> bool:
        """Wait until a person resumes a held robot or re-arms a stopped one.

        A re-armed robot must also pass the checks of `EpisodeRunner.prepare`.

        Returns:
            False if the person quits instead.
        """
        runner, supervisor = self.runner, self.runner.supervisor
        while not self.operator.quit.is_set():
            if supervisor.state is State.DISARMED:
                try:
                    runner.prepare()
                except (DriverError, PolicyError, RecordError, ConfigError) as error:
                    runner.loop.fault(str(error))
            elif supervisor.state not in STOPPED:
                return True
            elif supervisor.state is State.HOLD and runner.estop.pressed.is_set():
                runner.loop.fault(f"emergency stop: {runner.estop.reason}")
            else:
                runner.clock.wait_until(runner.clock.now() + 0.05, self.operator.quit)
        return False


def exit_code(results: Sequence[EpisodeResult]) -> int:
    """Return the exit code of a run with these episodes.

    It is `FAULTED` if an episode ended in a fault or an emergency stop. Otherwise it is `HELD` if
    an episode ended with the robot held, else 0. Acknowledged episodes do not count.
    """
    ends = {result.ended[0] for result in results if not result.acknowledged}
    return FAULTED if State.FAULT in ends else HELD if State.HOLD in ends else 0
