"""The normalizer: limits, inverse, constant channels, JSON and invalid input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ebt_policy.data.normalizer import Normalizer

ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_values_are_normalized_to_limits_and_back(values):
    x = torch.from_numpy(values)
    normalizer = Normalizer.fit({"x": values})
    y = normalizer.normalize("x", x)
    assert y.shape == x.shape and torch.isfinite(y).all()
    assert y.abs().max() <= 1 + 1e-5
    magnitude = x.abs().max().item()
    torch.testing.assert_close(
        normalizer.unnormalize("x", y), x, rtol=0, atol=1e-30 + 3e-6 * magnitude
    )


def test_values_beyond_the_limits_are_extrapolated():
    normalizer = Normalizer.fit({"a": torch.tensor([[0.0, 10.0], [512.0, 30.0]])})
    x = torch.tensor([[[0.0, 10.0], [512.0, 30.0]], [[256.0, 20.0], [1024.0, 40.0]]])
    y = normalizer.normalize("a", x)
    expected = torch.tensor([[[-1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [3.0, 2.0]]])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(normalizer.unnormalize("a", y), x)


@pytest.mark.parametrize("jitter", [0.0, 1e-5])
def test_constant_channels_become_zero(jitter):
    data = torch.tensor([[0.0, 100.0], [1.0, 100.0 + jitter]])
    normalizer = Normalizer.fit({"a": data})
    assert normalizer.normalize("a", data)[:, 1].tolist() == [0.0, 0.0]
    values = torch.tensor([[0.0, -0.7], [0.0, 5.0]])
    torch.testing.assert_close(normalizer.unnormalize("a", values)[:, 1], data[:, 1])


def test_json_round_trip_is_exact():
    data = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    normalizer = Normalizer.fit({"obs": data, "robot.action": data * 7})
    stored = json.loads(json.dumps(normalizer.to_json()))
    again = Normalizer.from_json(stored)
    assert again.keys == ("obs", "robot.action")
    x = torch.from_numpy(data)
    for key in again.keys:
        assert torch.equal(again.normalize(key, x), normalizer.normalize(key, x))
        assert torch.equal(again.unnormalize(key, x), normalizer.unnormalize(key, x))
    assert stored["obs"]["min"] == pytest.approx(data.min(0).tolist(), abs=0)


def test_normalizer_moves_with_the_module_but_is_not_in_its_state():
    policy = torch.nn.Module()
    policy.normalizer = Normalizer.fit({"obs": torch.rand(4, 2)})
    assert not policy.state_dict()
    policy.to("meta")
    assert all(buffer.device.type == "meta" for buffer in policy.buffers())
    assert len(list(policy.buffers())) > 0


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"a": None},
        {"a": {"min": [0.0]}},
        {"a": {"min": [0.0], "max": [1.0, 2.0]}},
        {"a": {"min": [], "max": []}},
        {"a": {"min": [2.0], "max": [1.0]}},
        {"a": {"min": [float("nan")], "max": [1.0]}},
        {"a": {"min": [0.0], "max": [float("inf")]}},
        {"a": {"min": [0.0], "max": [1e300]}},  # infinite in float32
        {"a": {"min": [-(10**400)], "max": [0.0]}},
        {"a": {"min": ["0"], "max": [1.0]}},
        {"a": {"min": 0.0, "max": 1.0}},
    ],
)
def test_malformed_json_is_refused(bad):
    with pytest.raises(ValueError, match="ormalizer"):
        Normalizer.from_json(bad)


def test_invalid_calls_are_refused():
    normalizer = Normalizer.fit({"obs": torch.rand(4, 2)})
    with pytest.raises(ValueError, match='no limits for "action"; it has'):
        normalizer.normalize("action", torch.zeros(2))
    with pytest.raises(ValueError, match="2 channels"):
        normalizer.normalize("obs", torch.zeros(5, 3))
    with pytest.raises(ValueError, match="has no values"):
        Normalizer.fit({"obs": torch.zeros(0, 2)})
    with pytest.raises(ValueError, match=r'"obs": "min" must be .* finite'):
        Normalizer.fit({"obs": torch.tensor([[0.0], [torch.nan]])})


def test_standardized_keys_have_zero_mean_and_unit_spread():
    data = torch.randn(500, 2) * torch.tensor([3.0, 40.0]) + torch.tensor([5.0, -7.0])
    data = torch.cat([data, torch.full((500, 1), 2.5)], dim=1)  # the last channel is constant
    normalizer = Normalizer.fit({"a": data, "b": data}, standardized=("a",))
    y = normalizer.normalize("a", data)
    torch.testing.assert_close(y[:, :2].mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(y[:, :2].std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert (y[:, 2] == 0).all()
    torch.testing.assert_close(normalizer.unnormalize("a", y), data, atol=1e-3, rtol=1e-5)
    assert normalizer.normalize("b", data)[:, :2].abs().max() <= 1 + 1e-5
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())))
    assert torch.equal(again.normalize("a", data), y)


@pytest.mark.parametrize("standardized", [(), ("a",)])
def test_clamp_and_box_are_the_limits_of_the_data(standardized):
    data = torch.randn(50, 3)
    normalizer = Normalizer.fit({"a": data}, standardized)
    low, high = normalizer.box("a")
    y = normalizer.normalize("a", data)
    torch.testing.assert_close(low, y.amin(0))
    torch.testing.assert_close(high, y.amax(0))
    wild = normalizer.clamp("a", 100 * torch.randn(40, 7, 3))
    assert (wild >= low).all() and (wild <= high).all()
    torch.testing.assert_close(normalizer.clamp("a", y), y, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="no limits"):
        normalizer.box("b")


@pytest.mark.parametrize(
    "bad",
    [{"std": [1.0]}, {"mean": [0.0], "std": [-1.0]}, {"mean": [0.0, 1.0], "std": [1.0, 1.0]}],
)
def test_malformed_standard_deviations_are_refused(bad):
    with pytest.raises(ValueError, match='"a"'):
        Normalizer({"a": {"min": [0.0], "max": [1.0], **bad}})
