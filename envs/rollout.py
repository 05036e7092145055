"""Seeded rollouts of a policy: worker processes step environments, the parent batches the policy.

One worker owns one environment and plays whole episodes. The initial state and the noise of an
episode depend on its seed alone, so the result does not depend on the number of workers (up to the
rounding of the policy's own batched arithmetic).
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
from ebt_policy.envs.process import WorkerProcess
from ebt_policy.envs.worker import EpisodeOutcome, EpisodeRequest


class Policy(Protocol):
    """Anything that predicts chunks of actions; see `ebt_policy.models`."""

    def predict_chunk(self, obs: dict[str, torch.Tensor], *, generator: Any = None) -> Any: ...


@dataclass(frozen=True)
class ChunkRecord:
    """One prediction within an episode.

    Attributes:
        step: environment step at which it was made.
        energy, grad_norm, steps_used: as the policy reports them; None where it does not.
        latency_ms: wall time of the whole batch's prediction.
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
        score: best reward of the episode.
        success: whether the environment reported success at any step.
        length: number of steps.
        retries: grasps since the perturbation, if there was one.
        chunks: one record a prediction, in order.
        video: path of its MP4, or None.
        rows: what each step saw and did, when collected; see
            `ebt_policy.envs.worker.EpisodeOutcome`.
    """

    seed: int
    score: float = 0.0
    success: bool = False
    length: int = 0
    retries: int = 0
    chunks: list[ChunkRecord] = field(default_factory=list)
    video: str | None = None
    rows: dict[str, np.ndarray] | None = None

    def finish(self, played: EpisodeOutcome) -> EpisodeResult:
        """Take over what a worker played."""
        self.score, self.success, self.length = played.score, played.success, played.length
        self.retries, self.rows = played.retries, played.rows
        return self


class RolloutPools:
    """One pool at a time, kept while the spec stays the same; a context manager.

    Args:
        workers: as in `RolloutPool`.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._stack = ExitStack()
        self._pool: RolloutPool | None = None

    def of(self, spec: EnvSpec) -> RolloutPool:
        """A pool that plays `spec`; the one before it is closed."""
        if self._pool is None or self._pool.spec != spec:
            self._stack.close()
            self._pool = self._stack.enter_context(RolloutPool(spec, self._workers))
        return self._pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class RolloutPool:
    """Worker processes that stay alive between rollouts (starting one takes about a second).

    Use it as a context manager, or call `close`. After an error it is closed.

    Args:
        spec: the environment and the horizons.
        workers: number of processes, each with one environment.
    """

    def __init__(self, spec: EnvSpec, workers: int):
        if workers < 1:
            raise ValueError(f"a rollout needs at least 1 worker, got {workers}")
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
        """Play one episode a seed and return the results in the order of `seeds`.

        Args:
            policy: its `predict_chunk` gets what `batched` gives, on the CPU, and a list of B CPU
                generators, one an episode, seeded from the episode's seed.
            videos: the first so many episodes are filmed to `video_dir`/seed_<seed>.mp4.
            on_episode: called with each result as soon as it is there, in order of completion.
            collect: keep what each step saw and did (`EpisodeResult.rows`).

        Raises:
            ValueError: `videos` without `video_dir`; a chunk too short for the spec or not finite.
            RuntimeError: a worker failed; its traceback is in the message.
        """
        if videos > 0 and video_dir is None:
            raise ValueError("videos need a video_dir to be written to")
        results = [EpisodeResult(int(seed)) for seed in seeds]
        for result in results[:videos]:
            result.video = str(Path(str(video_dir)) / f"seed_{result.seed}.mp4")
        with self._at_work():
            self._run(policy, results, on_episode, collect)
        return results

    def _run(
        self,
        policy: Policy,
        results: list[EpisodeResult],
        on_episode: Callable[[EpisodeResult], None] | None,
        collect: bool,
    ) -> None:
        todo = iter(results)
        playing: dict[WorkerProcess, _Episode] = {}

        def start(worker: WorkerProcess) -> None:
            if (result := next(todo, None)) is not None:
                playing[worker] = _Episode(result)
                worker.send(EpisodeRequest(result.seed, result.video, collect))

        for worker in self._workers:
            start(worker)
        while playing:
            # Lock-step, in the order of the workers: every batch is full and made up the same way
            # each time. A worker that finishes an episode joins the batch with its next one.
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
        """Let the environment's own expert play one episode a seed, and keep their rows.

        Raises:
            RuntimeError: a worker failed, perhaps since there is no expert.
        """
        results = [EpisodeResult(int(seed)) for seed in seeds]
        todo = iter(results)
        playing: dict[WorkerProcess, EpisodeResult] = {}

        def start(worker: WorkerProcess) -> None:
            if (result := next(todo, None)) is not None:
                playing[worker] = result
                worker.send(EpisodeRequest(result.seed, collect=True, expert=True))

        with self._at_work():
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
    def _at_work(self) -> Iterator[None]:
        """The workers play; after an error they are closed, whatever they are doing."""
        if not self._workers:
            raise RuntimeError("this RolloutPool is closed; make a new one")
        try:
            yield
        except BaseException:
            self.close(kill=True)
            raise

    def close(self, *, kill: bool = False) -> None:
        """End the workers; with `kill`, without waiting for what they are doing."""
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
    """Play one episode a seed, in workers started for it; the rest is `RolloutPool.rollout`'s.

    Args:
        workers: number of processes, min(len(seeds), 8) by default.
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
    """The seed of the generator that a policy gets in the episode of `seed`."""
    words = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return int(words[0]) >> 1


class _Episode:
    """An episode in play: the result being filled and the generator of its noise."""

    def __init__(self, result: EpisodeResult):
        self.result = result
        self.generator = torch.Generator().manual_seed(noise_seed(result.seed))


def batched(observations: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """B observations (see `EnvSpec.stack`) as a policy takes them.

    Returns:
        {"obs": (B, To, Do) float32} and under the name of each camera (B, To, H, W, 3) uint8.
    """
    names = observations[0]
    rows = {name: torch.from_numpy(np.stack([o[name] for o in observations])) for name in names}
    return {**rows, "obs": rows["obs"].float()}


def _predict(
    policy: Policy,
    spec: EnvSpec,
    batch: list[tuple[WorkerProcess, _Episode, dict[str, np.ndarray]]],
) -> np.ndarray:
    """One prediction for the whole batch: chunks (B, T, A), recorded in the episodes."""
    obs = batched([seen for _, _, seen in batch])
    generators = [episode.generator for _, episode, _ in batch]
    start = time.perf_counter()
    chunk = policy.predict_chunk(obs, generator=generators)
    actions = chunk.actions.detach().cpu().numpy()  # waits for the device
    latency_ms = (time.perf_counter() - start) * 1e3
    extras = {name: _floats(chunk, name) for name in ("energy", "grad_norm", "steps_used")}
    for i, (_, episode, _) in enumerate(batch):
        if not np.isfinite(spec.plan(actions[i])).all():
            raise ValueError(
                f"the policy predicted NaN or infinity in the episode of seed {episode.result.seed}"
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
