"""A rollout worker: a process that owns one environment and plays seeded episodes.

This module must not import torch, so that a worker starts in about a second and needs little
memory. The parent (`ebt_policy.envs.rollout`) sends an `EpisodeRequest` for each episode. The
worker then requests chunks of actions until the episode ends. Closing the pipe ends the worker.

    parent -> worker   EnvSpec, once | EpisodeRequest | chunk (T, A)
    worker -> parent   ("obs", {name: (To, ...)}) | ("done", EpisodeOutcome) | ("error", traceback)
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

AddFrame = Callable[[np.ndarray | None], None]  # records a frame; gets the remaining plan (n, A)
VIDEO_SPEED = 2  # videos play at twice the environment's rate


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to play.

    Attributes:
        seed: seed of the environment.
        video: path of the MP4 to write, or None.
        collect: whether to return the data of every step (`EpisodeOutcome.rows`).
        expert: whether the environment's own expert acts instead of the parent's policy.
    """

    seed: int
    video: str | None = None
    collect: bool = False
    expert: bool = False


@dataclass(frozen=True)
class EpisodeOutcome:
    """A finished episode.

    Attributes:
        score: best reward of the episode; with a perturbation, best reward from its event on.
        success: whether the environment reported success at any step that counts for `score`.
        length: number of steps.
        retries: number of grasps since the perturbation (see `PerturbationWrapper`).
        rows: data of each step, or None if they were not requested: "state" (length, S) and "obs"
            (length, Do) before the step, and "action" (length, A), clipped to the action space.
    """

    score: float
    success: bool
    length: int
    retries: int
    rows: dict[str, np.ndarray] | None


class EpisodeWorker:
    """A player of episodes in one environment; it requests actions through `connection`."""

    def __init__(self, spec: EnvSpec, connection: Connection):
        self._spec = spec
        self._connection = connection
        self._envs: dict[str | None, gymnasium.Env] = {}

    def play(self, request: EpisodeRequest) -> EpisodeOutcome:
        """Run one episode from reset to termination or time limit."""
        if request.video is None:
            return self._play(self._env(None), request, lambda plan: None)
        env = self._env("rgb_array")
        with _record_video(env, request.video) as add_frame:
            return self._play(env, request, add_frame)

    def _play(
        self, env: gymnasium.Env, request: EpisodeRequest, add_frame: AddFrame
    ) -> EpisodeOutcome:
        to, ta = self._spec.n_obs_steps, self._spec.n_action_steps
        obs, info = env.reset(seed=request.seed)
        history = deque([obs] * to, maxlen=to)  # The first observation is repeated as the past.
        score, success, is_over = -np.inf, False, False
        length, rows = 0, {"obs": [], "state": [], "action": []}
        expert = env.unwrapped.expert(_expert_rng(request.seed)) if request.expert else None  # type: ignore[attr-defined]
        # Rendering is slow, so frames that no policy sees are skipped. A perturbation can return
        # earlier observations, so all frames are rendered if there is one.
        can_skip = hasattr(env.unwrapped, "skip_rendering") and self._spec.perturbation is None
        while not is_over:
            if expert is None:
                self._connection.send(("obs", self._spec.stack_history(history)))
                plan = self._spec.future_actions(self._connection.recv())
            else:
                plan = np.asarray(expert())[None]
            if isinstance(env.action_space, Box):
                plan = np.clip(plan, env.action_space.low, env.action_space.high)
            for i, action in enumerate(plan[:ta]):
                add_frame(plan[i:])
                if can_skip:  # The policy sees only the observations after the last To actions.
                    env.unwrapped.skip_rendering = request.expert or i < ta - to  # type: ignore[attr-defined]
                if request.collect:
                    low_dim = obs["obs"] if isinstance(obs, dict) else obs
                    row = {"obs": low_dim, "state": info["state"], "action": action}
                    for key, value in row.items():
                        rows[key].append(value)
                obs, reward, terminated, truncated, info = env.step(action)
                history.append(obs)
                length += 1
                if info.get("perturbed"):  # The score measures recovery, so it starts here.
                    score, success = -np.inf, False
                score = max(score, float(reward))
                success = success or bool(info.get("is_success", False))
                is_over = terminated or truncated
                if is_over:
                    break
        add_frame(None)
        return EpisodeOutcome(
            score,
            success,
            length,
            int(info.get("retries", 0)),
            {key: np.stack(row) for key, row in rows.items()} if request.collect else None,
        )

    def _env(self, render_mode: str | None) -> gymnasium.Env:
        if render_mode not in self._envs:
            self._envs[render_mode] = self._spec.make(render_mode)
        return self._envs[render_mode]


def _expert_rng(seed: int) -> np.random.Generator:
    # The scene uses the seed itself and the perturbation [seed, 1], so this stream is independent.
    return np.random.default_rng([seed, 2])


@contextmanager
def _record_video(env: gymnasium.Env, path: str) -> Iterator[AddFrame]:
    """Record one episode to an MP4, and draw the plan if the environment has `draw_plan`."""
    from ebt_policy.envs.mp4_writer import video_writer  # Most workers record no video.

    draw_plan = getattr(env.unwrapped, "draw_plan", None)
    with video_writer(path, VIDEO_SPEED * env.metadata.get("render_fps", 10)) as write:

        def add_frame(plan: np.ndarray | None) -> None:
            frame = np.ascontiguousarray(env.render())
            if plan is not None and draw_plan is not None:
                frame = draw_plan(frame, plan)
            write(frame)

        yield add_frame


def serve(connection: Connection) -> None:
    """Receive the spec, then play every requested episode until the parent closes the pipe."""
    try:
        worker = EpisodeWorker(connection.recv(), connection)
        while True:
            connection.send(("done", worker.play(connection.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception:  # The parent reports errors of every kind.
        connection.send(("error", traceback.format_exc()))


def main(fileno: int) -> None:
    """Serve the connection that was inherited as file descriptor `fileno`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # On Ctrl-C, the parent ends the workers.
    serve(Connection(fileno))
