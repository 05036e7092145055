"""Collect, train, run: ``python -m benchmarks.teleop_end_to_end [hand=runs/push_t/ebt-xs-seed0]``.

Settings: hand (a checkpoint), demonstrations (20), episodes (20), minutes (10, of training),
folder (runs/collect). A scripted mouse stands in for a person's hand: it goes where the policy
``hand`` would, a tick late and in whole pixels. What is solved is recorded in real time, then
``ebt_policy.train`` learns from the recording and ``ebt_policy.real_robot.run`` runs the result;
each of the three is one command, as in docs/real_robot.md. Wants an idle machine, for half an
hour. Writes ``docs/results/collect.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.settings import command, settings, store
from ebt_policy.data.episodes import read_episodes
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.rollout import batch_observations
from ebt_policy.evaluation.statistics import mean_ci, percentiles
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.episode_runner import Episode, Session, tick_s
from ebt_policy.real_robot.inference_worker import ThreadBackground
from ebt_policy.real_robot.loop import Tick
from ebt_policy.real_robot.robots import load_robot
from ebt_policy.real_robot.run import HELD
from ebt_policy.real_robot.teleop import SIDE, TeleopSource

FIRST_SEED = 2 * EVALUATION_SEED  # no start that anything is evaluated on
LONGEST = 100  # episodes, until enough are solved


class ScriptedMouse:
    """Moves the mouse to where a policy would go next, when it has seen a tick.

    Args:
        checkpoint: of the policy.
        low, high: (2,) what the window's edges are, in units of the action.
    """

    def __init__(self, checkpoint: str, low: np.ndarray, high: np.ndarray) -> None:
        import pygame

        self._game: Any = pygame
        self._policy = load_policy_entries([checkpoint], torch.device("cpu"))[0].model
        self._low, self._high = low, high
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Before an episode."""
        self._generator = torch.Generator().manual_seed(seed)
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=self._policy.shape.n_obs_steps)
        self._next: list[np.ndarray] = []

    def __call__(self, tick: Tick) -> None:
        assert tick.observation is not None
        for _ in range(1 if self._seen else self._policy.shape.n_obs_steps):
            self._seen.append({"obs": tick.observation.values["obs"]})
        if not self._next:
            s, obs = self._policy.shape, batch_observations([EnvSpec.stack_history([*self._seen])])
            chunk = self._policy.predict_chunk(obs, generator=self._generator).actions[0].numpy()
            self._next = [*chunk[s.n_obs_steps - 1 :][: s.n_action_steps]]
        share = (self._next.pop(0) - self._low) / (self._high - self._low)
        at = tuple(round(SIDE * float(x)) for x in share.clip(0, 1))
        event = self._game.MOUSEMOTION
        move = self._game.event.Event(event, pos=at, rel=(0, 0), buttons=(0, 0, 0))
        self._game.event.post(move)


def collect(checkpoint: str, wanted: int, store_path: Path) -> dict[str, Any]:
    """Record until so many episodes were solved."""
    os.environ["SDL_VIDEODRIVER"] = "dummy"  # a window that nobody sees
    robot, clock = load_robot("sim_push_t", "robot.episode_s=60"), MonotonicClock()
    driver: Any = robot.connect(clock, film=True)
    driver.connect()
    dt, limits = tick_s(robot, 1.0), robot.safety
    background = ThreadBackground(clock)
    hand = TeleopSource("mouse", driver.render, limits.low, limits.high, dt, background)
    mouse = ScriptedMouse(checkpoint, limits.low, limits.high)
    session = Session(robot, driver, hand, clock, {}, record=store_path)
    session.loop.observers = [*session.loop.observers, mouse]
    session.prepare()
    episodes = []
    assert session.heart is not None
    with session.heart:
        for seed in range(FIRST_SEED, FIRST_SEED + LONGEST):
            mouse.begin(seed)
            episodes.append(session.episode(seed, keep=solved))
            kept = sum(episode.kept for episode in episodes)
            print(f"episode {len(episodes)}: {kept} of {wanted} kept", flush=True)
            if kept >= wanted:
                break
    hand.close()
    session.close()
    ticks = [tick for episode in episodes for tick in episode.ticks]
    return {
        "episodes": len(episodes),
        "kept": sum(episode.kept for episode in episodes),
        "minutes": sum(episode.seconds for episode in episodes) / 60,
        "late_ms": percentiles([1e3 * tick.late for tick in ticks]),
        "limited": sum(tick.limited for tick in ticks),
        "overruns": sum(episode.overruns for episode in episodes),
    }


def solved(episode: Episode) -> bool:
    """As ``keep=solved``."""
    return episode.completed and bool(episode.success)


def run(*arguments: str) -> str:
    """One command of the docs; an episode in which the robot was held counts as played."""
    command = [sys.executable, "-m", *arguments]
    if (code := subprocess.run(command).returncode) not in (0, HELD):
        raise subprocess.CalledProcessError(code, command)
    return " ".join(["python", "-m", *arguments])


def main() -> None:
    given = settings(
        hand="runs/push_t/ebt-xs-seed0", demonstrations=20, episodes=20, minutes=10.0,
        folder="runs/collect",
    )  # fmt: skip
    folder = Path(given.folder)
    recorded, learned, output = folder / "recorded", folder / "learned", folder / "run"
    if recorded.exists():
        sys.exit(f"error: {recorded} exists; remove it, or say another folder=...")
    collected = collect(given.hand, given.demonstrations, recorded)
    episodes = read_episodes(recorded)
    trained = run(
        "ebt_policy.train", "task=push_t", f"task.path={recorded}", "task.validation_episodes=1",
        f"train.minutes={given.minutes}", f"run_dir={learned}", "evaluation.episodes=0",
    )  # fmt: skip
    ran = run(
        "ebt_policy.real_robot.run", "robot=sim_push_t", f"checkpoint={learned}", "video=true",
        f"episodes={given.episodes}", "keep=all", f"output={output}", "live=false",
    )  # fmt: skip
    summary = json.loads((output / "summary.json").read_text())
    each = summary["each"]
    result = {
        "collected": {**collected, "rows": len(episodes.arrays["action"])},
        "score": mean_ci([row["score"] for row in each]),
        "success": summary["success"],
        "late_ms": summary["late_ms"],
        "latency_ms": summary["latency_ms"],
        "commands": [trained, ran],
        "command": command("collect"),
    }
    store("collect.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
