"""Teleoperate, train, run: the three commands of docs/real_robot.md, with a scripted mouse.

The mouse replaces a person. It moves to the actions of a policy, one tick late and in whole pixels.
Successful episodes are recorded in real time. ``ebt_policy.train`` trains a policy on the
recording, and ``ebt_policy.real_robot.run`` runs it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.study import StudyContext
from ebt_policy.data.episode_store import read_episodes
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.rollout import batch_observations
from ebt_policy.evaluation.statistics import mean_ci, percentiles
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.episode_result import EpisodeResult
from ebt_policy.real_robot.episode_runner import EpisodeRunner, tick_seconds
from ebt_policy.real_robot.episode_series import HELD
from ebt_policy.real_robot.inference_worker import ThreadWorker
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.robots import load_robot
from ebt_policy.real_robot.teleop import WINDOW_SIZE, Mouse
from ebt_policy.real_robot.teleop_device import TeleopContext

FIRST_SEED = 2 * EVALUATION_SEED  # No evaluation uses these initial states.
MAX_EPISODES = 100


def teleop_end_to_end(context: StudyContext) -> dict[str, Any]:
    """Record, train and run; return statistics of the recording and the scores of the policy.

    The study has the options ``demonstrations``, ``minutes`` (of training) and ``episodes``.

    Raises:
        SystemExit: the folder already contains a recording.
    """
    options, folder, (checkpoint,) = context.options, context.folder, context.checkpoints()
    recorded = folder / "recorded"
    if recorded.exists():
        sys.exit(f"error: {recorded} exists; remove it, or choose another folder=PATH.")
    collected = record_demonstrations(checkpoint, options.demonstrations, recorded)
    episodes = read_episodes(recorded)
    train_command = run_module("ebt_policy.train", *train_arguments(options))
    run_command = run_module("ebt_policy.real_robot.run", *run_arguments(options))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return {
        "collected": {**collected, "rows": len(episodes.arrays["action"])},
        "score": mean_ci([row["score"] for row in summary["each"]]),
        "success": summary["success"],
        "late_ms": summary["late_ms"],
        "latency_ms": summary["latency_ms"],
        "commands": [train_command, run_command],
        "command": context.command,
    }


def train_arguments(options: SimpleNamespace) -> list[str]:
    """Return the arguments of ``ebt_policy.train`` for the recording."""
    folder = Path(options.folder)
    return [
        "task=push_t", f"task.path={folder / 'recorded'}", "task.validation_episodes=1",
        f"train.minutes={options.minutes}", f"run_dir={folder / 'learned'}",
        "evaluation.episodes=0", *shlex.split(options.overrides),
    ]  # fmt: skip


def run_arguments(options: SimpleNamespace) -> list[str]:
    """Return the arguments of ``ebt_policy.real_robot.run`` for the trained policy."""
    folder = Path(options.folder)
    return [
        "robot=sim_push_t", f"checkpoint={folder / 'learned'}", "video=true",
        f"episodes={options.episodes}", "keep=all", f"output={folder / 'run'}", "live=false",
    ]  # fmt: skip


def run_module(*arguments: str) -> str:
    """Run a command of the docs and return it; a run with a held episode is not an error."""
    command = [sys.executable, "-m", *arguments]
    if (code := subprocess.run(command).returncode) not in (0, HELD):
        raise subprocess.CalledProcessError(code, command)
    return " ".join(["python", "-m", *arguments])


class ScriptedMouse:
    """A mouse that moves to the next action of a policy, one tick late and in whole pixels.

    Args:
        checkpoint: checkpoint of the policy.
        low, high: actions (2,) at the edges of the window.
    """

    def __init__(self, checkpoint: str, low: np.ndarray, high: np.ndarray) -> None:
        import pygame

        self._game: Any = pygame
        self._policy = load_policy_entries([checkpoint], torch.device("cpu"))[0].model
        self._low, self._high = low, high
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Start an episode."""
        self._generator = torch.Generator().manual_seed(seed)
        self._recent: deque[dict[str, np.ndarray]] = deque(maxlen=self._policy.shape.n_obs_steps)
        self._next: list[np.ndarray] = []

    def __call__(self, tick: Tick) -> None:
        assert tick.observation is not None
        for _ in range(1 if self._recent else self._policy.shape.n_obs_steps):
            self._recent.append({"obs": tick.observation.values["obs"]})
        if not self._next:
            shape = self._policy.shape
            obs = batch_observations([EnvSpec.stack_history([*self._recent])])
            chunk = self._policy.predict_chunk(obs, generator=self._generator).actions[0].numpy()
            self._next = [*chunk[shape.n_obs_steps - 1 :][: shape.n_action_steps]]
        share = (self._next.pop(0) - self._low) / (self._high - self._low)
        position = tuple(round(WINDOW_SIZE * float(x)) for x in share.clip(0, 1))
        event = self._game.MOUSEMOTION
        move = self._game.event.Event(event, pos=position, rel=(0, 0), buttons=(0, 0, 0))
        self._game.event.post(move)


def record_demonstrations(checkpoint: str, num_episodes: int, store_path: Path) -> dict[str, Any]:
    """Record in real time until ``num_episodes`` episodes succeed, and return statistics.

    At most `MAX_EPISODES` are played.
    """
    os.environ["SDL_VIDEODRIVER"] = "dummy"  # No display is needed.
    robot, clock = load_robot("sim_push_t", "robot.episode_s=60"), MonotonicClock()
    driver: Any = robot.make_driver(clock, render=True)
    driver.connect()
    dt, limits = tick_seconds(robot, 1.0), robot.safety
    worker = ThreadWorker(clock)
    teleop = Mouse(TeleopContext(driver, limits, dt, worker))
    mouse = ScriptedMouse(checkpoint, limits.low, limits.high)
    runner = EpisodeRunner(robot, driver, teleop, clock, {}, record=store_path)
    runner.loop.observers = [*runner.loop.observers, mouse]
    runner.prepare()
    episodes = []
    assert runner.watchdog is not None
    with runner.watchdog:
        for seed in range(FIRST_SEED, FIRST_SEED + MAX_EPISODES):
            mouse.begin(seed)
            episodes.append(runner.run_episode(seed, should_keep=successful))
            num_kept = sum(episode.kept for episode in episodes)
            print(f"episode {len(episodes)}: {num_kept} of {num_episodes} kept", flush=True)
            if num_kept >= num_episodes:
                break
    teleop.close()
    runner.close()
    ticks = [tick for episode in episodes for tick in episode.ticks]
    return {
        "episodes": len(episodes),
        "kept": sum(episode.kept for episode in episodes),
        "minutes": sum(episode.seconds for episode in episodes) / 60,
        "late_ms": percentiles([1e3 * tick.late for tick in ticks]),
        "limited": sum(tick.is_clamped for tick in ticks),
        "overruns": sum(episode.overruns for episode in episodes),
    }


def successful(episode: EpisodeResult) -> bool:
    """Return whether to keep an episode, as ``keep=successful`` does."""
    return episode.completed and bool(episode.success)
