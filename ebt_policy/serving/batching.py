"""Prediction for several clients: requests that wait at the same time become one batch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebt_policy.policies import Chunk, ChunkConstraints, Policy
from ebt_policy.serving.protocol import Request


@dataclass(frozen=True)
class Prediction:
    """The answer to one request.

    Attributes:
        actions: (T - To + 1, A) float32, from the action that follows the newest observation on.
        energy: final energy; None for a policy without an energy.
        steps: number of refinement passes.
        wait_s, infer_s: time before the prediction began, and its duration, s.
    """

    actions: np.ndarray
    energy: float | None
    steps: int
    wait_s: float
    infer_s: float


@dataclass
class _Waiting:
    request: Request
    future: asyncio.Future[Prediction]
    since: float


class BatchedPredictor:
    """A policy that predicts for many clients in one thread, outside the event loop.

    While a prediction runs, new requests wait. The next batch is the oldest request with all others
    of the same `Request.batch_key`, so nobody waits for a batch to fill.

    Args:
        policy: the policy.
        max_batch: largest number of requests of a batch.
        pad: whether a batch has either one or ``max_batch`` rows, for a compiled policy.
    """

    def __init__(self, policy: Policy, max_batch: int, *, pad: bool = False) -> None:
        self.policy, self.max_batch, self._pad = policy, max_batch, pad
        self._waiting: deque[_Waiting] = deque()
        self._alone: deque[_Waiting] = deque()  # requests of a batch that failed
        self._has_work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._seeds = torch.Generator()
        self._seeds.seed()

    def warm_up(self, requests: Sequence[Request]) -> None:
        """Predict for each request, with every size of a batch that will be compiled."""
        for request in requests:
            for size in {1, self.max_batch} if self._pad else {1}:
                self._thread.submit(self._predict, [request] * size).result()

    async def predict(self, request: Request) -> Prediction:
        """Return the prediction for a request. A cancelled request is forgotten.

        Raises:
            Exception: what the policy raised.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, future, time.monotonic()))
        self._has_work.set()
        return await future

    async def run(self) -> None:
        """Predict until the task is cancelled."""
        while True:
            await self._has_work.wait()
            batch = self._next_batch()
            if not batch:
                self._has_work.clear()
                continue
            try:
                await self._answer(batch)
            except Exception as error:  # The clients get it; the server continues.
                if len(batch) > 1:  # A row that fails must not harm the others.
                    self._alone.extend(batch)
                elif not batch[0].future.done():
                    batch[0].future.set_exception(error)

    async def _answer(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        requests = [waiting.request for waiting in batch]
        loop = asyncio.get_running_loop()
        chunk = await loop.run_in_executor(self._thread, self._predict, requests)
        infer_s = time.monotonic() - began
        predictions = [
            self._row(chunk, row, began - waiting.since, infer_s)
            for row, waiting in enumerate(batch)
        ]
        for waiting, prediction in zip(batch, predictions, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(prediction)

    def close(self) -> None:
        """End the thread after its current prediction."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> list[_Waiting]:
        """Remove and return the requests of the next batch."""
        while self._alone:
            if not (waiting := self._alone.popleft()).future.done():
                return [waiting]
        pending = [waiting for waiting in self._waiting if not waiting.future.done()]
        key = pending[0].request.batch_key if pending else None
        batch = [w for w in pending if w.request.batch_key == key][: self.max_batch]
        taken = set(map(id, batch))
        self._waiting = deque(w for w in pending if id(w) not in taken)
        return batch

    def _predict(self, requests: Sequence[Request]) -> Chunk:
        rows = list(requests)
        if self._pad and len(rows) > 1:
            rows += [rows[-1]] * (self.max_batch - len(rows))
        chunk = self.policy.predict_chunk(
            {key: torch.stack([r.obs[key] for r in rows]) for key in rows[0].obs},
            constraints=ChunkConstraints(
                prefix=_stack(rows, lambda r: r.prefix),
                warm_start=_stack(rows, lambda r: r.warm_start),
                deadline_s=rows[0].deadline_s,
            ),
            generator=[self._generator(request.seed) for request in rows],
        )
        if not bool(chunk.actions.isfinite().all()):
            raise ValueError("the policy predicted NaN or infinity.")
        # The copies to the host also wait for a GPU, in this thread.
        chunk.actions, chunk.steps_used = chunk.actions.cpu(), chunk.steps_used.cpu()
        chunk.energy = None if chunk.energy is None else chunk.energy.cpu()
        return chunk

    def _generator(self, seed: int | None) -> torch.Generator:
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), generator=self._seeds))
        return torch.Generator().manual_seed(seed)

    def _row(self, chunk: Chunk, row: int, wait_s: float, infer_s: float) -> Prediction:
        first = self.policy.shape.n_obs_steps - 1
        energy = None if chunk.energy is None else float(chunk.energy[row])
        return Prediction(
            chunk.actions[row, first:].numpy(), energy, int(chunk.steps_used[row]), wait_s, infer_s
        )


def _stack(rows: list[Request], part: Callable[[Request], Tensor | None]) -> Tensor | None:
    tensors = [tensor for tensor in map(part, rows) if tensor is not None]
    return torch.stack(tensors) if tensors else None
