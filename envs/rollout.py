"""Seeded rollouts: worker processes step environments, and the parent predicts in batches.

One worker owns one environment and plays complete episodes. The initial state and the noise of an
episode depend on its seed alone. The results therefore do not depend on the number of workers,
except for rounding in the batched predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import numpy as np
import torch

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.errors import EnvError
from ebt_policy.envs.worker import EpisodeOutcome, EpisodeRequest
from ebt_policy.envs.worker_process import WorkerProcess


class Policy(Protocol):
    """A predictor of action chunks; see `ebt_policy.policies.base`."""

    def predict_chunk(self, obs: dict[str, torch.Tensor], *, generator: Any = None) -> Any: ...


@dataclass(frozen=True)
class ChunkRecord:
    """One prediction within an episode.

    Attributes:
        step: environment step of the prediction.
        energy, grad_norm, steps_used: values of the predicted `Chunk`; None if it has none.
        latency_ms: wall time of the prediction of the whole batch.
    """

    step: int
    energy: float | None
    grad_norm: float | None
    steps_used: float | None
    latency_ms: float


@dataclass
class EpisodeResult:
    """One finished episode.

    Attributes:
        seed: seed of the environment.
        score, success, length, retries, rows: see `EpisodeOutcome`.
        chunks: one record for each prediction, in order.
        video: path of its MP4, or None.
    """

    seed: int
    score: float = 0.0
    success: bool = False
    length: int = 0
    retries: int = 0
    chunks: list[ChunkRecord] = field(default_factory=list)
    video: str | None = None
    rows: dict[str, np.ndarray] | None = None

    def finish(self, outcome: EpisodeOutcome) -> EpisodeResult:
        """Copy the outcome that a worker returned into this result, and return it."""
        self.score, self.success, self.length = outcome.score, outcome.success, outcome.length
        self.retries, self.rows = outcome.retries, outcome.rows
        return self


class RolloutPools:
    """A context manager that keeps one pool and reuses it while the spec stays the same.

    Args:
        workers: as in `RolloutPool`.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._stack = ExitStack()
        self._pool: RolloutPool | None = None

    def for_spec(self, spec: EnvSpec) -> RolloutPool:
        """Return a pool that plays `spec`, and close a pool of another spec."""
        if self._pool is None or self._pool.spec != spec:
            self._stack.close()
            self._pool = self._stack.enter_context(RolloutPool(spec, self._workers))
        return self._pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class RolloutPool:
    """A pool of worker processes that stay alive between rollouts (a start takes about a second).

    Use it as a context manager, or call `close`. An error during a rollout also closes it.

    Args:
        spec: the environment and the horizons.
        workers: number of processes, each with one environment.

    Raises:
        EnvError: ``workers`` is below 1.
    """

    def __init__(self, spec: EnvSpec, workers: int):
        if workers < 1:
            raise EnvError(f"workers must be at least 1, got {workers}.")
        self.spec = spec
        self._workers = [WorkerProcess(spec) for _ in range(workers)]

    def rollout(
        self,
        policy: Policy,
        seeds: Sequence[int],
        *,
        videos: int = 0,
        video_dir: str | Path | None = None,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        collect: bool = False,
    ) -> list[EpisodeResult]:
        """Play one episode for each seed and return the results in the order of `seeds`.

        Args:
            policy: its `predict_chunk` gets the output of `batch_observations`, on the CPU, and a
                list of B CPU generators. Each generator is seeded by `noise_seed` of its episode.
            seeds: seeds of the episodes.
            videos: number of episodes to record, from the first one on.
            video_dir: folder of the videos, which are named seed_<seed>.mp4.
            on_episode: called with each result, in order of completion.
            collect: whether to keep observation, state and action of each step
                (`EpisodeResult.rows`).

        Raises:
            EnvError: a chunk is too short for the spec, or not finite.
            ValueError: `videos` is positive and `video_dir` is missing.
            RuntimeError: a worker failed; its traceback is in the message.
        """
        if videos > 0 and video_dir is None:
            raise ValueError(f"videos={videos} requires video_dir, the folder to write them to")
        results = [EpisodeResult(int(seed)) for seed in seeds]
        for result in results[:videos]:
            result.video = str(Path(str(video_dir)) / f"seed_{result.seed}.mp4")
        with self._close_on_error():
            self._run(policy, results, on_episode, collect)
        return results

    def _run(
        self,
        policy: Policy,
        results: list[EpisodeResult],
        on_episode: Callable[[EpisodeResult], None] | None,
        collect: bool,
    ) -> None:
        pending = iter(results)
        playing: dict[WorkerProcess, _Episode] = {}

        def start(worker: WorkerProcess) -> None:
            if (result := next(pending, None)) is not None:
                playing[worker] = _Episode(result)
                worker.send(EpisodeRequest(result.seed, result.video, collect))

        for worker in self._workers:
            start(worker)
        while playing:
            # All workers advance in lock-step and in a fixed order, so that batches are full and
            # reproducible. A worker that finishes an episode joins the batch with its next one.
            batch: list[tuple[WorkerProcess, _Episode, dict[str, np.ndarray]]] = []
            for worker in [w for w in self._workers if w in playing]:
                message = worker.receive()
                while isinstance(message, EpisodeOutcome):
                    result = playing.pop(worker).result.finish(message)
                    start(worker)
                    if on_episode is not None:
                        on_episode(result)
                    message = worker.receive() if worker in playing else None
                if message is not None:
                    batch.append((worker, playing[worker], message))
            if batch:
                chunks = _predict(policy, self.spec, batch)
                for (worker, _, _), chunk in zip(batch, chunks, strict=True):
                    worker.send(chunk)

    def demonstrate(
        self,
        seeds: Sequence[int],
        *,
        on_episode: Callable[[EpisodeResult], None] | None = None,
    ) -> list[EpisodeResult]:
        """Let the environment's own expert play one episode for each seed, and collect the rows.

        Args:
            seeds: seeds of the episodes.
            on_episode: called with each result, in order of completion.

        Returns:
            The results in the order of `seeds`.

        Raises:
            RuntimeError: a worker failed, for example because the task has no expert.
        """
        results = [EpisodeResult(int(seed)) for seed in seeds]
        pending = iter(results)
        playing: dict[WorkerProcess, EpisodeResult] = {}

        def start(worker: WorkerProcess) -> None:
            if (result := next(pending, None)) is not None:
                playing[worker] = result
                worker.send(EpisodeRequest(result.seed, collect=True, expert=True))

        with self._close_on_error():
            for worker in self._workers:
                start(worker)
            while playing:
                ready: Any = wait(cast(Any, list(playing)))
                for worker in ready:
                    result = playing.pop(worker).finish(worker.receive())
                    start(worker)
                    if on_episode is not None:
                        on_episode(result)
        return results

    @contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """Terminate all workers after an error in the block, including busy ones."""
        if not self._workers:
            raise RuntimeError("this RolloutPool is closed; create a new one")
        try:
            yield
        except BaseException:
            self.close(kill=True)
            raise

    def close(self, *, kill: bool = False) -> None:
        """End idle workers; with `kill`, terminate busy ones, too."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end(kill)
        for worker in workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(kill=kind is not None)


def rollout(
    policy: Policy,
    spec: EnvSpec,
    seeds: Sequence[int],
    *,
    workers: int | None = None,
    videos: int = 0,
    video_dir: str | Path | None = None,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    collect: bool = False,
) -> list[EpisodeResult]:
    """Play one episode for each seed in a pool that is closed afterwards.

    Args:
        spec, workers: see `RolloutPool`; `workers` is min(len(seeds), 8) by default.
        policy, seeds, videos, video_dir, on_episode, collect: see `RolloutPool.rollout`.
    """
    if len(seeds) == 0:
        return []
    with RolloutPool(spec, min(len(seeds), 8) if workers is None else workers) as pool:
        return pool.rollout(
            policy,
            seeds,
            videos=videos,
            video_dir=video_dir,
            on_episode=on_episode,
            collect=collect,
        )


def noise_seed(seed: int) -> int:
    """Return the seed of the policy's noise generator in the episode of `seed`."""
    words = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return int(words[0]) >> 1


class _Episode:
    """A running episode: its incomplete result and the generator of its noise."""

    def __init__(self, result: EpisodeResult):
        self.result = result
        self.generator = torch.Generator().manual_seed(noise_seed(result.seed))


def batch_observations(observations: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Batch B observations (see `EnvSpec.stack_history`) for a policy.

    Returns:
        "obs" (B, To, Do) float32, and for each camera its images (B, To, H, W, 3) uint8.
    """
    names = observations[0]
    rows = {name: torch.from_numpy(np.stack([o[name] for o in observations])) for name in names}
    return {**rows, "obs": rows["obs"].float()}


def _predict(
    policy: Policy,
    spec: EnvSpec,
    batch: list[tuple[WorkerProcess, _Episode, dict[str, np.ndarray]]],
) -> np.ndarray:
    """Predict chunks (B, T, A) for the batch and append a record to each episode."""
    obs = batch_observations([observation for _, _, observation in batch])
    generators = [episode.generator for _, episode, _ in batch]
    start = time.perf_counter()
    chunk = policy.predict_chunk(obs, generator=generators)
    actions = chunk.actions.detach().cpu().numpy()  # This waits for the device.
    latency_ms = (time.perf_counter() - start) * 1e3
    extras = {name: _floats(chunk, name) for name in ("energy", "grad_norm", "steps_used")}
    for i, (_, episode, _) in enumerate(batch):
        if not np.isfinite(spec.future_actions(actions[i])).all():
            raise EnvError(
                "the policy predicted NaN or infinity in the episode of seed "
                f"{episode.result.seed}; evaluate an earlier checkpoint, or lower train.lr."
            )
        episode.result.chunks.append(
            ChunkRecord(
                step=len(episode.result.chunks) * spec.n_action_steps,
                latency_ms=latency_ms,
                **{name: values[i] if values else None for name, values in extras.items()},
            )
        )
    return actions


def _floats(chunk: Any, name: str) -> list[float] | None:
    values = getattr(chunk, name, None)
    return None if values is None else [float(value) for value in values]
