"""A rollout worker: a process that owns one environment and plays whole seeded episodes.

It must not import torch: a worker starts in about a second and stays small. The parent
(`ebt_policy.envs.rollout`) sends an `EpisodeRequest` for each episode, and the worker then asks for
one chunk of actions after the other until the episode is over. It ends when the parent closes the
pipe.

    parent -> worker   EnvSpec, once | Order | chunk (T, A)
    worker -> parent   ("obs", {name: (To, ...)}) | ("done", Played) | ("error", traceback)
"""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from ebt_policy.envs.env_spec import EnvSpec

Shoot = Callable[[np.ndarray | None], None]  # films a frame with the plan (n, A) still ahead
VIDEO_SPEED = 2  # videos play at twice the environment's rate


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to play: its seed, where to write its video, whether to return its steps, and
    whether the environment's own expert plays it, instead of the parent."""

    seed: int
    video: str | None = None
    collect: bool = False
    expert: bool = False


@dataclass(frozen=True)
class EpisodeOutcome:
    """An episode that is over.

    Attributes:
        score: best reward of the episode, from the perturbation on if there was one.
        success: whether the environment reported success at any of these steps.
        length: number of steps.
        retries: grasps since the perturbation (see `Perturbed`).
        rows: where asked for, of each step `state` (length, S), `info["state"]` before it, `obs`
            (length, Do), the observation before it, and `action` (length, A), as executed.
    """

    score: float
    success: bool
    length: int
    retries: int
    rows: dict[str, np.ndarray] | None


class EpisodeWorker:
    """Plays episodes in one environment, asking `connection` for chunks of actions."""

    def __init__(self, spec: EnvSpec, connection: Connection):
        self._spec = spec
        self._connection = connection
        self._envs: dict[str | None, gymnasium.Env] = {}

    def play(self, order: EpisodeRequest) -> EpisodeOutcome:
        """Run one episode from reset to termination or time limit."""
        if order.video is None:
            return self._play(self._env(None), order, lambda plan: None)
        env = self._env("rgb_array")
        with _film(env, order.video) as shoot:
            return self._play(env, order, shoot)

    def _play(self, env: gymnasium.Env, order: EpisodeRequest, shoot: Shoot) -> EpisodeOutcome:
        to, ta = self._spec.n_obs_steps, self._spec.n_action_steps
        obs, info = env.reset(seed=order.seed)
        recent = deque([obs] * to, maxlen=to)  # the first observation fills the missing past
        score, success, over = -np.inf, False, False
        length, rows = 0, {"obs": [], "state": [], "action": []}
        expert = env.unwrapped.expert(_expert_rng(order.seed)) if order.expert else None  # type: ignore[attr-defined]
        # Cameras are slow to draw; perturbations may show what was seen before, so then all are.
        lazy = hasattr(env.unwrapped, "blind") and self._spec.perturbation is None
        while not over:
            if expert is None:
                self._connection.send(("obs", self._spec.stack(recent)))
                plan = self._spec.plan(self._connection.recv())
            else:
                plan = np.asarray(expert())[None]
            if isinstance(env.action_space, Box):
                plan = np.clip(plan, env.action_space.low, env.action_space.high)
            for i, action in enumerate(plan[:ta]):
                shoot(plan[i:])
                if lazy:  # the policy sees what follows the last To actions of a chunk
                    env.unwrapped.blind = order.expert or i < ta - to  # type: ignore[attr-defined]
                if order.collect:
                    low_dim = obs["obs"] if isinstance(obs, dict) else obs
                    now = {"obs": low_dim, "state": info["state"], "action": action}
                    for key, row in now.items():
                        rows[key].append(row)
                obs, reward, terminated, truncated, info = env.step(action)
                recent.append(obs)
                length += 1
                if info.get("perturbed"):  # what came before says nothing of recovery
                    score, success = -np.inf, False
                score = max(score, float(reward))
                success = success or bool(info.get("is_success", False))
                over = terminated or truncated
                if over:
                    break
        shoot(None)
        return EpisodeOutcome(
            score,
            success,
            length,
            int(info.get("retries", 0)),
            {key: np.stack(row) for key, row in rows.items()} if order.collect else None,
        )

    def _env(self, render_mode: str | None) -> gymnasium.Env:
        if render_mode not in self._envs:
            self._envs[render_mode] = self._spec.make(render_mode)
        return self._envs[render_mode]


def _expert_rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 2])  # apart from the scene's and the perturbations' draws


@contextmanager
def _film(env: gymnasium.Env, path: str) -> Iterator[Shoot]:
    """The video of one episode, with the plan drawn where the environment knows how to."""
    from ebt_policy.envs.mp4_writer import video_writer  # most workers never film

    draw = getattr(env.unwrapped, "draw_plan", None)
    with video_writer(path, VIDEO_SPEED * env.metadata.get("render_fps", 10)) as add:

        def shoot(plan: np.ndarray | None) -> None:
            frame = np.ascontiguousarray(env.render())
            if plan is not None and draw is not None:
                frame = draw(frame, plan)
            add(frame)

        yield shoot


def serve(connection: Connection) -> None:
    """Receive the spec, then play every ordered episode until the parent closes the pipe."""
    try:
        player = EpisodeWorker(connection.recv(), connection)
        while True:
            connection.send(("done", player.play(connection.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception:  # whatever it is, the parent reports it
        connection.send(("error", traceback.format_exc()))


def main(fileno: int) -> None:
    """Serve the connection that was inherited as file descriptor `fileno`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends the workers
    serve(Connection(fileno))
