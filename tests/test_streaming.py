"""The measurement of planning at every control tick."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_policies
import torch
from torch import Tensor

from benchmarks.measurements.streaming import CANDIDATES, METHODS, StreamingPolicy
from benchmarks.tables.control_loop import streaming
from ebt_policy.energy.sampling import draw_normal

STREAMED = METHODS[1:]
A, B = 3, 8  # seeds of the noise of two episodes


def policy(kind: str) -> Any:
    built: Any = tiny_policies.build(kind)
    built.configure_inference(steps=2, num_candidates=CANDIDATES)
    return built.requires_grad_(False)


def observe(tick: int, rows: int) -> dict[str, Tensor]:
    return {"obs": tiny_policies.observe(8, seed=tick)["obs"][:rows]}


@pytest.mark.parametrize("kind", ["flow", "flow_matching"])
@pytest.mark.parametrize("method", STREAMED)
def test_an_episode_does_not_depend_on_the_episodes_beside_it(method, kind):
    planner = policy(kind)
    alone, beside = (StreamingPolicy(planner, method) for _ in range(2))
    mine, copy, other = tiny_policies.generators(A, A, B)
    for tick in range(4):
        expected = alone.predict_chunk(observe(tick, 1), generator=[mine]).actions[0]
        # The other episode starts in the third tick.
        together = [copy] if tick < 2 else [copy, other]
        chunk = beside.predict_chunk(observe(tick, len(together)), generator=together)
        torch.testing.assert_close(chunk.actions[0], expected, atol=1e-2, rtol=0)
    assert len(alone.actions[A]) == 4 and len(beside.actions[B]) == 2


def test_a_kept_plan_is_executed_again_if_it_is_the_best(monkeypatch):
    streamed = StreamingPolicy(policy("flow"), "kept")
    (generator,) = tiny_policies.generators(A)
    first = streamed.predict_chunk(observe(0, 1), generator=[generator]).actions
    candidates = []

    def prefer_the_last(obs: Any, chunks: Tensor, generators: Any) -> Tensor:
        candidates.append(chunks.shape[1])
        return -torch.arange(chunks.shape[1], dtype=torch.float).expand(len(chunks), -1).clone()

    monkeypatch.setattr(streamed, "_judge", prefer_the_last)
    second = streamed.predict_chunk(observe(1, 1), generator=[generator]).actions
    assert candidates == [CANDIDATES + 1]
    torch.testing.assert_close(second[0, :-1], first[0, 1:], atol=1e-3, rtol=0)


def test_the_first_tick_executes_a_new_chunk(monkeypatch):
    streamed = StreamingPolicy(policy("flow"), "kept")
    # The rest of a plan that does not exist is zero and must not be selected.
    monkeypatch.setattr(
        streamed, "_judge", lambda obs, chunks, generators: chunks.square().sum((2, 3))
    )
    chunk = streamed.predict_chunk(observe(0, 2), generator=tiny_policies.generators(A, B))
    assert (chunk.actions.abs().sum((1, 2)) > 0).all()


def test_correlated_noise_moves_with_the_time_of_the_actions():
    planner = policy("flow")
    streamed = StreamingPolicy(planner, "correlated noise")
    (generator,) = tiny_policies.generators(A)
    noises = [streamed._shifted_noise([A], [generator])[0, 0] for _ in range(2)]
    assert torch.equal(noises[1][:-1], noises[0][1:])
    (again,) = tiny_policies.generators(A)
    empty = torch.empty(1, *noises[0].shape)
    assert torch.equal(noises[0], draw_normal(empty, [again])[0])


def entry(name: str, success: float) -> dict[str, Any]:
    value = {"mean": success, "ci95": [success, success]}
    return {"name": name, "score": value, "success": value, "jerk": value, "batch_ms_per_tick": 2.0}


def test_the_table_subtracts_each_method_from_the_kept_plan():
    names = ["flow_matching, chunked", "ebt_12500, kept", "ebt_12500, warm start"]
    conditions = [
        {
            "condition": condition,
            "entries": [entry(n, k / 10 + shift) for k, n in enumerate(names)],
            "paired": [
                {"a": a, "b": b, "metric": "success", "diff": diff, "ci95": [diff - 0.1, diff]}
                for a, b, diff in ((names[0], names[1], -0.2), (names[1], names[2], -0.3))
            ],
        }
        for condition, shift in (("undisturbed", 0.0), ("kick 50", 0.1))
    ]
    quality, success, gaps = streaming({"conditions": conditions}).split("\n\n")
    assert "energy, last plan kept | 0.100 [0.100, 0.100]" in quality
    assert "energy, last plan kept | 0.100 [0.100, 0.100] | 0.200 [0.200, 0.200]" in success
    assert "flow matching, chunks of eight actions | +0.200 [+0.200, +0.300]" in gaps
    assert "energy, warm start | -0.300 [-0.400, -0.300]" in gaps
    assert len(gaps.strip().splitlines()) == 2 + 2
