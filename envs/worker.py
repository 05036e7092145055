"""A rollout worker: a process that owns one environment and plays seeded episodes.

It must not import torch, so that it starts in about a second and stays small. The parent
(`ebt_policy.envs.rollout`) sends an `EpisodeRequest` for each episode. The worker then requests one
chunk of actions after the other until the episode is over. It ends when the parent closes the pipe.

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

AddFrame = Callable[[np.ndarray | None], None]  # records a frame, with the plan (n, A) still ahead
VIDEO_SPEED = 2  # videos play at twice the environment's rate


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to play.

    Attributes:
        seed: of the environment.
        video: path of the MP4 to write, or None.
        collect: return the rows of every step.
        expert: the environment's own expert plays it, instead of the parent's policy.
    """

    seed: int
    video: str | None = None
    collect: bool = False
    expert: bool = False


@dataclass(frozen=True)
class EpisodeOutcome:
    """A finished episode.

    Attributes:
        score: best reward of the episode; with a perturbation, from its event on.
        success: whether the environment reported success at any of these steps.
        length: number of steps.
        retries: grasps since the perturbation (see `PerturbationWrapper`).
        rows: if requested, of each step `state` (length, S), `info["state"]` before it, `obs`
            (length, Do), the observation before it, and `action` (length, A), as executed.
    """

    score: float
    success: bool
    length: int
    retries: int
    rows: dict[str, np.ndarray] | None


class EpisodeWorker:
    """A player of episodes in one environment, which requests actions over `connection`."""

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
        history = deque([obs] * to, maxlen=to)  # the first observation fills the missing past
        score, success, is_over = -np.inf, False, False
        length, rows = 0, {"obs": [], "state": [], "action": []}
        expert = env.unwrapped.expert(_expert_rng(request.seed)) if request.expert else None  # type: ignore[attr-defined]
        # Rendering is slow, so frames that no policy sees are skipped. A perturbation may show
        # earlier observations, so with one all frames are rendered.
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
                if can_skip:  # the policy sees what follows the last To actions of a chunk
                    env.unwrapped.skip_rendering = request.expert or i < ta - to  # type: ignore[attr-defined]
                if request.collect:
                    low_dim = obs["obs"] if isinstance(obs, dict) else obs
                    row = {"obs": low_dim, "state": info["state"], "action": action}
                    for key, value in row.items():
                        rows[key].append(value)
                obs, reward, terminated, truncated, info = env.step(action)
                history.append(obs)
                length += 1
                if info.get("perturbed"):  # the score measures recovery: it starts at the event
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
    # Independent of the generators of the scene and of the perturbation.
    return np.random.default_rng([seed, 2])


@contextmanager
def _record_video(env: gymnasium.Env, path: str) -> Iterator[AddFrame]:
    """Record one episode to an MP4, with the plan drawn over it if the environment can draw it."""
    from ebt_policy.envs.mp4_writer import video_writer  # most workers record no video

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
    except Exception:  # of any kind: the parent reports it
        connection.send(("error", traceback.format_exc()))


def main(fileno: int) -> None:
    """Serve the connection that was inherited as file descriptor `fileno`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends the workers
    serve(Connection(fileno))
