"""Tasks: splits and processing of demonstrations."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.data import robomimic
from ebt_policy.data.episodes import Episodes
from ebt_policy.errors import ConfigError
from ebt_policy.policies.task_config import PolicyTaskConfig


def task(**changes) -> PolicyTaskConfig:
    return PolicyTaskConfig.from_config({"task": {**compose_config()["task"], **changes}})


ROWS = 9


def episodes(n: int, short: int = 0) -> Episodes:
    """Return ``n`` episodes of nine rows and ``short`` of three; rows hold the episode number."""
    lengths = [ROWS] * n + [3] * short
    rows = np.repeat(np.arange(n + short, dtype=np.float32), lengths)[:, None]
    arrays = {k: np.tile(rows, d) for k, d in {"obs": 20, "state": 5, "action": 2}.items()}
    return Episodes(arrays, np.cumsum(lengths))


@settings(deadline=None)  # the first example composes the configuration
@given(n=st.integers(1, 60), share=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_split_covers_all_episodes_once(n, share, seed):
    count = int(n * share)
    some = task(validation_episodes=count, mirror=False)
    numbers = [
        [] if part is None else part.arrays["obs"][::ROWS, 0].tolist()
        for part in some.split(episodes(n), seed)
    ]
    assert sorted(numbers[0] + numbers[1]) == list(range(n)) and len(numbers[1]) == count
    again, _ = some.split(episodes(n), seed)
    assert again.arrays["obs"][::ROWS, 0].tolist() == numbers[0]


@pytest.mark.parametrize(("n", "held_out"), [(1, 1), (5, 6), (5, -1)])
def test_split_without_training_episodes_is_refused(n, held_out):
    with pytest.raises(ConfigError, match="must leave some"):
        task(validation_episodes=held_out).split(episodes(n), 0)


@pytest.mark.parametrize("seed", range(6))
def test_episodes_too_short_for_a_window_are_not_held_out(seed):
    some = task(validation_episodes=1, mirror=False)
    with pytest.warns(UserWarning, match="3 of 6 episodes are too short for a window of 16 rows"):
        training, held_out = some.split(episodes(3, short=3), seed)
    assert held_out is not None and held_out.lengths.tolist() == [ROWS]
    assert training.lengths.tolist() == [ROWS] * 2
    with (
        pytest.warns(UserWarning),
        pytest.raises(ConfigError, match="some of the 1 demonstrations"),
    ):
        some.split(episodes(1, short=3), seed)
    with pytest.raises(ValueError, match="all of the 3 episodes are too short"):
        some.split(episodes(0, short=3), seed)


def test_mirror_images_are_in_training_but_not_held_out():
    training, held_out = task(validation_episodes=2, mirror=True).split(episodes(6), 0)
    assert len(training) == 8 and held_out is not None and len(held_out) == 2


@pytest.mark.parametrize("name", ["lift", "can", "square", "tool_hang", "transport"])
def test_gripper_goals_are_relative_to_the_gripper(name):
    task = PolicyTaskConfig.from_config(compose_config(f"task={name}"))
    scene = robomimic.SCENES[str(task.scene)]
    ends = np.cumsum(list(robomimic.layout(scene).values()))
    starts = dict(zip(robomimic.layout(scene), [0, *ends], strict=False))
    at = [starts[f"robot{arm}_eef_pos"] for arm in range(scene.arms)]
    assert task.relative_to == [i for a in at for i in (a, a + 1, a + 2, *[None] * 7)]


def test_delta_actions_require_relative_to_null():
    with pytest.raises(ConfigError, match=r"with task\.actions=delta set task\.relative_to=null"):
        PolicyTaskConfig.from_config(compose_config("task=lift", "task.actions=delta"))
    PolicyTaskConfig.from_config(
        compose_config("task=lift", "task.actions=delta", "task.relative_to=null")
    )
