"""The window sampler: a naive loop, edges of episodes, normalization and invalid input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.data.relative_actions import action_origin, origin_index
from ebt_policy.data.windows import Windows, fit_normalizer


def make(lengths):
    """Return arrays whose values identify the row: obs (row, -row), action (row + 0.5,)."""
    row = torch.arange(sum(lengths), dtype=torch.float64)
    arrays = {"obs": torch.stack([row, -row], 1), "action": row[:, None] + 0.5}
    return arrays, np.cumsum(lengths)


def naive(arrays, ends, horizon, n_obs_steps, n_action_steps):
    """Return the windows of Diffusion Policy's sampler, computed row by row."""
    obs, action = [], []
    for e in range(len(ends)):
        first, stop = (int(ends[e - 1]) if e else 0), int(ends[e])
        length = stop - first
        for start in range(-(n_obs_steps - 1), length - horizon + n_action_steps):
            rows = [first + min(max(start + t, 0), length - 1) for t in range(horizon)]
            obs.append(arrays["obs"][rows[:n_obs_steps]])
            action.append(arrays["action"][rows])
    return obs, action


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_windows_equal_a_naive_loop(data):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    n_obs_steps, n_action_steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    horizon = n_obs_steps + n_action_steps - 1 + data.draw(st.integers(0, 4))
    arrays, ends = make(lengths)
    sizes = {
        "horizon": horizon,
        "n_obs_steps": n_obs_steps,
        "n_action_steps": n_action_steps,
    }
    obs, action = naive(arrays, ends, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not obs:
            with pytest.raises(ValueError, match="all of the"):
                Windows(arrays, ends, **sizes)
            return
        windows = Windows(arrays, ends, **sizes)
    assert len(windows) == len(obs)
    batch = windows.gather(torch.arange(len(windows)))
    torch.testing.assert_close(batch["obs"], torch.stack(obs).float(), rtol=0, atol=0)
    torch.testing.assert_close(batch["action"], torch.stack(action).float(), rtol=0, atol=0)


def test_windows_are_padded_at_the_edges_of_an_episode():
    arrays, ends = make([20, 30])
    windows = Windows(arrays, ends, horizon=16, n_obs_steps=2, n_action_steps=8)
    # Starts from -1 to 20 - 16 + 7 = 11 in the first episode, to 21 in the second.
    assert len(windows) == 13 + 23
    batch = windows.gather(torch.tensor([0, 12, 13, 35]))
    assert batch["obs"].shape == (4, 2, 2) and batch["action"].shape == (4, 16, 1)
    assert batch["obs"].dtype == batch["action"].dtype == torch.float32
    rows = batch["action"][..., 0] - 0.5
    assert rows[0].tolist() == [0, *range(15)]
    assert rows[1].tolist() == [*range(11, 20)] + [19] * 7
    assert rows[2].tolist() == [20, *range(20, 35)]
    assert rows[3].tolist() == [*range(41, 50)] + [49] * 7
    # The first executed action, index n_obs_steps - 1, has the row of the newest observation.
    assert torch.equal(batch["obs"][:, 1, 0], rows[:, 1])


def test_numpy_arrays_are_accepted_and_other_keys_ignored():
    arrays, ends = make([20, 20])
    arrays = {key: value.numpy() for key, value in arrays.items()} | {"state": np.zeros(1)}
    windows = Windows(arrays, ends, horizon=4, n_obs_steps=1, n_action_steps=4)
    rows = windows.gather(torch.arange(len(windows)))["obs"][:, 0, 0]
    assert rows.tolist() == [*range(40)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 8}, "set it to 9 or more"),
        ({"n_obs_steps": 0}, "at least 1"),
        ({"n_action_steps": 0}, "at least 1"),
        ({"ends": [20, 20, 40]}, "strictly increasing"),
        ({"ends": []}, "strictly increasing"),
        ({"ends": [20, 41]}, r'"obs" has shape \(40, 2\).*end at row 41'),
        ({"arrays": {"obs": torch.zeros(40, 2)}}, 'need the key "action"'),
        ({"arrays": {"obs": torch.zeros(40, 2), "action": torch.zeros(40)}}, '"action" has shape'),
        ({"arrays": {"obs": torch.zeros(39, 2), "action": torch.zeros(40, 1)}}, '"obs" has shape'),
        ({"horizon": 60}, "needs 52 rows; the longest has 20"),
    ],
)
def test_invalid_input_is_refused(change, message):
    arrays, ends = make([20, 20])
    good = {
        "arrays": arrays,
        "ends": ends,
        "horizon": 16,
        "n_obs_steps": 2,
        "n_action_steps": 8,
    }
    with pytest.raises(ValueError, match=message):
        Windows(**(good | change))


def test_short_episode_is_skipped_with_a_warning():
    arrays, ends = make([7, 20, 8])
    with pytest.warns(UserWarning, match="1 of 3 episodes are too short"):
        windows = Windows(arrays, ends, horizon=16, n_obs_steps=2, n_action_steps=8)
    assert len(windows) == 13 + 1


def test_normalized_actions_have_unit_variance():
    arrays, ends = make([40, 60])
    windows = Windows(arrays, ends, horizon=16, n_obs_steps=2, n_action_steps=8)
    normalizer = fit_normalizer(windows, None)
    actions = normalizer.normalize("action", windows.gather(torch.arange(len(windows)))["action"])
    std, mean = torch.std_mean(actions.flatten(0, 1), 0, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)


def test_relative_actions_do_not_depend_on_the_robot_position():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(40, 2)), axis=0)

    def fitted(offset):
        obs = np.concatenate([rng.normal(size=(40, 1)) * 0, walk + offset], axis=1)
        windows = Windows(
            {"obs": obs, "action": walk + offset + 1}, [40],
            horizon=6, n_obs_steps=2, n_action_steps=3,
        )  # fmt: skip
        return fit_normalizer(windows, [1, 2]).to_json()["action"]

    at_origin, moved = fitted(0), fitted(300.0)
    for key in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(at_origin[key], moved[key], atol=1e-3)
    assert action_origin(torch.zeros(3, 2, 5), None) == 0.0
    obs = torch.arange(12.0).view(1, 3, 4)
    assert torch.equal(action_origin(obs, origin_index([3, 1])), torch.tensor([[[11.0, 9.0]]]))
    assert torch.equal(action_origin(obs, origin_index([3, None])), torch.tensor([[[11.0, 0.0]]]))
